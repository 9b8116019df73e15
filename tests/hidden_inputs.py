"""A node's class as the host prepares it for one call, with what only the host knows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io


def prepared(node: type[io.ComfyNode], hidden: Mapping[Any, Any] | None = None) -> Any:
    """The class to call ``execute`` on.

    Args:
        hidden: ``io.Hidden`` member -> its value. 0.3.75 takes them as they are; newer hosts, with
            other things beside them, by name.
    """
    prepare = node.PREPARE_CLASS_CLONE
    if "v3_data" in inspect.signature(prepare).parameters and hidden is not None:
        return prepare({"hidden_inputs": dict(hidden)})
    return prepare(None if hidden is None else dict(hidden))
