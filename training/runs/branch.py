"""Going on from a state with other settings."""

from __future__ import annotations

from dataclasses import replace

from ..optimizers.lr_scheduler import LRSchedulerSpec
from ..optimizers.optimizer import OptimizerSpec
from .identity import branch_identity
from .run import TrainingState

RATES = ("unet_lr", "text_encoder_lr", "max_grad_norm")
"""Settings of an optimizer that leave what it remembers valid."""


def branch(
    state: TrainingState, optimizer: OptimizerSpec | None, scheduler: LRSchedulerSpec | None
) -> TrainingState:
    """The same state, from which training goes on with another optimizer or schedule.

    An optimizer that differs in its rates alone keeps its moments; any other begins without. A new
    schedule, or an old one at new rates, goes on as if it had been there from the first step.

    Args:
        optimizer, scheduler: None = as before.
    """
    before = state.run.spec
    spec = replace(
        before,
        optimizer=optimizer or before.optimizer,
        lr_scheduler=scheduler or before.lr_scheduler,
    )
    if spec == before:
        return state
    rates = {name: getattr(before.optimizer, name) for name in RATES}
    dropped = {"lr_scheduler"}
    if replace(spec.optimizer, **rates) != before.optimizer:
        dropped.add("optimizer")
    remembered = state.optimizer
    if remembered is not None:
        remembered = {name: part for name, part in remembered.items() if name not in dropped}
    identity = branch_identity(state.run.identity, state.step, spec.optimizer, spec.lr_scheduler)
    run = replace(state.run, spec=spec, identity=identity)
    return replace(state, run=run, optimizer=remembered)
