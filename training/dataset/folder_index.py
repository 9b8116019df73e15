"""What was read of the files of a folder, so that a second look at a large one is quick.

Kept are the size of each picture and the text of each caption file, with the size and time of the
file they were read from. An entry whose file changed since, or was so young that it might have
changed unnoticed, is read again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..files import write_whole
from .digests import RACY_SECONDS
from .listing import Entry

VERSION = 1
T = TypeVar("T")


class FolderIndex:
    """Remembered answers about the files of one folder.

    Args:
        folder: the dataset folder.
        store: folder in which indices lie; None = nothing is remembered.
    """

    def __init__(self, folder: Path, store: Path | None) -> None:
        name = hashlib.sha256(str(folder).encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self._file = None if store is None else store / f"{name}.json"
        self._known = _load(self._file)
        self._now: dict[str, list] = {}
        self._changed = False
        self._newest = time.time_ns() - int(RACY_SECONDS * 1e9)

    def remembered(self, entry: Entry, read: Callable[[Entry], T]) -> T:
        """What ``read`` said of the file as it is now; asked only when that is not known.

        Raises:
            AtelierError: from ``read``; what fails is not remembered.
        """
        known = self._known.get(entry.name)
        if known is not None and known[0] == entry.size and known[1] == entry.mtime_ns:
            self._now[entry.name] = known
            return known[2]
        answer = read(entry)
        self._changed = True
        if entry.mtime_ns < self._newest:
            self._now[entry.name] = [entry.size, entry.mtime_ns, answer]
        return answer

    def save(self) -> None:
        """Write what was learned; an index that cannot be written only costs time."""
        if self._file is None or not (self._changed or len(self._now) != len(self._known)):
            return
        content = json.dumps({"version": VERSION, "files": self._now}, ensure_ascii=False)
        write_whole(self._file, content.encode("utf-8", "surrogatepass"))


def _load(file: Path | None) -> dict[str, Any]:
    """Empty when there is none, or it is not ours: it is made again."""
    if file is None:
        return {}
    try:
        content = json.loads(file.read_bytes())
        return content["files"] if content["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
