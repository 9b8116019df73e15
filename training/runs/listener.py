"""Who watches a run, and may end it."""

from __future__ import annotations

from collections.abc import Callable

from .run import StepRecord, TrainingState
from .validation import ValidationPoint


class Listener:
    """Hears of a run as it goes; may raise to end it. As it stands here, it lets it run."""

    def on_micro_step(self) -> None:
        """Before every forward pass; the place to look for Cancel."""

    def on_step(
        self, record: StepRecord, last_step: int, freeze: Callable[[], TrainingState]
    ) -> None:
        """After every optimizer step; ``freeze()`` is the state after it."""

    def on_validation(self, point: ValidationPoint) -> None:
        """After the loss on the validation pictures was measured."""

    def on_rolled_back(self, state: TrainingState, message: str) -> None:
        """The run went wrong and goes on from an earlier ``state``, at a lower rate."""

    def finish_requested(self) -> bool:
        """Asked after every step: True ends the call as a success."""
        return False

    def on_interrupted(self, state: TrainingState) -> None:
        """The loop is being left by an exception; ``state`` is the last whole step."""
