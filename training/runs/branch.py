"""Going on from a state with other settings."""

from __future__ import annotations

from dataclasses import replace

from ..cache import digest_of
from ..optimizers.lr_scheduler import LRSchedulerSpec
from ..optimizers.optimizer import OptimizerSpec
from .identity import branch_identity, run_identity
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


def with_batch_size(state: TrainingState, train_batch_size: int) -> TrainingState:
    """The same state, from which training goes on in batches of another size: another run.

    From its first step on it is the one that a graph with this size would train.
    """
    run = state.run
    spec = replace(run.spec, train_batch_size=train_batch_size)
    if spec == run.spec:
        return state
    if run.identity == run_identity(run.ingredients, run.spec):
        identity = run_identity(run.ingredients, spec)
    else:
        identity = digest_of(run.identity, state.step, "train_batch_size", train_batch_size)
    return replace(state, run=replace(run, spec=spec, identity=identity))
