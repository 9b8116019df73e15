"""Reading a folder of 100,000 pictures with captions: the first time, and again.

Run it with `make bench`. The pictures are small, so what is timed is everything but the disk.
"""

from __future__ import annotations

import io
import os
import resource
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from lora_atelier.training.dataset.folder import folder_fingerprint, load_folder

COUNT = 100_000
FOLDERS = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("large")
    contents = []
    for k in range(20):
        buffer, kind = io.BytesIO(), "JPEG" if k % 2 else "PNG"
        Image.new("RGB", (64 + k, 64), (k * 10, 3, 5)).save(buffer, kind)
        contents.append((buffer.getvalue(), kind.lower()))
    day_ago = (time.time() - 86_400,) * 2
    for i in range(COUNT):
        part = place / f"{i % FOLDERS:03}"
        part.mkdir(exist_ok=True)
        content, extension = contents[i % len(contents)]
        (part / f"img{i}.{extension}").write_bytes(content)
        (part / f"img{i}.txt").write_text(f"tag {i}, tree, sky, number {i % 7}")
        os.utime(part / f"img{i}.{extension}", day_ago)
        os.utime(part / f"img{i}.txt", day_ago)
    return place


def most_memory() -> float:
    """Most memory this process has ever had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Clock:
    """Seconds, and those that the processor worked for us: others may use it too."""

    def __init__(self) -> None:
        self.began, self.worked = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        seconds, worked = time.perf_counter() - self.began, time.process_time() - self.worked
        return f"{seconds:.1f} s ({worked:.1f} s of processor time)"


def test_reading_100000_pictures(folder: Path, tmp_path: Path) -> None:
    memory = most_memory()
    for turn in ("cold", "warm"):
        clock = Clock()
        dataset = load_folder(folder, index=tmp_path)
        told = str(clock)
        assert len(dataset.samples) == COUNT
        del dataset
        sys.stdout.write(
            f"\n{COUNT:,} pictures, {turn}: {told}, {most_memory() - memory:.0f} MB more"
        )
    clock = Clock()
    folder_fingerprint(folder)
    sys.stdout.write(f"\nfingerprint of the folder: {clock}\n")
