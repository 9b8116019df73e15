"""Hashes of a LoRA file, by the formulas of sd-scripts."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from lora_atelier.training.results.known_hashes import KnownHashes
from lora_atelier.training.results.lora_file import SavePrecision, TrainedLora, save_lora
from lora_atelier.training.results.safetensors_hashes import (
    hash_metadata,
    legacy_hash,
    legacy_hash_of_file,
    sha256_of_file,
    with_metadata,
)


def by_hand(header: dict, numbers: bytes) -> bytes:
    """A safetensors file without the library."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + numbers


def test_hashes_of_a_file_made_by_hand() -> None:
    numbers = struct.pack("<3f", 1.0, 2.0, 3.0)
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    content = by_hand({"__metadata__": {"ss_steps": "7"}, "a": entry}, numbers)
    told = hash_metadata(content)
    assert told["sshs_model_hash"] == hashlib.sha256(numbers).hexdigest()
    assert told["modelspec.hash_sha256"] == "0x" + hashlib.sha256(numbers).hexdigest()
    # Nothing lies past the first MiB of so small a file: the hash of no bytes at all.
    assert told["sshs_legacy_hash"] == "e3b0c442"


def test_the_legacy_hash_is_of_64_kib_after_the_first_mib(tmp_path: Path) -> None:
    content = bytes(i % 251 for i in range(0x100000 + 0x10000 + 1000))
    expected = hashlib.sha256(content[1048576:1114112]).hexdigest()[:8]
    assert legacy_hash(content) == expected
    (tmp_path / "model").write_bytes(content)
    assert legacy_hash_of_file(tmp_path / "model") == expected


def test_other_metadata_leave_the_tensors_as_they_are() -> None:
    tensors = {"b": torch.randn(3, 5), "a": torch.randn(7).half()}
    content = with_metadata(save(tensors, {"old": "1"}), {"new": "狐狸", "long": "x" * 1001})
    assert int.from_bytes(content[:8], "little") % 8 == 0
    found = load(content)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], tensors[key]) for key in tensors)


def test_hashes_depend_on_weights_and_training_alone(tmp_path: Path) -> None:
    """As sd-scripts has it: titles and the like may be changed later."""
    tensors = {"lora_unet_a.lora_down.weight": torch.randn(4, 70_000)}
    told = []
    for number, title in enumerate(("one", "another, longer title")):
        path = tmp_path / str(number)
        lora = TrainedLora(tensors, {"ss_steps": "7", "modelspec.title": title})
        save_lora(path, lora, SavePrecision.FLOAT)
        with safe_open(path, "pt") as file:
            told.append({k: v for k, v in file.metadata().items() if "hash" in k})
    assert told[0] == told[1]
    assert told[0].keys() == {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"}
    only_ss = save(tensors, {"ss_steps": "7"})
    assert told[0]["sshs_legacy_hash"] == hashlib.sha256(only_ss[0x100000:0x110000]).hexdigest()[:8]
    length = int.from_bytes(only_ss[:8], "little")
    assert told[0]["sshs_model_hash"] == hashlib.sha256(only_ss[8 + length :]).hexdigest()


def test_a_whole_file_is_hashed_piece_by_piece(tmp_path: Path) -> None:
    file, content = tmp_path / "base", bytes(range(256)) * 70_000
    file.write_bytes(content)
    read: list[int] = []
    assert sha256_of_file(file, read.append) == hashlib.sha256(content).hexdigest()
    assert read == [1 << 24, len(content)]


def test_a_known_file_is_read_once_and_a_changed_one_again(tmp_path: Path) -> None:
    file, known = tmp_path / "base", KnownHashes(tmp_path / "cache")
    reads: list[int] = []

    def sha256() -> str:
        return known.sha256(file, reads.append)

    file.write_bytes(b"one")
    first = hashlib.sha256(b"one").hexdigest()
    assert [sha256(), sha256()] == [first, first]
    assert reads == [3]
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert sha256() == hashlib.sha256(b"two").hexdigest()
    assert reads == [3, 3]
    for entry in (tmp_path / "cache").iterdir():
        entry.write_text("damaged")
    assert sha256() == hashlib.sha256(b"two").hexdigest()
    assert reads == [3, 3, 3]


def test_what_stops_the_reading_leaves_nothing_known(tmp_path: Path) -> None:
    file = tmp_path / "base"
    file.write_bytes(b"one")

    def cancelled(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        KnownHashes(tmp_path / "cache").sha256(file, cancelled)
    assert not (tmp_path / "cache").exists()
