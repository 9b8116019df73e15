"""The runs of this process: a node opens one, every browser hears of it, the routes find it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..training.runs.run import StepRecord
from ..training.runs.validation import ValidationPoint
from .run_monitor import RunMonitor, Status, has_cuda

EVENT = "atelier.run"
MAX_RUNS = 20


class Runs:
    """The newest runs of this process."""

    def __init__(self, limit: int = MAX_RUNS) -> None:
        self.limit = limit
        self._runs: dict[str, RunMonitor] = {}
        self._lock = threading.Lock()

    def add(self, monitor: RunMonitor) -> None:
        with self._lock:
            self._runs[monitor.id] = monitor
            while len(self._runs) > self.limit:
                del self._runs[next(iter(self._runs))]

    def get(self, run_id: str) -> RunMonitor | None:
        with self._lock:
            return self._runs.get(run_id)

    def newest_first(self) -> list[RunMonitor]:
        with self._lock:
            return list(reversed(self._runs.values()))


RUNS = Runs()


@contextmanager
def watched(
    history: Iterable[StepRecord] = (), validations: Iterable[ValidationPoint] = ()
) -> Iterator[RunMonitor]:
    """A monitor for what the running node does inside; how it is left decides the run's end.

    Args:
        history, validations: of the steps before.
    """
    from ..training.host.progress import is_cancel

    context = get_executing_context()
    node, prompt = (context.node_id, context.prompt_id) if context else ("", "")
    monitor = RunMonitor(_broadcast, node, prompt, _workflow(prompt))
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


def _broadcast(report: dict[str, Any]) -> None:
    """To every browser: a second tab follows a run, too."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(EVENT, report)


def _workflow(prompt: str) -> str:
    """The id of the graph that a running prompt was queued from; empty when a program queued it."""
    server = getattr(PromptServer, "instance", None)
    if server is None or not prompt:
        return ""
    for item in server.prompt_queue.get_current_queue()[0]:
        if item[1] == prompt:
            info = item[3].get("extra_pnginfo")
            workflow = info.get("workflow") if isinstance(info, dict) else None
            return str(workflow.get("id") or "") if isinstance(workflow, dict) else ""
    return ""
