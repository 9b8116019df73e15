"""Known models fetched from a hub on this machine: whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hub import REVISION, Hub, hub
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.model_download import PIECE
from lora_atelier.training.model_files import KnownFile, KnownModel, fetch, in_megabytes
from lora_atelier.training.tagging.known_taggers import KNOWN_TAGGERS

REPO = "somebody/a-tagger"
MODEL = np.random.default_rng(0).bytes(3 << 20)
FILES = {"model.onnx": MODEL, "sub/tags.csv": b"tag_id,name\n0,fox\n", "README.md": b"about"}
SHA256 = hashlib.sha256(MODEL).hexdigest()


def known(sha256: str | None = None, revision: str = REVISION) -> KnownModel:
    files = (KnownFile("model.onnx", len(MODEL), sha256), KnownFile("sub/tags.csv", 20))
    return KnownModel("a-tagger", REPO, revision, files, "CC0-1.0")


@pytest.fixture
def server() -> Iterator[Hub]:
    with hub(REPO, dict(FILES), ("model.onnx",)) as found:
        yield found


def nothing(done: int, total: int) -> None:
    """A tick that tells nobody."""


def fetched(server: Hub, folder: Path, model: KnownModel | None = None, tick=nothing) -> Path:
    return fetch(model or known(), folder, tick, server.endpoint)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def refused(server: Hub, folder: Path, match: str, model: KnownModel | None = None) -> str:
    """The message; and nothing is left of it."""
    before = contents(folder.parent)
    with pytest.raises(AtelierError, match=match) as refusal:
        fetched(server, folder, model)
    assert contents(folder.parent) == before and not list(folder.parent.glob(".*"))
    return str(refusal.value)


@pytest.mark.parametrize("revision", [REVISION, ""])
def test_the_files_arrive_with_a_note_of_where_they_come_from(
    server: Hub, tmp_path: Path, revision: str
) -> None:
    told: list[tuple[int, int]] = []
    folder = fetched(
        server, tmp_path / "m" / "a", known(revision=revision), lambda *a: told.append(a)
    )
    found = contents(folder)
    note = json.loads(found.pop("revision.json"))
    assert found == {name: FILES[name] for name in ("model.onnx", "sub/tags.csv")}
    assert (note["repo_id"], note["revision"], note["licence"]) == (REPO, REVISION, "CC0-1.0")
    assert note["files"]["model.onnx"]["sha256"] == SHA256
    total = len(MODEL) + len(FILES["sub/tags.csv"])
    assert [done for done, _ in told] == sorted(done for done, _ in told) and len(told) > 10
    assert {t for _, t in told} == {total} and told[-1][0] == total
    assert os.listdir(tmp_path / "m") == ["a"]


def test_other_files_of_the_folder_stay(server: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "model.onnx").write_text("half")
    fetched(server, folder)
    assert contents(folder).keys() == {"notes.txt", "model.onnx", "sub/tags.csv", "revision.json"}
    assert (folder / "model.onnx").read_bytes() == MODEL
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_lost_connection_is_gone_on_with(server: Hub, tmp_path: Path, ranges: bool) -> None:
    server.ends_early, server.ranges = [1 << 20, 1 << 20], ranges
    assert (fetched(server, tmp_path / "a") / "model.onnx").read_bytes() == MODEL
    asked = [where for path, where in server.asked if path.endswith("model.onnx")]
    second = "bytes=2097152-" if ranges else "bytes=1048576-"
    assert asked == [None, "bytes=1048576-", second]


def test_what_arrives_damaged_is_not_kept(server: Hub, tmp_path: Path) -> None:
    for path in ("model.onnx", "sub/tags.csv"):  # known by SHA-256, and by Git's SHA-1
        server.served = {**FILES, path: b"x" + FILES[path][1:]}
        refused(server, tmp_path / "a", rf"{path} is not the file that it should be: its checksum")


def test_more_than_was_promised_is_not_written(server: Hub, tmp_path: Path) -> None:
    server.served = {**FILES, "model.onnx": MODEL * 4}
    told: list[int] = []
    with pytest.raises(AtelierError, match=f"larger than {len(MODEL)} bytes. Nothing was kept"):
        fetched(server, tmp_path / "a", tick=lambda done, total: told.append(done))
    assert len(told) <= len(MODEL) // PIECE and os.listdir(tmp_path) == []


def test_a_pinned_checksum_counts_more_than_what_the_hub_says(server: Hub, tmp_path: Path) -> None:
    refused(server, tmp_path / "a", "its checksum differs", known("0" * 64))
    assert fetched(server, tmp_path / "a", known(SHA256)).is_dir()


def test_a_file_or_repository_that_is_not_there(server: Hub, tmp_path: Path) -> None:
    del server.files["sub/tags.csv"]
    refused(server, tmp_path / "a", f"{REPO} has no sub/tags.csv in revision {REVISION}")
    text = refused(server, tmp_path / "a", "did not answer: .*404", known(revision="f" * 40))
    assert "Or get model.onnx, sub/tags.csv from https://huggingface.co/somebody/a-tagger" in text


def test_a_file_that_only_some_revisions_have_may_be_missing(server: Hub, tmp_path: Path) -> None:
    files = (*known().files, KnownFile("merges.txt", 5, if_there=True))
    model = KnownModel("a-tagger", REPO, REVISION, files, "CC0-1.0")
    without = contents(fetched(server, tmp_path / "a", model))
    assert without.keys() == {"model.onnx", "sub/tags.csv", "revision.json"}
    server.files["merges.txt"] = server.served["merges.txt"] = b"a b\n"
    assert contents(fetched(server, tmp_path / "b", model))["merges.txt"] == b"a b\n"


def test_without_network_it_says_what_to_get_and_where_to_put_it(tmp_path: Path) -> None:
    with socket.socket() as free:  # a port where nobody answers
        free.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
        folder = tmp_path / "taggers" / "a"
        with pytest.raises(AtelierError) as refusal:
            fetch(known(), folder, nothing, endpoint)
    text = str(refusal.value)
    assert text.startswith(f"{endpoint}/{REPO} did not answer: ")
    assert f'yourself and put them into "{folder}".' in text
    assert not folder.parent.exists()


@pytest.mark.parametrize("at", [1, 5, 1_000_000])
def test_cancel_leaves_nothing(server: Hub, tmp_path: Path, at: int) -> None:
    class Cancelled(Exception):
        """What the host raises."""

    calls: list[int] = []

    def tick(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == at or done == total:
            raise Cancelled

    with pytest.raises(Cancelled):
        fetched(server, tmp_path / "all" / "a", tick=tick)
    assert os.listdir(tmp_path / "all") == []


def test_a_full_disk_is_told(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        refused(server, tmp_path / "a", "File too large.* Or get model.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    little = type(shutil.disk_usage("/"))(100, 99, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: little)
    refused(server, tmp_path / "a", "has 0 MB free, and 3 MB are to be fetched")
    assert not any(path.endswith(".csv") for path, _ in server.asked)


def test_known_taggers_are_pinned() -> None:
    assert len(KNOWN_TAGGERS) == 5
    for name, model in KNOWN_TAGGERS.items():
        assert model.name == name and model.page == f"https://huggingface.co/SmilingWolf/{name}"
        assert re.fullmatch("[0-9a-f]{40}", model.revision)
        assert [file.path for file in model.files] == ["model.onnx", "selected_tags.csv"]
        assert all(re.fullmatch("[0-9a-f]{64}", file.sha256 or "") for file in model.files)
    assert len({m.revision for m in KNOWN_TAGGERS.values()}) == 5
    assert KNOWN_TAGGERS["wd-vit-tagger-v3"].size == "379 MB"
    assert in_megabytes(1_260_744_467) == "1.3 GB"
