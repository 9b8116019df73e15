"""The training loop: a state and a number of steps give a later state."""

from __future__ import annotations

import logging

import torch

from ..base_model.precision import accelerating
from .listener import Listener
from .run import TrainingState
from .team import WeightsDiffer
from .trainer import Trainer
from .watchman import TrainingDiverged, Watchman

log = logging.getLogger("lora_atelier")


@torch.inference_mode(False)  # the host runs nodes in inference mode, which enable_grad won't lift
@torch.enable_grad()
def train(
    state: TrainingState, steps: int, listener: Listener, watchman: Watchman | None = None
) -> TrainingState:
    """Train on from ``state`` for ``steps`` optimizer steps; ``state`` itself stays as it is.

    Args:
        watchman: of the run, where this is a piece of a longer one.

    Raises:
        TrainingDiverged: the run has gone wrong, and could or should not be saved.
    """
    model = state.run.model
    dtype = state.run.compute_dtype
    until = state.step + steps
    watchman = watchman or Watchman(state, until)
    with accelerating(model.device, dtype) as accelerator:
        trainer = Trainer(state, accelerator)
        try:
            with model.training(trainer.network, dtype, state.run.memory_required) as predict:
                team = trainer.team
                team.require_same_step(trainer.step)
                team.require_alike(trainer.digest)
                trainer.validate(predict, listener)
                while trainer.step < until:
                    record = trainer.train_step(predict, listener.on_micro_step)
                    if watchman.has_rolled_back(record, trainer, listener):
                        trainer.validate(predict, listener)
                        continue
                    trainer.validate(predict, listener, trainer.step == watchman.last_step)
                    listener.on_step(record, watchman.last_step, trainer.freeze_for_file)
                    if team.agree_to_finish(listener.finish_requested(), trainer.digest):
                        trainer.validate(predict, listener, is_end=True)
                        break
                team.require_alike(trainer.digest)
        except BaseException as error:
            _hand_over(error, trainer, watchman, listener)
            trainer.team.leave(error)  # last: it may wait until the others have done their step
            raise
        return trainer.freeze()


def _hand_over(
    error: BaseException, trainer: Trainer, watchman: Watchman, listener: Listener
) -> None:
    """Let the listener keep the last whole state; what fails here must not hide ``error``."""
    if isinstance(error, WeightsDiffer):
        return
    try:
        is_whole = not isinstance(error, TrainingDiverged) and not trainer.is_torn
        listener.on_interrupted(trainer.freeze() if is_whole else watchman.good)
    except Exception:
        log.exception("The work so far could not be kept")
