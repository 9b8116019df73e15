"""history.jsonl tells of every step once, whatever happened in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_atelier.training.runs.history_file import RunLog
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import StepRecord, TrainingState, start
from lora_atelier.training.runs.validation import ValidationPoint

Make = Callable[..., Any]


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def record(step: int, loss: float = 0.5) -> StepRecord:
    return StepRecord(step, 0, loss, 1e-4, 1.0)


@pytest.fixture
def state(make_run: Make, make_listener: Make) -> TrainingState:
    return train(start(make_run()), 2, make_listener())


def test_a_line_a_step(make_run: Make, tmp_path: Path) -> None:
    with RunLog(tmp_path, start(make_run())) as run_log:
        run_log.validation(ValidationPoint(0, 0.4, 0.5, (), ()))
        run_log.step(record(1))
        run_log.step(record(2, float("nan")))
        assert len(lines(tmp_path)) == 3, "it can be read while the run goes on"
    first, second, third = lines(tmp_path)
    assert first == {"step": 0, "validation": {"loss": 0.4, "base_loss": 0.5}}
    assert (second["step"], second["loss"], second["learning_rate"]) == (1, 0.5, 1e-4)
    assert third["loss"] is None


def test_a_resumed_run_writes_no_step_twice(state: TrainingState, tmp_path: Path) -> None:
    state = replace(state, validations=(ValidationPoint(1, 0.4, 0.5, (), ()),))
    with RunLog(tmp_path, state) as run_log:
        run_log.step(record(3))
        run_log.step(record(4))  # and then it was killed
    with RunLog(tmp_path, state) as run_log:
        run_log.step(record(3))
    assert [line["step"] for line in lines(tmp_path)] == [1, 1, 2, 3]


def test_run_json_holds_the_settings(state: TrainingState, tmp_path: Path) -> None:
    with RunLog(tmp_path, state):
        pass
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["settings"]["network"]["network_dim"] == 4
    assert run["pictures"] == 5


def test_a_folder_that_cannot_be_written_does_not_end_the_run(
    state: TrainingState, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with RunLog(blocked, state) as run_log:
        run_log.step(record(3))
    assert "no longer written" in caplog.text


def test_tensorboard_gets_the_scalars(state: TrainingState, tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import RecordWriter  # noqa: F401

    with RunLog(tmp_path, state, tensorboard=True) as run_log:
        run_log.step(record(3, 0.25))
        run_log.validation(ValidationPoint(3, 0.4, 0.5, (), ()))
    (path,) = (tmp_path / "tensorboard").iterdir()
    found = {}
    content = path.read_bytes()
    while content:  # each record: length (8), its checksum (4), event, its checksum (4)
        length = int.from_bytes(content[:8], "little")
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
        content = content[16 + length :]
    assert found["train/loss", 3] == 0.25
    assert found["train/learning_rate", 3] == pytest.approx(1e-4)
    assert found["validation/loss", 3] == pytest.approx(0.4)
