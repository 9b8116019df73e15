"""A run as it is watched: its figures for the browser, and what the person asks of it.

The training thread writes, the server's thread reads and passes on Finish and Pause.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import torch

from ...training.results.decimation import DecimatedHistory, rounded
from ...training.results.loss_chart import EMA_DECAY
from ...training.runs.run import StepRecord
from ...training.runs.validation import ValidationPoint

MIN_SECONDS_BETWEEN_EVENTS = 0.2
SERIES = ("loss", "learning_rate", "grad_norm")
"""Fields of StepRecord that become lines of the chart, besides the smoothed loss."""
STEPS_TIMED = 100
"""The time of a step is the mean over so many of the last ones."""
LOOK_FOR_CANCEL_SECONDS = 0.1

Send = Callable[[dict[str, Any]], None]


class Status(str, Enum):
    ENCODING = "encoding"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


ENDED = (Status.FINISHED, Status.CANCELLED, Status.FAILED)


class RunMonitor:
    """What is known of one run, from its first picture encoded to its end.

    Args:
        node: id of the node that trains; "12:7" is node 7 in the subgraph node 12.
        workflow: id of the graph it was queued from, where the browser told it.
        send: gets every event; called by both threads.
    """

    def __init__(
        self,
        send: Send,
        node: str = "",
        prompt: str = "",
        workflow: str = "",
        run_id: str | None = None,
    ) -> None:
        self.id = run_id or uuid.uuid4().hex
        self.node, self.prompt, self.workflow = node, prompt, workflow
        self.started = time.time()
        self.status = Status.ENCODING
        self.history = DecimatedHistory()
        self.step_now = self.last_step = self.epoch = 0
        self.latest: dict[str, float] = {}
        self.lists: dict[str, list[Any]] = {"validation": [], "previews": [], "messages": []}
        self._average = self._weight = 0.0
        self._send = send
        self._lock = threading.RLock()
        self._finish = False
        self._go = threading.Event()
        self._go.set()
        self._clock: deque[float] = deque(maxlen=STEPS_TIMED + 1)
        self._idle = 0.0
        self._sent_at = float("-inf")
        self._sent = dict.fromkeys(("points", *self.lists), 0)

    # The training thread

    def recall(
        self, history: Iterable[StepRecord], validations: Iterable[ValidationPoint] = ()
    ) -> None:
        """Take over what was trained and measured before this run."""
        with self._lock:
            for record in history:
                self._note(record)
            self.lists["validation"].extend(map(_drawn, validations))

    def rewind(self, history: Iterable[StepRecord], validations: Iterable[ValidationPoint]) -> None:
        """The run went back to an earlier step: draw it anew."""
        with self._lock:
            self.lists["validation"] = list(map(_drawn, validations))
            self._sent["validation"] = 0
            self.history = DecimatedHistory()
            self._average = self._weight = 0.0
            self._sent["points"] = 0
            for record in history:
                self._note(record)

    def micro_step(self, raise_if_cancelled: Callable[[], None]) -> None:
        """Before every forward pass: look for Cancel, and wait while paused."""
        raise_if_cancelled()
        if not self._clock:
            self.become(Status.RUNNING)
            with self._lock:
                self._clock.append(time.monotonic())
        if self._go.is_set():
            return
        began = time.monotonic()
        self.become(Status.PAUSED)
        while not self._go.wait(LOOK_FOR_CANCEL_SECONDS):
            raise_if_cancelled()
        self._idle += time.monotonic() - began
        self.become(Status.RUNNING)

    def step(self, record: StepRecord, last_step: int) -> bool:
        """After every optimizer step; True when the browser is told, some times a second."""
        now = time.monotonic()
        with self._lock:
            self.last_step = last_step
            self._clock.append(now - self._idle)
            self._note(record)
        due = now - self._sent_at >= MIN_SECONDS_BETWEEN_EVENTS or record.step == last_step
        if due:
            self._publish()
        return due

    def validation(self, point: ValidationPoint) -> None:
        """The loss on pictures that are not trained on."""
        self._append("validation", _drawn(point))

    def preview(self, step: int, filename: str, subfolder: str, folder_type: str) -> None:
        """A picture drawn at a step, by the names under which ComfyUI's /view serves it."""
        place = {"filename": filename, "subfolder": subfolder, "type": folder_type}
        self._append("previews", {"step": step, **place})

    def message(self, text: str, level: str = "info") -> None:
        """A sentence for the person; ``level`` is info, warning or error."""
        self._append("messages", {"text": text, "level": level})

    def become(self, status: Status) -> None:
        with self._lock:
            self.status = status
        self._publish()

    @property
    def seconds_per_step(self) -> float | None:
        """Pauses left out; None before the first step."""
        steps = len(self._clock) - 1
        return (self._clock[-1] - self._clock[0]) / steps if steps > 0 else None

    @property
    def seconds_left(self) -> float | None:
        each = self.seconds_per_step
        return None if each is None else each * (self.last_step - self.step_now)

    # Asked by the person

    def finish(self) -> bool:
        """End after the current step, as a success. False: the run has ended already."""
        return self._ask(finish=True)

    def pause(self) -> bool:
        """Wait before the next forward pass. False: the run has ended already."""
        return self._ask(pause=True)

    def resume(self) -> bool:
        """Go on. False: the run has ended already."""
        return self._ask()

    def finish_requested(self) -> bool:
        return self._finish

    # The browser

    def summary(self) -> dict[str, Any]:
        """One line of the list of runs."""
        with self._lock:
            return {
                "id": self.id,
                "node": self.node,
                "prompt": self.prompt,
                "workflow": self.workflow,
                "started": self.started,
                "status": self.status.value,
            }

    def report(self, since: dict[str, int] | None = None) -> dict[str, Any]:
        """Everything about the run, for JSON; of points and lists what lies past ``since``.

        ``from`` says where the points and the lists given begin. When ``stride`` (steps in a point)
        has changed, earlier points have too.
        """
        with self._lock:
            start = since or dict.fromkeys(self._sent, 0)
            return {
                **self.summary(),
                "finish_requested": self._finish,
                "pause_requested": not self._go.is_set(),
                "step": self.step_now,
                "last_step": self.last_step,
                "epoch": self.epoch,
                "latest": {name: rounded(value) for name, value in self.latest.items()},
                "seconds_per_step": rounded(self.seconds_per_step),
                "seconds_left": rounded(self.seconds_left),
                "memory": _memory(),
                "from": dict(start),
                "stride": self.history.stride,
                "points": self.history.columns(start["points"]),
                **{name: items[start[name] :] for name, items in self.lists.items()},
            }

    # Parts of the above

    def _note(self, record: StepRecord) -> None:
        values = {name: float(getattr(record, name)) for name in SERIES}
        if rounded(values["loss"]) is not None:  # as in training.results.loss_chart.smoothed
            self._average = EMA_DECAY * self._average + (1 - EMA_DECAY) * values["loss"]
            self._weight = EMA_DECAY * self._weight + (1 - EMA_DECAY)
        values["smoothed"] = self._average / self._weight if self._weight else float("nan")
        self.history.add(record.step, values)
        self.step_now, self.epoch, self.latest = record.step, record.epoch, values

    def _append(self, name: str, item: Any) -> None:
        with self._lock:
            self.lists[name].append(item)
        self._publish()

    def _ask(self, *, finish: bool = False, pause: bool = False) -> bool:
        with self._lock:
            if self.status in ENDED:
                return False
            self._finish |= finish
            if pause and not self._finish:
                self._go.clear()
            else:
                self._go.set()
        self._publish()
        return True

    def _publish(self) -> None:
        with self._lock:  # held while sending: events must not overtake each other
            report = self.report(self._sent)
            self._sent = {name: len(items) for name, items in self.lists.items()}
            self._sent["points"] = max(0, len(self.history) - 1)  # the last one may still grow
            self._sent_at = time.monotonic()
            self._send(report)


def _drawn(point: ValidationPoint) -> list[float | None]:
    """Step, loss, and loss of the base model."""
    return [point.step, rounded(point.loss), rounded(point.base_loss)]


def _memory() -> dict[str, int | None]:
    """Bytes: of the process, and the most that tensors on the CUDA device took at once."""
    import psutil  # every ComfyUI has it

    return {
        "process": psutil.Process().memory_info().rss,
        "device": torch.cuda.max_memory_allocated() if has_cuda() else None,
    }


def has_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
