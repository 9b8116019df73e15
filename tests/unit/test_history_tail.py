"""A history is read while another process writes it: whole lines, each once."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_atelier.training.jobs.history_tail import HistoryTail, News
from lora_atelier.training.runs.history_file import RunLog
from lora_atelier.training.runs.run import StepRecord, start
from lora_atelier.training.runs.validation import ValidationPoint

Make = Callable[..., Any]
NOTHING = News([], [], False)


def record(step: int, loss: float = 0.5) -> StepRecord:
    return StepRecord(step, 0, loss, 1e-4, 1.5, step == 2)


def test_every_line_comes_once(make_run: Make, tmp_path: Path) -> None:
    tail = HistoryTail(tmp_path)
    assert (tail.news(), tail.changed()) == (NOTHING, None)
    with RunLog(tmp_path, start(make_run())) as log:
        log.validation(ValidationPoint(0, 0.25, 0.75, (), ()))
        log.step(record(1))
        first = tail.news()
        assert first.is_new and first.records == [record(1)]
        assert [(p.step, p.loss, p.base_loss) for p in first.validations] == [(0, 0.25, 0.75)]
        assert tail.news() == NOTHING
        log.step(record(2))
        log.step(record(3))
        assert tail.news() == News([record(2), record(3)], [], False)
    assert tail.changed() == tail.path.stat().st_mtime


def test_a_number_that_is_none_is_told_as_one(make_run: Make, tmp_path: Path) -> None:
    with RunLog(tmp_path, start(make_run())) as log:
        log.step(record(1, math.nan))
    assert math.isnan(HistoryTail(tmp_path).news().records[0].loss)


def test_half_a_line_waits_for_its_end(make_run: Make, tmp_path: Path) -> None:
    with RunLog(tmp_path, start(make_run())) as log:
        log.step(record(1))
    whole = (tmp_path / "history.jsonl").read_bytes()
    tail = HistoryTail(tmp_path)
    tail.news()
    with tail.path.open("ab") as file:
        file.write(whole[:20])
        file.flush()
        assert tail.news() == NOTHING
        file.write(whole[20:])
    assert tail.news().records == [record(1)]


def test_a_file_that_is_written_anew_is_read_anew(make_run: Make, tmp_path: Path) -> None:
    state = start(make_run())
    tail = HistoryTail(tmp_path)
    with RunLog(tmp_path, state) as log:
        log.step(record(1))
        log.step(record(2))
        tail.news()
        log.rewind(state)
        log.step(record(1, 0.75))
        assert tail.news() == News([record(1, 0.75)], [], True)
    tail.path.write_bytes(b"")  # shorter under the same number
    assert tail.news() == News([], [], True)


def test_what_is_no_history_is_passed_over(make_run: Make, tmp_path: Path) -> None:
    with RunLog(tmp_path, start(make_run())) as log:
        log.step(record(1))
    tail = HistoryTail(tmp_path)
    with tail.path.open("ab") as file:
        file.write(b'\xff\n[1]\n3\n{"step": 2}\n{"step": 2, "validation": 4}\n')
    assert tail.news() == News([record(1)], [], True)
