"""Whether a folder that a node writes is still as the node left it.

ComfyUI asks before it runs anything: a node whose own files counted as a change would run again
after each run, and everything behind it with it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


class FolderMemory:
    """For the life of the process, as ComfyUI's own cache.

    Args:
        look: changes when a file of the folder does.
    """

    def __init__(self, look: Callable[[Path], str]) -> None:
        self._look = look
        self._before: dict[Path, str] = {}
        self._after: dict[Path, str] = {}

    def fingerprint(self, folder: Path) -> str:
        """The same as the last time if the folder is as it was left; else another."""
        now = self._look(folder) if folder.is_dir() else "missing"
        if self._after.get(folder) != now:
            self._before[folder] = now
            self._after.pop(folder, None)
        return self._before[folder]

    def leave(self, folder: Path) -> None:
        """It was written: this is how it is to stay."""
        if folder in self._before:
            self._after[folder] = self._look(folder)
