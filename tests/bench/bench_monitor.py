"""What watching costs a step: under 1 % of a step of 100 ms, events and their JSON included.

Run it with `make bench`.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import mean, median

from comfy_modules import make_importable

make_importable()

from lora_atelier.nodes.live.run_monitor import RunMonitor  # noqa: E402
from lora_atelier.training.runs.run import StepRecord  # noqa: E402

STEP_SECONDS = 0.1
STEPS = 60
BEFORE = 5000
"""Steps that are on the chart already."""


def test_watching_costs_under_a_percent_of_a_step() -> None:
    events: list[str] = []
    monitor = RunMonitor(lambda report: events.append(json.dumps(report)))
    monitor.recall(StepRecord(step, 0, 0.1, 1e-4, 1.0) for step in range(1, BEFORE + 1))
    monitor.micro_step(lambda: None)
    costs = []
    for step in range(BEFORE + 1, BEFORE + STEPS + 1):
        time.sleep(STEP_SECONDS)
        started = time.thread_time()
        monitor.micro_step(lambda: None)
        monitor.step(StepRecord(step, 0, 0.1, 1e-4, 1.0), BEFORE + 10 * STEPS)
        costs.append(time.thread_time() - started)
    sys.stdout.write(
        f"\nwatching: {1e3 * mean(costs):.3f} ms a step in the mean, {1e3 * median(costs):.3f} in "
        f"the median, {1e3 * max(costs):.3f} at most; {len(events)} events of "
        f"{mean(map(len, events[1:])):.0f} characters\n"
    )
    assert len(events) > STEPS / 4, "few events were sent: the figure means nothing"
    assert mean(costs) < STEP_SECONDS / 100
