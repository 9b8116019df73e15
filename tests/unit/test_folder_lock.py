"""A run's folder belongs to the one process that trains in it, for as long as it lives."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bootstrap import ROOT
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.runs import folder_lock
from lora_atelier.training.runs.folder_lock import is_trained, training_alone

HOLDING = """
import sys, time, types
from pathlib import Path
pack = types.ModuleType("lora_atelier")
pack.__path__ = [sys.argv[1]]
sys.modules["lora_atelier"] = pack
from lora_atelier.training.runs.folder_lock import training_alone
with training_alone(Path(sys.argv[2]), "wait"):
    print("there", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "foxes-1"


@pytest.fixture
def other(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that trains in the folder."""
    command = [sys.executable, "-c", HOLDING, str(ROOT), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "PATIENCE_SECONDS", 0.2)


def test_a_folder_is_trained_in_from_the_beginning_to_the_end(folder: Path) -> None:
    assert not is_trained(folder) and not folder.exists()
    for _ in range(2):
        with training_alone(folder, "wait"):
            assert is_trained(folder)
        assert not is_trained(folder)
    with pytest.raises(RuntimeError), training_alone(folder, "wait"):
        raise RuntimeError
    assert not is_trained(folder)


def test_a_second_process_is_refused_and_told_by_whom(
    folder: Path, other: subprocess.Popen[str]
) -> None:
    assert is_trained(folder)
    said = rf'already, by process {other.pid} on ".+", in foxes-1\..*Then queue again: it goes on'
    with pytest.raises(AtelierError, match=said), training_alone(folder, "queue again"):
        pass
    assert is_trained(folder)


def test_a_killed_process_leaves_nothing_to_clear_away(
    folder: Path, other: subprocess.Popen[str]
) -> None:
    other.kill()
    other.wait()
    assert not is_trained(folder)
    with training_alone(folder, "wait"):
        assert is_trained(folder)


def test_a_copy_of_a_folder_is_free(
    folder: Path, other: subprocess.Popen[str], tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert {path.name for path in copy.iterdir()} == {folder_lock.LOCK, folder_lock.HOLDER}
    assert not is_trained(copy)
    with training_alone(copy, "wait"):
        assert is_trained(copy) and is_trained(folder)


def test_who_looks_does_not_keep_anybody_from_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one process asks all the time, another one gets its turn."""
    with training_alone(folder, "wait"):
        pass
    asking = HOLDING.replace("training_alone\n", "is_trained\n").partition("with ")[0]
    asking += "print('there', flush=True)\nwhile True: is_trained(Path(sys.argv[2]))"
    command = [sys.executable, "-c", asking, str(ROOT), str(folder)]
    monkeypatch.setattr(folder_lock, "PATIENCE_SECONDS", 5.0)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "there\n"
            for _ in range(50):
                with training_alone(folder, "wait"):
                    assert is_trained(folder)
        finally:
            process.kill()


def test_where_nothing_can_be_locked_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder's place is taken by a file: as on a disk that lets nobody write or lock."""
    (tmp_path / "runs").write_text("a file")
    folder, done = tmp_path / "runs" / "foxes-1", []
    with training_alone(folder, "wait"):
        done.append(is_trained(folder))
    assert done == [False] and "foxes-1 cannot be locked" in caplog.text
