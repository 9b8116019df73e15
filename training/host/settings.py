"""How this ComfyUI was started, as far as nodes want to know it."""

from __future__ import annotations

from comfy.cli_args import args


def may_tell_graph() -> bool:
    """Whether files may hold the graph they were made with (not with ``--disable-metadata``)."""
    return not args.disable_metadata
