"""The noise of one picture: plain, shifted per channel, or with coarse layers added.

Source of the three variants: kohya-ss/sd-scripts, library/custom_train_functions.py and
library/train_util.py ``get_noise_noisy_latents_and_timesteps``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import require_number


@dataclass(frozen=True)
class NoiseSpec:
    """How the noise differs from plain normal numbers; 0 = not at all."""

    noise_offset: float = 0.0
    """Deviation of a number that is added to a whole channel (Guttenberg 2023, "Diffusion with
    Offset Noise"): the model learns very dark and very bright pictures."""
    adaptive_noise_scale: float = 0.0
    """The offset grows by this times the channel's mean, taken as positive; may be negative."""
    multires_noise_iterations: int = 0
    """Coarser layers of noise that are added (Whitaker 2023, "Multi-Resolution Noise")."""
    multires_noise_discount: float = 0.3
    """Weight of each layer against the one before."""
    ip_noise_gamma: float = 0.0
    """Further noise in the model's input that is not in its target (Ning et al. 2023,
    arXiv:2301.11706)."""

    def __post_init__(self) -> None:
        require_number("noise_offset", self.noise_offset, 0, 1, "0 = off, 0.05 to 0.1 is usual.")
        require_number(
            "adaptive_noise_scale", self.adaptive_noise_scale, -10, 10, "0 = off, 0.01 is usual."
        )
        require_number(
            "multires_noise_iterations", self.multires_noise_iterations, 0, 16, "0 = off, 6 to 10."
        )
        require_number(
            "multires_noise_discount", self.multires_noise_discount, 0, 1, "0.1 to 0.3 is usual."
        )
        require_number("ip_noise_gamma", self.ip_noise_gamma, 0, 1, "0 = off, 0.1 is usual.")


class Noise(NamedTuple):
    """Of one picture, or stacked of several."""

    target: Tensor
    """What the model should find."""
    input: Tensor
    """What is mixed into its input: the same, but for input perturbation."""


def draw_noise(latent: Tensor, spec: NoiseSpec, rng: torch.Generator) -> Noise:
    """The noise of one picture, whatever else is in its batch.

    Args:
        latent: [C, …, H, W] clean, on the CPU.
    """
    noise = torch.randn(latent.shape, generator=rng)
    if spec.noise_offset != 0 or spec.adaptive_noise_scale != 0:
        noise = noise + _offset(latent, spec, rng)
    if spec.multires_noise_iterations > 0:
        noise = _with_coarse_layers(noise, spec, rng)
    if spec.ip_noise_gamma == 0:
        return Noise(noise, noise)
    return Noise(noise, noise + spec.ip_noise_gamma * torch.randn(noise.shape, generator=rng))


def _offset(latent: Tensor, spec: NoiseSpec, rng: torch.Generator) -> Tensor:
    """[C, 1, …] one number a channel."""
    mean = latent.mean(dim=tuple(range(1, latent.ndim)), keepdim=True).abs()
    strength = (spec.noise_offset + spec.adaptive_noise_scale * mean).clamp(min=0)
    return strength * torch.randn(mean.shape, generator=rng)


def _with_coarse_layers(noise: Tensor, spec: NoiseSpec, rng: torch.Generator) -> Tensor:
    """Layer i is 2 to 4 times, to the power of i, smaller than the picture; back to deviation 1."""
    size = noise.shape[-2:]
    for i in range(spec.multires_noise_iterations):
        shrink = (2 + 2 * float(torch.rand((), generator=rng))) ** i
        height, width = (max(1, int(side / shrink)) for side in size)
        layer = torch.randn(*noise.shape[:-2], height, width, generator=rng)
        enlarged = interpolate(layer.flatten(0, -3).unsqueeze(0), size, mode="bilinear")
        noise = noise + enlarged.view(noise.shape) * spec.multires_noise_discount**i
        if height == 1 or width == 1:
            break
    return noise / noise.std()
