"""What the model is asked to predict, and how far off it is.

With clean latents x₀, noise n and noise level σ (k-diffusion convention, Karras et al. 2022,
arXiv:2206.00364):

    prediction       noisy latents        target                       signal-to-noise ratio
    epsilon          x₀ + σ n             n                            1 / σ²
    v_prediction     x₀ + σ n             (n − σ x₀) / √(1 + σ²)       1 / σ²
    flow             (1 − σ) x₀ + σ n     n − x₀                       –

The first two are DDPM's: x₀ + σ n, divided by √(1 + σ²), is √ᾱ x₀ + √(1−ᾱ) n with
ᾱ = 1 / (1 + σ²); that division is the host's own input scaling.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from .errors import require, require_number


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
    """[T] float32, rising; timestep t has noise level ``sigmas[t]``."""


@dataclass(frozen=True)
class ObjectiveSpec:
    """How the loss is weighted."""

    min_snr_gamma: float = 5.0
    """Min-SNR-γ for epsilon and v models; 0 switches it off; flow models ignore it."""

    def __post_init__(self) -> None:
        require_number(
            "min_snr_gamma", self.min_snr_gamma, 0, 1000, "5 is the paper's value, 0 = off."
        )


@dataclass(frozen=True)
class NoisedBatch:
    """One micro-batch as the model sees it."""

    noisy_latents: Tensor
    """[B, C, …] float32, before the model's own input scaling."""
    sigmas: Tensor
    """[B] noise levels."""
    target: Tensor
    """[B, C, …] what the model should predict."""
    weights: Tensor
    """[B] weight of each sample's loss."""


def draw_timestep(schedule: NoiseSchedule, rng: torch.Generator) -> int:
    """A timestep, uniform over the model's schedule."""
    return int(torch.randint(len(schedule.sigmas), (1,), generator=rng))


def add_noise(
    latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule, spec: ObjectiveSpec
) -> NoisedBatch:
    """Noise clean latents and say what the model should answer.

    Args:
        latents: [B, C, …] clean, in the model's own scale (unit deviation).
        noise: like ``latents``, standard normal.
        timesteps: [B] int64, indices into the schedule.
    """
    require(
        latents.shape == noise.shape and timesteps.shape == latents.shape[:1],
        f"latents {tuple(latents.shape)}, noise {tuple(noise.shape)} and timesteps "
        f"{tuple(timesteps.shape)} do not belong together.",
    )
    sigmas = schedule.sigmas.to(latents.device)[timesteps]
    sigma = sigmas.view(-1, *[1] * (latents.ndim - 1))
    if schedule.prediction_type is PredictionType.FLOW:
        noisy, target = (1 - sigma) * latents + sigma * noise, noise - latents
    elif schedule.prediction_type is PredictionType.V_PREDICTION:
        noisy = latents + sigma * noise
        target = (noise - sigma * latents) / (1 + sigma**2).sqrt()
    else:
        noisy, target = latents + sigma * noise, noise
    return NoisedBatch(noisy, sigmas, target, min_snr_weights(sigmas, schedule, spec))


def min_snr_weights(sigmas: Tensor, schedule: NoiseSchedule, spec: ObjectiveSpec) -> Tensor:
    """[B] min(SNR, γ)/SNR for epsilon, min(SNR, γ)/(SNR + 1) for v; 1 when off or for flow.

    Source: Hang et al. 2023, arXiv:2303.09556; kohya-ss/sd-scripts,
    library/custom_train_functions.py ``apply_snr_weight``.
    """
    if spec.min_snr_gamma == 0 or schedule.prediction_type is PredictionType.FLOW:
        return torch.ones_like(sigmas)
    snr = sigmas**-2
    extra = 1 if schedule.prediction_type is PredictionType.V_PREDICTION else 0
    return snr.clamp(max=spec.min_snr_gamma) / (snr + extra)


def sample_losses(prediction: Tensor, batch: NoisedBatch) -> Tensor:
    """[B] mean squared error of each sample times its weight; the caller reduces."""
    require(
        prediction.shape == batch.target.shape,
        f"The model answered {tuple(prediction.shape)} where {tuple(batch.target.shape)} was due.",
    )
    squared_error = (prediction.float() - batch.target).square()
    return squared_error.flatten(1).mean(1) * batch.weights
