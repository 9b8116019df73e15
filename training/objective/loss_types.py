"""How far off an answer is, number by number.

With the difference d and a threshold c:

    l2          d²
    l1          |d|
    huber       2c (√(d² + c²) − c)       like d² below c, like 2c |d| above
    smooth_l1   2 (√(d² + c²) − c)        like d² / c below c, like 2 |d| above

Huber losses forgive outliers: odd pictures among the others. The threshold may depend on the noise
level, large (so like l2) where there is little noise and the details are learned, and falling to
``huber_c`` where there is much:

    constant      c
    exponential   c^(t / 1000)
    snr           (1 − c) / (1 + 1/√SNR)² + c

Source: Khrapov et al. 2024, arXiv:2403.16728; kohya-ss/sd-scripts, library/train_util.py
``conditional_loss``, ``get_huber_threshold_if_needed``. There snr is for epsilon and v models only;
with a flow model's SNR, (1 − σ)² / σ², it is (1 − c)(1 − σ)² + c.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ..errors import require_number
from .noise_schedule import TIMESTEPS, NoiseSchedule


class LossType(str, Enum):
    """What is made of the difference between answer and target."""

    L2 = "l2"
    L1 = "l1"
    HUBER = "huber"
    SMOOTH_L1 = "smooth_l1"

    @property
    def has_threshold(self) -> bool:
        return self in (LossType.HUBER, LossType.SMOOTH_L1)


class HuberSchedule(str, Enum):
    """How the threshold of the Huber losses depends on the noise level."""

    CONSTANT = "constant"
    EXPONENTIAL = "exponential"
    SNR = "snr"


@dataclass(frozen=True)
class LossSpec:
    """The loss of a single number."""

    loss_type: LossType = LossType.L2
    huber_c: float = 0.1
    huber_schedule: HuberSchedule = HuberSchedule.SNR

    def __post_init__(self) -> None:
        require_number("huber_c", self.huber_c, 1e-4, 1, "0.1 is usual; smaller forgives more.")


def element_losses(
    prediction: Tensor, target: Tensor, loss_type: LossType, thresholds: Tensor | None = None
) -> Tensor:
    """[B, C, …] loss of every number, in float32 at least.

    Args:
        thresholds: [B] of the Huber losses.
    """
    difference = prediction.to(torch.promote_types(prediction.dtype, torch.float32)) - target
    if loss_type is LossType.L2:
        return difference.square()
    if loss_type is LossType.L1:
        return difference.abs()
    c = thresholds.view(-1, *[1] * (difference.ndim - 1))
    soft = 2 * ((difference.square() + c.square()).sqrt() - c)
    return soft * c if loss_type is LossType.HUBER else soft


def huber_thresholds(sigmas: Tensor, schedule: NoiseSchedule, spec: LossSpec) -> Tensor:
    """[B] c at [B] noise levels."""
    c = spec.huber_c
    if spec.huber_schedule is HuberSchedule.CONSTANT:
        return torch.full_like(sigmas, c)
    if spec.huber_schedule is HuberSchedule.EXPONENTIAL:
        return c ** (schedule.timesteps_of(sigmas) / TIMESTEPS)
    signal = 1 - sigmas if schedule.is_flow else 1 / (1 + sigmas)
    return (1 - c) * signal.square() + c
