"""Memory that is free already, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back_freed() -> None:
    """Let the C library return what it keeps for itself.

    Only glibc keeps much: blocks between others, in an arena for each thread.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
