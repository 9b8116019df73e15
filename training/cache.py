"""Tensors on disk, found again by a digest of everything that made them.

One safetensors file an entry, read through a memory map, so that a dataset of any size takes no
RAM. Every entry carries a checksum: a file that is cut short, changed or empty counts as absent and
is made again. Files are written under a name of their own and renamed, so two runs may share a
cache. They are not flushed to the disk one by one: after a power cut the checksum tells.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .errors import AtelierError
from .files import partial_of

CHECKSUM = "crc32"

Entry = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors and metadata."""


def digest_of(*facts: Any) -> str:
    """SHA-256 of plain values (numbers, texts, lists, mappings), the same on every machine."""
    text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class TensorCache:
    """Entries of one kind below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where the entry of a digest lies, or would lie."""
        return self.folder / key[:2] / f"{key}.safetensors"

    @torch.inference_mode(False)  # what is read here, autograd must accept
    def read(self, key: str) -> Entry | None:
        """An entry; None when there is none, or it is not whole.

        The tensors lie in the file's memory map: the system may drop their pages at any time.
        """
        try:
            with safe_open(self.path(key), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError, AttributeError):
            return None  # the last: a flipped bit named a type of numbers that this torch has not
        whole = metadata.pop(CHECKSUM, None) == _checksum(tensors, metadata)
        return (tensors, metadata) if whole else None

    def write(
        self, key: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Make or replace an entry.

        Raises:
            AtelierError: the disk is full or the folder cannot be written.
        """
        # Copies, since safetensors refuses tensors that share their memory.
        tensors = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()}
        facts = dict(metadata or {})
        content = save(tensors, metadata={**facts, CHECKSUM: _checksum(tensors, facts)})
        path = self.path(key)
        partial = partial_of(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):  # there may be none
                partial.unlink()
            # Windows does not replace a file that another run has open; it is the same entry.
            if self.read(key) is None:
                raise AtelierError(
                    f'The cache "{self.folder}" could not be written: {error}. Free some space on '
                    "that disk (the whole cache folder may be deleted) and queue again: what was "
                    "encoded so far is kept."
                ) from error


class MemoryCache:
    """Entries that no other run may find; they live as long as this object."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def read(self, key: str) -> Entry | None:
        """An entry, or None."""
        return self._entries.get(key)

    @torch.inference_mode(False)
    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Make or replace an entry."""
        copies = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
        self._entries[key] = (copies, {})


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    checksum = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"
