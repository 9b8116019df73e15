"""A run made visible: the node's progress bar, its Cancel, and an event a browser can draw."""

from __future__ import annotations

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
        self.sent = 0.0

    def step(self, record: StepRecord, last_step: int) -> None:
        self.bar.update(record.step - self.first_step)
        now = time.monotonic()
        if now - self.sent >= MIN_SECONDS_BETWEEN_EVENTS or record.step == last_step:
            self.sent = now
            self._send(record, last_step, now - self.started)

    def _send(self, record: StepRecord, last_step: int, elapsed: float) -> None:
        server = getattr(PromptServer, "instance", None)
        context = get_executing_context()
        if server is None or context is None:
            return  # no browser can be listening
        seconds_per_step = elapsed / (record.step - self.first_step)
        server.send_sync(
            EVENT,
            {
                "node": context.node_id,
                "prompt_id": context.prompt_id,
                "step": record.step,
                "last_step": last_step,
                "epoch": record.epoch,
                "loss": record.loss,
                "learning_rate": record.learning_rate,
                "grad_norm": record.grad_norm if record.grad_norm < float("inf") else None,
                "seconds_per_step": seconds_per_step,
                "seconds_left": seconds_per_step * (last_step - record.step),
            },
            server.client_id,
        )
