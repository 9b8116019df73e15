"""What was read of the files of a folder, so that a second look at a large one is quick.

Kept are the size of each picture and the text of each caption file, with the size and time of the
file they were read from. An entry whose file changed since, or was so young that it might have
changed unnoticed, is read again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import AtelierError
from ..files import write_whole
from .digests import RACY_SECONDS
from .listing import Entry

VERSION = 1
T = TypeVar("T")

log = logging.getLogger("lora_atelier")


class FolderIndex:
    """Remembered answers about the files of one folder.

    Args:
        folder: the dataset folder.
        store: folder in which indices lie; None = nothing is remembered.
    """

    def __init__(self, folder: Path, store: Path | None) -> None:
        place = os.path.abspath(folder).encode("utf-8", "surrogatepass")
        name = hashlib.sha256(place).hexdigest()[:32]
        self._file = None if store is None else store / f"{name}.index"
        self._known = _load(self._file)
        self._changed = False
        self._newest = time.time_ns() - int(RACY_SECONDS * 1e9)

    def remembered(self, entry: Entry, read: Callable[[Entry], T]) -> T:
        """What ``read`` said of the file as it is now; asked only when that is not known.

        Raises:
            AtelierError: from ``read``; what fails is not remembered.
        """
        known = self._known.get(entry.name)
        if known is not None and known[0] == entry.size and known[1] == entry.mtime_ns:
            return known[2]
        answer = read(entry)
        if self._file is not None and entry.mtime_ns < self._newest:
            self._known[entry.name] = [entry.size, entry.mtime_ns, answer]
            self._changed = True
        return answer

    def save(self, present: Iterable[str]) -> None:
        """Write what was learned, of the files that are there.

        An index that cannot be written only costs time; of two written at once, one stays.
        """
        gone = self._known.keys() - set(present)
        for name in gone:
            del self._known[name]
        if self._file is None or not (self._changed or gone):
            return
        try:
            write_whole(self._file, _packed(self._known))
        except AtelierError as error:
            log.warning("The folder will be read anew next time. %s", error)


def _packed(files: dict[str, Any]) -> bytes:
    """A checksum, for a disk may lose a part of it; then JSON."""
    content = json.dumps({"version": VERSION, "files": files}, ensure_ascii=False)
    content = content.encode("utf-8", "surrogatepass")
    return b"%08x\n" % zlib.crc32(content) + content


def _load(file: Path | None) -> dict[str, Any]:
    """Empty when there is none, or it is not ours: it is made again."""
    if file is None:
        return {}
    try:
        checksum, _, content = file.read_bytes().partition(b"\n")
        if checksum != b"%08x" % zlib.crc32(content):
            return {}
        index = json.loads(content)
        return index["files"] if index["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
