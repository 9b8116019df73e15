"""What is told of a run and what the person may ask of it."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

import comfy.model_management
import pytest
from comfy_execution.utils import CurrentNodeContext

from lora_atelier.nodes.live.browsers import Newest
from lora_atelier.nodes.live.monitor import RUNS, watched
from lora_atelier.nodes.live.run_monitor import RunMonitor, Status
from lora_atelier.training.results.loss_chart import smoothed
from lora_atelier.training.runs.run import StepRecord, start
from lora_atelier.training.runs.validation import ValidationPoint
from tiny_training import CAPTIONS, encode, load_parts, make_run, quick_spec, train_as_node

Report = dict[str, Any]


def measured(step: int, loss: float) -> ValidationPoint:
    return ValidationPoint(step, loss, 0.5, (), ())


def record(step: int, loss: float = 0.5, grad_norm: float = 1.0) -> StepRecord:
    return StepRecord(step, 0, loss, 1e-4, grad_norm)


def never() -> None:
    """Nobody cancels."""


@pytest.fixture
def events() -> list[Report]:
    return []


@pytest.fixture
def monitor(events: list[Report]) -> RunMonitor:
    return RunMonitor(lambda report: events.append(json.loads(json.dumps(report))), "12:7")


def merged(events: list[Report]) -> list[int]:
    """The steps of the points, put together as the browser does it."""
    steps: list[int] = []
    for event in events:
        assert event["from"]["points"] <= len(steps), "an event does not follow on the one before"
        steps[event["from"]["points"] :] = event["points"]["step"]
    return steps


def test_events_are_few_and_together_hold_every_step(
    monitor: RunMonitor, events: list[Report]
) -> None:
    end = time.monotonic() + 0.7
    step = 0
    while time.monotonic() < end:
        step += 1
        monitor.step(record(step), 10**6)
        time.sleep(0.002)
    monitor.step(record(step + 1), step + 1)
    assert 3 <= len(events) <= 6
    assert merged(events) == list(range(1, step + 2))
    assert len(events[-1]["points"]["step"]) < step / 2, "events repeat what was sent"


def test_the_smoothed_loss_is_that_of_the_finished_chart(monitor: RunMonitor) -> None:
    losses = [0.5, 2.0, math.nan, 0.25, 1.0]
    for step, loss in enumerate(losses, 1):
        monitor.step(record(step, loss), 9)
    line = monitor.report()["points"]["smoothed"]["mean"]
    assert line == pytest.approx(smoothed(losses), rel=1e-5)


def test_a_report_is_valid_json_whatever_the_numbers(monitor: RunMonitor) -> None:
    monitor.step(record(1, math.nan, math.inf), 5)
    monitor.validation(measured(1, math.nan))
    report = json.loads(json.dumps(monitor.report(), allow_nan=False))
    assert report["latest"]["loss"] is None and report["latest"]["grad_norm"] is None
    assert report["validation"] == [[1, None, 0.5]]
    assert report["memory"]["process"] > 10**7


def test_lists_are_told_once(monitor: RunMonitor, events: list[Report]) -> None:
    monitor.preview(5, "a.png", "atelier", "output")
    monitor.message("one")
    monitor.preview(9, "b.png", "", "temp")
    assert [[p["step"] for p in event["previews"]] for event in events] == [[5], [], [9]]
    assert [event["from"]["previews"] for event in events] == [0, 1, 1]
    whole = monitor.report()
    assert [p["filename"] for p in whole["previews"]] == ["a.png", "b.png"]
    assert whole["messages"] == [{"text": "one", "level": "info"}]


def test_pause_holds_the_training_and_the_clock_until_it_goes_on(
    monitor: RunMonitor, events: list[Report]
) -> None:
    monitor.micro_step(never)
    monitor.step(record(1), 3)
    assert monitor.pause()
    threading.Timer(0.5, monitor.resume).start()
    began = time.monotonic()
    monitor.micro_step(never)
    assert time.monotonic() - began >= 0.45
    monitor.step(record(2), 3)
    assert monitor.seconds_per_step is not None and monitor.seconds_per_step < 0.3
    statuses = list(dict.fromkeys(event["status"] for event in events))
    assert statuses == ["running", "paused"] and events[-1]["status"] == "running"


def test_cancel_ends_a_pause(monitor: RunMonitor) -> None:
    class Cancelled(Exception):
        pass

    calls = []

    def cancel_later() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Cancelled

    monitor.pause()
    with pytest.raises(Cancelled):
        monitor.micro_step(cancel_later)


def test_finish_ends_a_pause_too_and_is_not_taken_back(monitor: RunMonitor) -> None:
    monitor.pause()
    threading.Timer(0.2, monitor.finish).start()
    monitor.micro_step(never)
    assert monitor.finish_requested()
    monitor.pause()
    monitor.micro_step(never)
    assert monitor.finish_requested()


def test_a_run_that_has_ended_takes_no_orders(monitor: RunMonitor) -> None:
    monitor.become(Status.FINISHED)
    assert not monitor.finish() and not monitor.pause() and not monitor.resume()
    assert not monitor.finish_requested()


def test_reports_and_orders_from_other_threads_do_no_harm(monitor: RunMonitor) -> None:
    failures: list[BaseException] = []
    over = threading.Event()

    def watch() -> None:
        try:
            while not over.is_set():
                report = monitor.report()
                points = report["points"]
                assert all(
                    len(column) == len(points["step"])
                    for name, series in points.items()
                    if name != "step"
                    for column in series.values()
                )
                if points["step"]:
                    assert points["step"][-1] == report["step"]
                monitor.pause()
                monitor.resume()
        except BaseException as error:
            failures.append(error)

    watchers = [threading.Thread(target=watch) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # s; threads meet at every place
    try:
        for thread in watchers:
            thread.start()
        for step in range(1, 3001):
            monitor.micro_step(never)
            monitor.step(record(step), 3000)
            if step % 100 == 0:
                monitor.validation(measured(step, 1.0))
    finally:
        over.set()
        for thread in watchers:
            thread.join()
        sys.setswitchinterval(interval)
    assert failures == []
    report = monitor.report()
    assert report["stride"] == 2 and report["points"]["step"][-1] == 3000
    assert len(report["validation"]) == 30


def test_the_oldest_runs_are_forgotten(monitor: RunMonitor) -> None:
    runs: Newest[RunMonitor] = Newest(2)
    made = [RunMonitor(lambda report: None) for _ in range(3)]
    for one in made:
        runs.add(one)
    assert runs.newest_first() == [made[2], made[1]]
    assert runs.get(made[0].id) is None


def test_a_real_training_is_watched_from_its_first_step_to_finish_now(
    tiny_checkpoint: Path,
) -> None:
    parts = load_parts(tiny_checkpoint)
    run = make_run(parts.model, encode(parts.clip, CAPTIONS), quick_spec(max_train_steps=50))
    first = train_as_node(start(run), 2)
    with CurrentNodeContext("p", "12:7"):
        threading.Timer(0.5, lambda: RUNS.newest_first()[0].finish()).start()
        with watched(first.history) as monitor:
            state = train_as_node(first, 10_000, monitor)
    report = monitor.report()
    assert RUNS.newest_first()[0] is monitor
    assert (report["node"], report["prompt"], report["status"]) == ("12:7", "p", "finished")
    assert 2 < state.step < 10_000
    assert report["points"]["step"] == list(range(1, state.step + 1)), "the steps before are there"
    assert report["last_step"] == 10_002


def test_asked_to_finish_before_the_first_step_it_takes_one(tiny_checkpoint: Path) -> None:
    """Whoever saves the LoRA downstream needs one."""
    parts = load_parts(tiny_checkpoint)
    run = make_run(parts.model, encode(parts.clip, CAPTIONS), quick_spec(max_train_steps=50))
    with watched() as monitor:
        monitor.finish()
        assert train_as_node(start(run), 50, monitor).step == 1


def test_what_was_measured_before_is_there(monitor: RunMonitor) -> None:
    monitor.recall([record(1), record(2)], [measured(2, 0.25)])
    monitor.validation(measured(4, 0.125))
    report = monitor.report()
    assert report["validation"] == [[2, 0.25, 0.5], [4, 0.125, 0.5]]
    assert report["points"]["step"] == [1, 2]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (comfy.model_management.InterruptProcessingException(), "cancelled"),
        (ValueError("unet_lr is too high"), "failed"),
    ],
)
def test_how_it_is_left_decides_the_status(error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), watched() as monitor:
        raise error
    report = monitor.report()
    assert report["status"] == status
    told = [message["text"] for message in report["messages"]]
    assert told == (["unet_lr is too high"] if status == "failed" else [])
