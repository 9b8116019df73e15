"""Hashes by which programs know a LoRA file again, whatever its metadata become.

Source of the formulas: kohya-ss/sd-scripts, ``networks/lora.py`` and ``library/train_util.py``
(``precalculate_safetensors_hashes``), after sd-webui-additional-networks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

LEGACY_START, LEGACY_LENGTH = 0x100000, 0x10000
"""The 64 KiB after the first MiB of a file."""
PIECE = 1 << 24
"""Bytes of a file read at a time."""


def legacy_hash(content: bytes | memoryview) -> str:
    """First 8 digits of the SHA-256 of 64 KiB in the middle: A1111's old short hash.

    Args:
        content: of the whole file, or at least its first 1.1 MiB.
    """
    piece = content[LEGACY_START : LEGACY_START + LEGACY_LENGTH]
    return hashlib.sha256(piece).hexdigest()[:8]


def legacy_hash_of_file(path: Path) -> str:
    """The same of a file that is too large to be read whole."""
    with path.open("rb") as file:
        return legacy_hash(file.read(LEGACY_START + LEGACY_LENGTH))


def sha256_of_file(path: Path, read: Callable[[int], None] = lambda count: None) -> str:
    """Of the whole file, as A1111, sd-scripts (``calculate_sha256``) and Civitai know it: 64 small
    hexadecimal digits.

    Args:
        read: told how many bytes have been read; may raise to stop.
    """
    digest, count = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            count += len(piece)
            read(count)
    return digest.hexdigest()


def data_of(content: bytes) -> memoryview:
    """What follows the header of a safetensors file: the numbers."""
    return memoryview(content)[8 + int.from_bytes(content[:8], "little") :]


def hash_metadata(content: bytes) -> dict[str, str]:
    """Hashes of a file whose only metadata are the ``ss_*``, which never change.

    Returns:
        ``sshs_model_hash`` (SHA-256 of the numbers), ``sshs_legacy_hash``, and the first one again
        under ModelSpec's name and with its prefix.
    """
    model_hash = hashlib.sha256(data_of(content)).hexdigest()
    return {
        "sshs_model_hash": model_hash,
        "sshs_legacy_hash": legacy_hash(content),
        "modelspec.hash_sha256": f"0x{model_hash}",
    }


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The same safetensors file with other metadata: the numbers are not laid out again.

    The header is JSON, filled up with spaces so that the numbers begin at a multiple of 8 bytes.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    text = json.dumps(
        {"__metadata__": dict(metadata), **header}, ensure_ascii=False, separators=(",", ":")
    ).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, data_of(content)))
