"""The training loop: a state and a number of steps give a later state."""

from __future__ import annotations

import torch

from .errors import AtelierError
from .guard import Guard, OnDivergence
from .listener import Listener
from .precision import accelerating
from .run import StepRecord, TrainingState
from .trainer import Trainer

STEPS_BETWEEN_GOOD_STATES = 50
MAX_ROLLBACKS = 3
ROLLBACK_FACTOR = 0.5
"""On the learning rate, at each."""


class TrainingDiverged(AtelierError):
    """A run has gone wrong, in words that say how and what to try."""


@torch.inference_mode(False)  # the host runs nodes in inference mode, which enable_grad won't lift
@torch.enable_grad()
def train(state: TrainingState, steps: int, listener: Listener) -> TrainingState:
    """Train on from ``state`` for ``steps`` optimizer steps; ``state`` itself stays as it is.

    Raises:
        TrainingDiverged: the run has gone wrong, and could or should not be saved.
    """
    model = state.run.model
    dtype = model.compute_dtype(state.run.spec.mixed_precision)
    with accelerating(model.device, dtype) as accelerator:
        trainer = Trainer(state, accelerator)
        watchman = _Watchman(state, trainer, listener)
        last_step = state.step + steps
        try:
            with model.training(trainer.network, dtype, state.run.memory_required) as predict:
                trainer.validate(predict, listener)
                while trainer.step < last_step:
                    record = trainer.train_step(predict, listener.on_micro_step)
                    if watchman.has_rolled_back(record):
                        trainer.validate(predict, listener)
                        continue
                    trainer.validate(predict, listener, is_end=trainer.step == last_step)
                    listener.on_step(record, last_step, trainer.freeze)
                    if listener.finish_requested():
                        trainer.validate(predict, listener, is_end=True)
                        break
        except TrainingDiverged:
            listener.on_interrupted(watchman.good)
            raise
        except BaseException:
            listener.on_interrupted(trainer.freeze())
            raise
        return trainer.freeze()


class _Watchman:
    """Keeps the last good state of a run, and goes back to it or ends the run."""

    def __init__(self, state: TrainingState, trainer: Trainer, listener: Listener) -> None:
        self.good = state
        self.trainer, self.listener = trainer, listener
        self.choice = state.run.spec.on_divergence
        self.rollbacks = 0
        self.guard = self._new_guard()

    def has_rolled_back(self, record: StepRecord) -> bool:
        """After every step. False: all is well. True: the trainer is at an earlier step again.

        Raises:
            TrainingDiverged: the person chose to stop, or going back did not help.
        """
        trouble = self.guard.look(record)
        if trouble is None and not record.skipped and not self.trainer.is_finite():
            trouble = "a weight of the LoRA is no finite number"
        if trouble is None:
            if record.step % STEPS_BETWEEN_GOOD_STATES == 0 and self.guard.is_good:
                self.good = self.trainer.freeze()
            return False
        if self.choice is not OnDivergence.ROLL_BACK or self.rollbacks == MAX_ROLLBACKS:
            raise TrainingDiverged(self._message(record, trouble))
        self._roll_back(record, trouble)
        return True

    def _roll_back(self, record: StepRecord, trouble: str) -> None:
        self.rollbacks += 1
        self.trainer.go_back(self.good)
        self.trainer.scale_rates(ROLLBACK_FACTOR)
        self.good = self.trainer.freeze()  # at the lower rate: the next time it is halved again
        self.guard = self._new_guard()
        self.listener.on_rolled_back(
            self.good,
            f"Step {record.step}: {trouble}. Rolled back to step {self.good.step}, and on from "
            "there at half the learning rate.",
        )

    def _new_guard(self) -> Guard:
        return Guard(
            self.good.history,
            scaling=self.trainer.scales_losses,
            ignore=self.choice is OnDivergence.IGNORE,
        )

    def _message(self, record: StepRecord, trouble: str) -> str:
        tried = f" Going back {self.rollbacks} times did not help." if self.rollbacks else ""
        kept = f"The state of step {self.good.step} is kept." if self.good.step else ""
        return (
            f"Training diverged at step {record.step}: {trouble}.{tried} The rate was "
            f"{record.learning_rate:.3g}: try a third of it or a longer warm-up"
            f"{', or mixed_precision bf16' if self.trainer.scales_losses else ''}. {kept}".rstrip()
        )
