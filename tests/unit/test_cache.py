"""Tensors on disk come back as they were written, or not at all."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_atelier.training.cache import TensorCache, digest_of
from lora_atelier.training.errors import AtelierError

KEY = "ab" * 32
TENSORS = {
    "latent": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4) - 7.5,
    "ids": torch.tensor([[1, -2, 3]]),
    "half": torch.tensor([1.5, float("nan")], dtype=torch.bfloat16),
    "one": torch.tensor(2.5),
    "none": torch.zeros(0, 3),
    "flags": torch.tensor([True, False]),
}
METADATA = {"form": '{"größe": [1, 2]}', "empty": ""}


@pytest.fixture
def cache(tmp_path: Path) -> TensorCache:
    return TensorCache(tmp_path / "cache")


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype
        and one[n].shape == other[n].shape
        and torch.equal(one[n].nan_to_num(-1), other[n].nan_to_num(-1))
        for n in one
    )


def test_an_entry_comes_back_as_it_was_written(cache: TensorCache) -> None:
    cache.write(KEY, TENSORS, METADATA)
    tensors, metadata = cache.read(KEY)
    assert same(tensors, TENSORS) and metadata == METADATA
    assert cache.read("cd" * 32) is None


def test_views_of_one_memory_and_strided_tensors_are_written(cache: TensorCache) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": whole, "row": whole[1], "turned": whole.T}
    cache.write(KEY, tensors)
    assert same(cache.read(KEY)[0], tensors)


def test_what_is_read_in_inference_mode_may_be_trained_with(cache: TensorCache) -> None:
    with torch.inference_mode():
        cache.write(KEY, {"latent": torch.ones(2, 2)})
        latent = cache.read(KEY)[0]["latent"]
    weight = torch.ones(2, 2, requires_grad=True)
    (latent * weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones(2, 2))


def test_writing_again_replaces_and_what_was_read_before_stays(cache: TensorCache) -> None:
    cache.write(KEY, {"latent": torch.zeros(1000)})
    before = cache.read(KEY)[0]["latent"]
    cache.write(KEY, {"latent": torch.ones(1000)})
    assert cache.read(KEY)[0]["latent"].sum() == 1000
    assert before.sum() == 0


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[TensorCache, bytes]:
    """A cache with one entry, and the bytes of its file."""
    cache = TensorCache(tmp_path_factory.mktemp("cache"))
    cache.write(KEY, TENSORS, METADATA)
    return cache, cache.path(KEY).read_bytes()


def test_every_single_byte_that_is_wrong_is_noticed(written: tuple[TensorCache, bytes]) -> None:
    """Whatever it hits: length, names, types, offsets, checksum, numbers."""
    cache, whole = written
    for place in range(len(whole)):
        for flip in (0x01, 0xFF):
            damaged = bytearray(whole)
            damaged[place] ^= flip
            cache.path(KEY).write_bytes(damaged)
            assert_absent_or_as_written(cache, f"byte {place} ^ {flip}")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_damage_is_read_or_raises(written: tuple[TensorCache, bytes], data) -> None:
    cache, whole = written
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    damaged = whole[:start] + data.draw(st.binary(max_size=40)) + whole[end:]
    cache.path(KEY).write_bytes(damaged)
    assert_absent_or_as_written(cache, repr((start, end)))


def assert_absent_or_as_written(cache: TensorCache, what: str) -> None:
    """Spaces around the header's JSON say nothing, so some damage changes nothing."""
    entry = cache.read(KEY)
    assert entry is None or (same(entry[0], TENSORS) and entry[1] == METADATA), what


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 300, b"\x00" * 4096])
def test_files_of_another_kind_are_absent(cache: TensorCache, content: bytes) -> None:
    cache.write(KEY, TENSORS)
    cache.path(KEY).write_bytes(content)
    assert cache.read(KEY) is None


def test_a_folder_in_the_place_of_an_entry_is_told(cache: TensorCache) -> None:
    cache.path(KEY).mkdir(parents=True)
    assert cache.read(KEY) is None
    with pytest.raises(AtelierError, match="could not be written.*may be deleted"):
        cache.write(KEY, TENSORS)
    assert [file.name for file in cache.path(KEY).parent.iterdir()] == [cache.path(KEY).name]


@contextmanager
def small_files_only() -> Iterator[None]:
    """The system's limit on the size of a file stands for a full disk. Not a fixture: pytest writes
    its own output before a fixture is taken down."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_leaves_nothing_behind(cache: TensorCache) -> None:
    told = f"{os.strerror(errno.EFBIG)}.*Free some space"
    with small_files_only(), pytest.raises(AtelierError, match=told):
        cache.write(KEY, {"latent": torch.zeros(9999)})
    assert cache.read(KEY) is None
    assert not [file for file in cache.folder.rglob("*") if file.is_file()]


def _write_all(folder: Path, seed: int) -> None:
    cache = TensorCache(folder)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed)).tolist()
    for i in order * 3:
        cache.write(f"{i:064x}", {"latent": torch.full((64, 64), float(i))})


def test_two_processes_write_the_same_entries_at_a_time(cache: TensorCache) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_all, args=(cache.folder, seed)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert_all_whole(cache)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert assert_all_whole(cache) == 40
    assert not list(cache.folder.rglob("*.partial"))


def test_two_threads_write_the_same_entries_at_a_time(cache: TensorCache) -> None:
    writers = [
        threading.Thread(target=_write_all, args=(cache.folder, seed), daemon=True)
        for seed in (1, 2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert assert_all_whole(cache) == 40
    assert not list(cache.folder.rglob("*.partial"))


def assert_all_whole(cache: TensorCache) -> int:
    """Every file that is there is an entry with its own numbers; returns how many."""
    files = list(cache.folder.rglob("*.safetensors"))
    for file in files:
        tensors, _ = cache.read(file.stem)
        assert (tensors["latent"] == int(file.stem, 16)).all()
    return len(files)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_read_does_not_stay_in_memory(cache: TensorCache) -> None:
    """200 entries of 1 MB, each looked at whole."""
    for i in range(200):
        cache.write(f"{i:064x}", {"latent": torch.full((256, 1024), float(i))})

    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    cache.read(f"{0:064x}")
    before = resident()
    largest = 0
    for i in range(200):
        assert float(cache.read(f"{i:064x}")[0]["latent"].mean()) == i
        largest = max(largest, resident())
    assert largest - before < 20e6


def test_digests_tell_apart_what_text_alone_would_not() -> None:
    told = [("ab", "c"), ("a", "bc"), ("abc",), (["ab", "c"],), (1,), ("1",), (1.0,), (None,)]
    assert len({digest_of(*facts) for facts in told}) == len(told)
    assert digest_of({"b": 1, "a": 2}) == digest_of({"a": 2, "b": 1})
    assert digest_of("\udc80 ü") == digest_of("\udc80 ü")  # a file name that is no Unicode
