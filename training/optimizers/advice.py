"""Advice on settings that are allowed and probably not meant."""

from __future__ import annotations

from ..lr_scheduler import LRSchedulerSpec, LRSchedulerType
from ..optimizer import OptimizerSpec


def lr_advice(spec: OptimizerSpec) -> str:
    """What to say of a learning rate far from the optimizer's usual ones; empty: nothing."""
    rates = spec.kind.rates
    if rates is None or spec.unet_lr == 0 or rates.low <= spec.unet_lr <= rates.high:
        return ""
    side = "below" if spec.unet_lr < rates.low else "above"
    because = f" ({rates.why})" if rates.why else ""
    return (
        f"unet_lr {spec.unet_lr:g} is far {side} what {spec.label} is used with: "
        f"{rates.usual:g} is usual, {rates.low:g} to {rates.high:g} is common{because}."
    )


def schedule_advice(optimizer: OptimizerSpec, scheduler: LRSchedulerSpec) -> str:
    """What to say of a schedule that works against the optimizer; empty: nothing."""
    shape = scheduler.lr_scheduler
    if optimizer.kind.averages and shape is not LRSchedulerType.CONSTANT:
        return (
            f"{optimizer.label} averages its weights instead of lowering the rate: "
            f"lr_scheduler constant suits it better than {shape.value}. Warm-up helps it."
        )
    steady = (LRSchedulerType.CONSTANT, LRSchedulerType.COSINE)
    if optimizer.kind.finds_its_rate and shape not in steady:
        return (
            f"{optimizer.label} finds its own rate and is tried with lr_scheduler cosine and "
            f"constant only, not with {shape.value}."
        )
    return ""
