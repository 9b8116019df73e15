"""How much each noise level counts.

With the signal-to-noise ratio SNR = 1/σ² of epsilon and v models:

    weighting       epsilon                  v_prediction
    min_snr         min(SNR, γ) / SNR        min(SNR, γ) / (SNR + 1)
    soft_min_snr    γ / (SNR + γ)            SNR γ / ((SNR + γ)(SNR + 1))
    debiased        1 / √SNR                 1 / (SNR + 1)              SNR at most 1000

Sources: Hang et al. 2023, arXiv:2303.09556 (min-SNR); Crowson et al. 2024, arXiv:2401.11605
(soft-min-SNR, its smooth version: SNR γ / (SNR + γ) for min(SNR, γ)); Yu et al. 2023,
arXiv:2310.08442 (debiased); kohya-ss/sd-scripts, library/custom_train_functions.py.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from .noise_schedule import NoiseSchedule, PredictionType

MAX_DEBIASED_SNR = 1000


class Weighting(str, Enum):
    """How the loss depends on the noise level."""

    AUTO = "auto"
    """min_snr for epsilon and v models, none for flow models."""
    NONE = "none"
    MIN_SNR = "min_snr"
    SOFT_MIN_SNR = "soft_min_snr"
    DEBIASED = "debiased"

    @property
    def has_gamma(self) -> bool:
        return self in (Weighting.AUTO, Weighting.MIN_SNR, Weighting.SOFT_MIN_SNR)

    def of(self, schedule: NoiseSchedule) -> Weighting:
        """What it comes down to for a model; flow models have none."""
        if schedule.is_flow:
            return Weighting.NONE
        return Weighting.MIN_SNR if self is Weighting.AUTO else self


def loss_weights(
    sigmas: Tensor, schedule: NoiseSchedule, weighting: Weighting, gamma: float
) -> Tensor:
    """[B] weights at [B] noise levels; 1 for flow models, and where γ is 0."""
    weighting = weighting.of(schedule)
    if weighting is Weighting.NONE or (weighting.has_gamma and gamma == 0):
        return torch.ones_like(sigmas)
    snr = sigmas**-2
    is_v = schedule.prediction_type is PredictionType.V_PREDICTION
    if weighting is Weighting.DEBIASED:
        snr = snr.clamp(max=MAX_DEBIASED_SNR)
        return 1 / (snr + 1) if is_v else snr.rsqrt()
    if weighting is Weighting.SOFT_MIN_SNR:
        least = snr * gamma / (snr + gamma)
    else:
        least = snr.clamp(max=gamma)
    return least / (snr + 1 if is_v else snr)
