"""Which noise levels are trained on, and how often each.

A density is told by its quantile function Q: with u uniform in [0, 1), Q(u) in [0, 1] is σ of a
flow model, or the place in the table of an epsilon or v model. With N = Φ⁻¹(u) standard normal:

    sigmoid        sigmoid(std · N)
    logit_normal   sigmoid(mean + std · N)
    mode           1 − v − s (cos²(π v / 2) − 1 + v),  v = 1 − u,  s = 1.29
    cosmap         1 − 1 / (tan(π u / 2) + 1)
    shift          s x / (1 + (s − 1) x),  x = sigmoid(std · N)
    flux_shift     the same with s = exp(μ), where μ grows with the picture: 0.5 at 256 tokens of
                   2×2 latent pixels, 1.15 at 4096

Sources: Esser et al. 2024, arXiv:2403.03206, section 3.1 (logit-normal, mode, CosMap);
kohya-ss/sd-scripts, library/flux_train_utils.py (sigmoid, shift, flux_shift).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ..errors import require, require_number
from .noise_schedule import TIMESTEPS, NoiseSchedule

MODE_SCALE = 1.29
"""Strength of ``mode``: the best of those tried in the paper."""


class TimestepSampling(str, Enum):
    """The density the noise levels are drawn from."""

    AUTO = "auto"
    """Every entry of the model's own table alike; a flow model's table holds its own shift."""
    UNIFORM = "uniform"
    SIGMOID = "sigmoid"
    LOGIT_NORMAL = "logit_normal"
    MODE = "mode"
    COSMAP = "cosmap"
    SHIFT = "shift"
    FLUX_SHIFT = "flux_shift"


@dataclass(frozen=True)
class TimestepSpec:
    """Where on the way from picture to noise to train."""

    timestep_sampling: TimestepSampling = TimestepSampling.AUTO
    logit_mean: float = 0.0
    """Of ``logit_normal``; positive = more noise."""
    logit_std: float = 1.0
    """Spread of ``sigmoid``, ``logit_normal``, ``shift`` and ``flux_shift``."""
    discrete_flow_shift: float = 3.0
    """s of ``shift``; 1 = none, more = more noise."""
    min_timestep: int = 0
    """0..1000; of flow models σ · 1000."""
    max_timestep: int = TIMESTEPS
    """Not reached itself, except by a flow model."""

    def __post_init__(self) -> None:
        require_number("logit_mean", self.logit_mean, -10, 10, "0 = middle noise levels most.")
        require_number("logit_std", self.logit_std, 0.01, 10, "1 is usual.")
        require_number(
            "discrete_flow_shift", self.discrete_flow_shift, 0.01, 100, "1 = none, 3 is SD3's."
        )
        require_number("min_timestep", self.min_timestep, 0, TIMESTEPS, "0 = from the clean end.")
        require_number("max_timestep", self.max_timestep, 0, TIMESTEPS, "1000 = to pure noise.")
        require(
            self.min_timestep < self.max_timestep,
            f"min_timestep is {self.min_timestep} and max_timestep {self.max_timestep}: the first "
            "must be the smaller. 0 and 1000 train on every noise level.",
        )


def draw_sigma(
    schedule: NoiseSchedule,
    spec: TimestepSpec,
    latent_shape: Sequence[int],
    rng: torch.Generator,
) -> Tensor:
    """A noise level for one picture.

    Args:
        latent_shape: (C, …, H, W) of the picture's latent; ``flux_shift`` depends on it.

    Returns:
        Scalar float32. Of epsilon and v models always an entry of the schedule.
    """
    if spec.timestep_sampling is TimestepSampling.AUTO or (
        spec.timestep_sampling is TimestepSampling.UNIFORM and not schedule.is_flow
    ):
        first, end = places(schedule, spec)
        return schedule.sigmas[int(torch.randint(first, end, (1,), generator=rng))]
    u = torch.rand((), generator=rng, dtype=torch.float64)
    return sigma_at(float(u), schedule, spec, latent_shape)


def sigma_at(
    u: float, schedule: NoiseSchedule, spec: TimestepSpec, latent_shape: Sequence[int]
) -> Tensor:
    """The noise level below which a share ``u`` (0..1) of all draws lies.

    Args, Returns:
        as :func:`draw_sigma`.
    """
    first, end = places(schedule, spec)
    level = quantile(torch.tensor(u, dtype=torch.float64), spec, tokens(latent_shape))
    if schedule.is_flow and spec.timestep_sampling is not TimestepSampling.AUTO:
        width = spec.max_timestep - spec.min_timestep
        return ((spec.min_timestep + level * width) / TIMESTEPS).float()
    return schedule.sigmas[min(first + int(level * (end - first)), end - 1)]


def places(schedule: NoiseSchedule, spec: TimestepSpec) -> tuple[int, int]:
    """First entry of the schedule that may be drawn, and the one after the last.

    Raises:
        AtelierError: none lies between ``min_timestep`` and ``max_timestep``.
    """
    limits = torch.tensor([spec.min_timestep, spec.max_timestep], dtype=torch.float64)
    first, end = torch.searchsorted(schedule.timesteps, limits).tolist()
    if spec.max_timestep == TIMESTEPS:  # a flow model's table ends there, where noise is all
        end = len(schedule.sigmas)
    continuous = schedule.is_flow and spec.timestep_sampling is not TimestepSampling.AUTO
    require(
        continuous or first < end,
        f"min_timestep {spec.min_timestep} and max_timestep {spec.max_timestep}: this model has no "
        "noise level between them. Choose them further apart.",
    )
    return first, end


def quantile(u: Tensor, spec: TimestepSpec, picture_tokens: float = 4096) -> Tensor:
    """Q(u), rising from 0 to 1; u float64, any shape. ``auto`` counts as uniform."""
    kind = spec.timestep_sampling
    if kind in (TimestepSampling.AUTO, TimestepSampling.UNIFORM):
        return u
    if kind is TimestepSampling.MODE:
        v = 1 - u
        return 1 - v - MODE_SCALE * ((math.pi / 2 * v).cos().square() - 1 + v)
    if kind is TimestepSampling.COSMAP:
        return 1 - 1 / ((math.pi / 2 * u).tan() + 1)
    mean, shift = 0.0, 1.0
    if kind is TimestepSampling.LOGIT_NORMAL:
        mean = spec.logit_mean
    elif kind is TimestepSampling.SHIFT:
        shift = spec.discrete_flow_shift
    elif kind is TimestepSampling.FLUX_SHIFT:
        shift = math.exp(flux_shift(picture_tokens))
    x = (mean + spec.logit_std * torch.special.ndtri(u)).sigmoid()
    return shift * x / (1 + (shift - 1) * x)


def flux_shift(picture_tokens: float) -> float:
    """μ: the straight line through (256, 0.5) and (4096, 1.15)."""
    return 0.5 + (picture_tokens - 256) * (1.15 - 0.5) / (4096 - 256)


def tokens(latent_shape: Sequence[int]) -> int:
    """How many 2×2 patches a latent has."""
    height, width = latent_shape[-2:]
    return (height // 2) * (width // 2)
