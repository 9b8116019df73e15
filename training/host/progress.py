"""The node's progress bar, and Cancel."""

from __future__ import annotations

import comfy.model_management
import comfy.utils


class HostProgress:
    """A bar of ``total`` steps on the node that is running."""

    def __init__(self, total: int) -> None:
        self._bar = comfy.utils.ProgressBar(total)

    def update(self, value: int) -> None:
        """Move the bar to ``value``; raises the host's exception when the person cancelled."""
        self._bar.update_absolute(value)

    def tick(self) -> None:
        """Move the bar on by one; raises likewise."""
        self._bar.update(1)


def is_cancel(error: BaseException) -> bool:
    """Whether it is what the host raises after a press on Cancel."""
    return isinstance(error, comfy.model_management.InterruptProcessingException)


def raise_if_cancelled() -> None:
    """Raises the host's InterruptProcessingException after a press on Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()
