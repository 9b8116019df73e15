"""Advice on settings that are allowed and probably not meant."""

from __future__ import annotations

from .lr_scheduler import LRSchedulerSpec, LRSchedulerType
from .optimizer import OptimizerSpec


def lr_advice(spec: OptimizerSpec, widget: str = "unet_lr") -> str:
    """What to say of a learning rate far from the optimizer's usual ones; empty: nothing.

    Args:
        widget: ``unet_lr`` or ``text_encoder_lr``.
    """
    rates, rate = spec.kind.rates, getattr(spec, widget)
    if rates is None or rate == 0 or rates.low <= rate <= rates.high:
        return ""
    side = "below" if rate < rates.low else "above"
    because = f" ({rates.why})" if rates.why else ""
    return (
        f"{widget} {rate:g} is far {side} what {spec.label} is used with: "
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
