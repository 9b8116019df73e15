"""The node's progress bar, and Cancel."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
from PIL.Image import Image

PREVIEW_SIZE = 512
"""Longer side of a picture on a node, px."""


class HostProgress:
    """A bar of ``total`` steps on the node that is running.

    Newer hosts send a bar's news ten times a second at most, and look for Cancel only then: each
    call looks itself.
    """

    def __init__(self, total: int) -> None:
        self._bar = comfy.utils.ProgressBar(total)

    def update(self, value: int) -> None:
        """Move the bar to ``value``; raises the host's exception when the person cancelled."""
        raise_if_cancelled()
        self._bar.update_absolute(value)

    def show(self, picture: Image) -> None:
        """Put a picture on the node; raises likewise."""
        raise_if_cancelled()
        self._bar.update_absolute(self._bar.current, preview=("JPEG", picture, PREVIEW_SIZE))

    def tick(self) -> None:
        """Move the bar on by one; raises likewise."""
        raise_if_cancelled()
        self._bar.update(1)


def is_cancel(error: BaseException) -> bool:
    """Whether it is what the host raises after a press on Cancel."""
    return isinstance(error, comfy.model_management.InterruptProcessingException)


def raise_if_cancelled() -> None:
    """Raises the host's InterruptProcessingException after a press on Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def cancel() -> None:
    """As a press on Cancel: what runs raises at the next place where it looks."""
    comfy.model_management.interrupt_current_processing()
