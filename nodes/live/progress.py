"""What the running node shows: text on itself, its progress bar, and its monitor."""

from __future__ import annotations

import html

from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...training.host.progress import HostProgress
from ...training.runs.run import StepRecord
from .run_monitor import RunMonitor


class StepReporter:
    """Tells bar, monitor and node of every step.

    Args:
        first_step: the step that training goes on from.
        steps: how many there are to be.
    """

    def __init__(self, monitor: RunMonitor, first_step: int, steps: int) -> None:
        self.bar = HostProgress(steps)
        self.monitor = monitor
        self.first_step = first_step

    def step(self, record: StepRecord, last_step: int) -> None:
        self.bar.update(record.step - self.first_step)
        if self.monitor.step(record, last_step):
            show_text(
                f"step {record.step}/{last_step} · loss {record.loss:.4f} · "
                f"{duration(self.monitor.seconds_left or 0.0)} left"
            )


def show_text(text: str) -> None:
    """Put a line of text on the node that is running, when a browser is there to see it.

    The browser takes it for HTML, and it may hold captions and file names of strangers.
    """
    server, context = getattr(PromptServer, "instance", None), get_executing_context()
    if server is not None and context is not None:
        safe = html.escape(text, quote=False)
        server.send_progress_text(safe, context.node_id, server.client_id)


def duration(seconds: float) -> str:
    """ "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
