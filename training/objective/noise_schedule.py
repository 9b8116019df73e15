"""The noise levels a model was trained on, and what it predicts there.

With clean latents x₀, noise n and noise level σ (k-diffusion convention, Karras et al. 2022,
arXiv:2206.00364):

    prediction       noisy latents        target                       signal-to-noise ratio
    epsilon          x₀ + σ n             n                            1 / σ²
    v_prediction     x₀ + σ n             (n − σ x₀) / √(1 + σ²)       1 / σ²
    flow             (1 − σ) x₀ + σ n     n − x₀                       (1 − σ)² / σ²

The first two are DDPM's: x₀ + σ n, divided by √(1 + σ²), is √ᾱ x₀ + √(1−ᾱ) n with
ᾱ = 1 / (1 + σ²); that division is the host's own input scaling.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor

TIMESTEPS = 1000
"""Timesteps are told on the scale 0 (clean) to 1000 (noise), whatever a model counts itself."""

LEAST_SIGNAL = 4.8973451890853435e-08
"""ᾱ that stands for zero, so that σ stays finite: the value ComfyUI samples with
(comfy/model_sampling.py ``rescale_zero_terminal_snr_sigmas``)."""


class PredictionType(str, Enum):
    """The model's own training target."""

    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"
    FLOW = "flow"


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels a model was trained on, and its target."""

    prediction_type: PredictionType
    sigmas: Tensor
    """[T] float32, rising."""

    @property
    def is_flow(self) -> bool:
        return self.prediction_type is PredictionType.FLOW

    @cached_property
    def timesteps(self) -> Tensor:
        """[T] float64, 0..1000: of flow models σ · 1000, of the others the place in the table."""
        if self.is_flow:
            return self.sigmas.double() * TIMESTEPS
        count = len(self.sigmas)
        return torch.arange(count, dtype=torch.float64) * TIMESTEPS / count

    def timesteps_of(self, sigmas: Tensor) -> Tensor:
        """[B] timesteps, 0..1000, of [B] noise levels that were drawn from this schedule."""
        if self.is_flow:
            return sigmas * TIMESTEPS
        places = torch.searchsorted(self.sigmas.to(sigmas.device), sigmas)
        return self.timesteps.float().to(sigmas.device)[places]  # MPS knows no float64


def with_zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """The schedule of an epsilon or v model, stretched so that the last step is noise alone.

    √ᾱ is shifted and scaled so that the first stays and the last becomes 0. Source: Lin et al.
    2023, arXiv:2305.08891, algorithm 1.
    """
    signal = (1 + schedule.sigmas.double().square()).rsqrt()
    first, last = signal[0], signal[-1]
    product = ((signal - last) * first / (first - last)).square()
    product[-1] = LEAST_SIGNAL
    return replace(schedule, sigmas=((1 - product) / product).sqrt().float())
