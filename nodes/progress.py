"""What the running node shows: text on itself, its progress bar, and an event to draw."""

from __future__ import annotations

import math
import time

from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..training.host.progress import HostProgress
from ..training.run import StepRecord

EVENT = "atelier.step"
MIN_SECONDS_BETWEEN_EVENTS = 0.2


class StepReporter:
    """Sends ``atelier.step`` at most five times a second, and always for the last step.

    The event carries node, prompt_id, step, last_step, epoch, loss, learning_rate, grad_norm,
    seconds_per_step and seconds_left.
    """

    def __init__(self, first_step: int, last_step: int) -> None:
        self.bar = HostProgress(last_step - first_step)
        self.first_step = first_step
        self.started = time.monotonic()
        self.sent = -MIN_SECONDS_BETWEEN_EVENTS

    def step(self, record: StepRecord, last_step: int) -> None:
        self.bar.update(record.step - self.first_step)
        now = time.monotonic()
        if now - self.sent >= MIN_SECONDS_BETWEEN_EVENTS or record.step == last_step:
            self.sent = now
            self._send(record, last_step, now - self.started)

    def _send(self, record: StepRecord, last_step: int, elapsed: float) -> None:
        seconds_per_step = elapsed / (record.step - self.first_step)
        seconds_left = seconds_per_step * (last_step - record.step)
        show_text(
            f"step {record.step}/{last_step} · loss {record.loss:.4f} · "
            f"{duration(seconds_left)} left"
        )
        _send_event(
            {
                "step": record.step,
                "last_step": last_step,
                "epoch": record.epoch,
                "loss": record.loss,
                "learning_rate": record.learning_rate,
                "grad_norm": record.grad_norm if math.isfinite(record.grad_norm) else None,
                "seconds_per_step": seconds_per_step,
                "seconds_left": seconds_left,
            }
        )


def show_text(text: str) -> None:
    """Put a line of text on the node that is running, when a browser is there to see it."""
    server, context = getattr(PromptServer, "instance", None), get_executing_context()
    if server is not None and context is not None:
        server.send_progress_text(text, context.node_id, server.client_id)


def duration(seconds: float) -> str:
    """ "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _send_event(data: dict) -> None:
    server, context = getattr(PromptServer, "instance", None), get_executing_context()
    if server is not None and context is not None:
        where = {"node": context.node_id, "prompt_id": context.prompt_id}
        server.send_sync(EVENT, where | data, server.client_id)
