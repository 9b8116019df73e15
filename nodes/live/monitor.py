"""The runs of this process: a node opens one, every browser hears of it, the routes find it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from ...training.runs.run import StepRecord
from ...training.runs.validation import ValidationPoint
from .browsers import Newest, running_node, tell
from .run_monitor import RunMonitor, Status, has_cuda

EVENT = "atelier.run"
MAX_RUNS = 20


RUNS: Newest[RunMonitor] = Newest(MAX_RUNS)


@contextmanager
def watched(
    history: Iterable[StepRecord] = (), validations: Iterable[ValidationPoint] = ()
) -> Iterator[RunMonitor]:
    """A monitor for what the running node does inside; how it is left decides the run's end.

    Args:
        history, validations: of the steps before.
    """
    from ...training.host.progress import is_cancel

    monitor = RunMonitor(partial(tell, EVENT), *running_node())
    monitor.recall(history, validations)
    RUNS.add(monitor)
    if has_cuda():
        torch.cuda.reset_peak_memory_stats()
    monitor.become(Status.ENCODING)
    try:
        yield monitor
    except BaseException as error:
        if is_cancel(error):
            monitor.become(Status.CANCELLED)
        else:
            monitor.message(str(error) or type(error).__name__, "error")
            monitor.become(Status.FAILED)
        raise
    monitor.become(Status.FINISHED)
