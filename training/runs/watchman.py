"""Watches over one run from its first step to its last: keeps its last good state, goes back to it
when things go wrong, or ends the run."""

from __future__ import annotations

from ..errors import AtelierError
from .guard import Guard, OnDivergence
from .listener import Listener
from .run import StepRecord, TrainingState
from .trainer import Trainer

STEPS_BETWEEN_GOOD_STATES = 50
MAX_ROLLBACKS = 3
ROLLBACK_FACTOR = 0.5
"""On the learning rate, at each."""


class TrainingDiverged(AtelierError):
    """A run has gone wrong, in words that say how and what to try."""


class Watchman:
    """One for all the calls of :func:`training.runs.loop.train` that make up a run.

    Args:
        state: from which the run goes on.
        last_step: at which it is to end.
    """

    def __init__(self, state: TrainingState, last_step: int) -> None:
        self.good = state
        self.last_step = last_step
        self.choice = state.run.spec.on_divergence
        self.rollbacks = 0
        self._guard: Guard | None = None

    def has_rolled_back(self, record: StepRecord, trainer: Trainer, listener: Listener) -> bool:
        """After every step. False: all is well. True: the trainer is at an earlier step again.

        Raises:
            TrainingDiverged: the person chose to stop, or going back did not help.
        """
        guard = self._guard = self._guard or self._new_guard(trainer)
        trouble = guard.look(record)
        if trouble is None and not record.skipped and not trainer.is_finite():
            trouble = "a weight of the LoRA is no finite number"
        if trouble is None:
            if record.step % STEPS_BETWEEN_GOOD_STATES == 0 and guard.is_good:
                self.good = trainer.freeze()
            return False
        if self.choice is not OnDivergence.ROLL_BACK or self.rollbacks == MAX_ROLLBACKS:
            raise TrainingDiverged(self._message(record, trouble, trainer.scales_losses))
        self._roll_back(record, trouble, trainer, listener)
        return True

    def _roll_back(
        self, record: StepRecord, trouble: str, trainer: Trainer, listener: Listener
    ) -> None:
        self.rollbacks += 1
        trainer.go_back(self.good)
        # A state at step 0 has no schedule that could remember the earlier halvings.
        halvings = 1 if self.good.step else self.rollbacks
        trainer.scale_rates(ROLLBACK_FACTOR**halvings)
        self.good = trainer.freeze()  # at the lower rate: the next time it is halved again
        self._guard = self._new_guard(trainer)
        listener.on_rolled_back(
            self.good,
            f"Step {record.step}: {trouble}. Rolled back to step {self.good.step}, and on from "
            f"there at {ROLLBACK_FACTOR**self.rollbacks:g} of the learning rate.",
        )

    def _new_guard(self, trainer: Trainer) -> Guard:
        return Guard(
            self.good.history,
            scaling=trainer.scales_losses,
            ignore=self.choice is OnDivergence.IGNORE,
        )

    def _message(self, record: StepRecord, trouble: str, scaling: bool) -> str:
        tried = f" Going back {self.rollbacks} times did not help." if self.rollbacks else ""
        kept = f"The state of step {self.good.step} is kept." if self.good.step else ""
        return (
            f"Training diverged at step {record.step}: {trouble}.{tried} The rate was "
            f"{record.learning_rate:.3g}: try a third of it or a longer warm-up"
            f"{', or mixed_precision bf16' if scaling else ''}. {kept}".rstrip()
        )
