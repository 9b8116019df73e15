"""An objective as a picture: how much each noise level counts, and how often it is drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import needed_package
from .noise_schedule import TIMESTEPS, NoiseSchedule, PredictionType, with_zero_terminal_snr
from .objective import ObjectiveSpec
from .timesteps import TimestepSampling, TimestepSpec, places, quantile
from .weighting import Weighting, loss_weights

KINDS = {
    PredictionType.EPSILON: ("noise prediction (SD1.5, SDXL)", "#d1495b"),
    PredictionType.V_PREDICTION: ("v-prediction", "#2e6f95"),
    PredictionType.FLOW: ("flow (SD3, Flux)", "#5f8f4e"),
}


def draw_objective(spec: ObjectiveSpec, size: tuple[int, int] = (960, 400)) -> Tensor:
    """Weight of the loss on the left, density of the timesteps on the right.

    Args:
        size: width and height, px.

    Returns:
        [height, width, 3] float32, 0..1, RGB.
    """
    agg = needed_package("matplotlib.backends.backend_agg", "The picture of the objective")
    figures = needed_package("matplotlib.figure", "The picture of the objective")

    figure = figures.Figure(figsize=(size[0] / 120, size[1] / 120), dpi=120, layout="constrained")
    canvas = agg.FigureCanvasAgg(figure)
    weights, density = figure.subplots(1, 2)
    for kind, (label, colour) in KINDS.items():
        if kind is not PredictionType.FLOW or spec.weighting in (Weighting.AUTO, Weighting.NONE):
            weights.plot(*weight_curve(spec, kind), color=colour, linewidth=2, label=label)
    weights.set(title=f"weight of the loss: {_weighting_name(spec)}", ylabel="weight")
    for style, (label, curve) in zip("-:", density_curves(spec.timesteps).items(), strict=False):
        density.plot(*curve, style, color="#6a4c93", linewidth=2, label=label)
    density.set(title=f"timesteps: {_sampling_name(spec.timesteps)}", ylabel="times as often")
    for axes in (weights, density):
        _finish(axes, spec.timesteps)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba(), dtype=np.float32)[..., :3] / 255
    return torch.from_numpy(pixels.copy())


def weight_curve(spec: ObjectiveSpec, kind: PredictionType) -> tuple[Tensor, Tensor]:
    """(timesteps, weights) of those that are trained on, on the schedule that SD models share."""
    schedule = reference_schedule(kind)
    if spec.zero_terminal_snr and not schedule.is_flow:
        schedule = with_zero_terminal_snr(schedule)
    first, end = places(schedule, replace(spec.timesteps, timestep_sampling=TimestepSampling.AUTO))
    sigmas = schedule.sigmas[first:end]
    weights = loss_weights(sigmas, schedule, spec.weighting, spec.min_snr_gamma)
    return schedule.timesteps[first:end], weights


def density_curves(spec: TimestepSpec) -> dict[str, tuple[Tensor, Tensor]]:
    """Name of the curve -> (timesteps, how many times as often as all alike each is drawn)."""
    u = torch.linspace(-9, 9, 1000, dtype=torch.float64).sigmoid()  # dense at the ends
    if spec.timestep_sampling is TimestepSampling.AUTO:
        own = 3 * u / (1 + 2 * u)  # SD3's shift; Flux's is much the same
        return {"SD models": _density(u, u, spec), "flow, own shift of 3": _density(u, own, spec)}
    return {"all models": _density(u, quantile(u, spec), spec)}


def reference_schedule(kind: PredictionType) -> NoiseSchedule:
    """SD's β from 0.00085 to 0.012, linear in its root; for flow σ = t / 1000."""
    if kind is PredictionType.FLOW:
        return NoiseSchedule(kind, torch.linspace(1 / TIMESTEPS, 1, TIMESTEPS))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64).square()
    product = (1 - betas).cumprod(0)
    return NoiseSchedule(kind, ((1 - product) / product).sqrt().float())


def _density(u: Tensor, level: Tensor, spec: TimestepSpec) -> tuple[Tensor, Tensor]:
    """The slope of u over the timestep, against that of a straight line from 0 to 1000."""
    width = spec.max_timestep - spec.min_timestep
    timesteps = spec.min_timestep + level * width
    slope = torch.diff(u) / torch.diff(timesteps) * TIMESTEPS
    return (timesteps[1:] + timesteps[:-1]) / 2, slope


def _weighting_name(spec: ObjectiveSpec) -> str:
    name = spec.weighting.value
    return f"{name}, γ {spec.min_snr_gamma:g}" if spec.weighting.has_gamma else name


def _sampling_name(spec: TimestepSpec) -> str:
    name = spec.timestep_sampling.value
    if spec.timestep_sampling is TimestepSampling.FLUX_SHIFT:
        return f"{name}, here at 1024 × 1024 px"
    return name


def _finish(axes: Any, spec: TimestepSpec) -> None:
    axes.set(xlabel="timestep (0 = picture, 1000 = noise)", xlim=(0, TIMESTEPS))
    axes.set_ylim(0, axes.get_ylim()[1] * 1.05)
    for low, high in ((0, spec.min_timestep), (spec.max_timestep, TIMESTEPS)):
        if low < high:
            axes.axvspan(low, high, color="#dddddd", linewidth=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
