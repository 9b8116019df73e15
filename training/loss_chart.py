"""The loss curve as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from .errors import needed_package, require

EMA_DECAY = 0.98
"""Smoothing of the drawn line: a mean over about the last 50 steps."""


def smoothed(losses: Sequence[float], decay: float = EMA_DECAY) -> list[float]:
    """Bias-corrected exponential moving average (Kingma & Ba 2015, arXiv:1412.6980, section 3).

    Losses that are not finite are left out; NaN stands where there was no other one yet.
    """
    average, seen, line = 0.0, 0, []
    for loss in losses:
        if math.isfinite(loss):
            seen += 1
            average = decay * average + (1 - decay) * loss
        line.append(average / (1 - decay**seen) if seen else math.nan)
    return line


def draw_loss_chart(losses: Sequence[float], title: str = "", size: tuple[int, int] = (960, 540)):
    """Raw loss as a faint line, its moving average as a strong one.

    Args:
        losses: one a step.
        size: width and height, px.

    Returns:
        [height, width, 3] float32, 0..1, RGB.
    """
    require(len(losses) > 0, "loss_map: there are no steps to draw.")
    agg = needed_package("matplotlib.backends.backend_agg", "The loss chart")
    figures = needed_package("matplotlib.figure", "The loss chart")  # not pyplot: it keeps state

    figure = figures.Figure(figsize=(size[0] / 120, size[1] / 120), dpi=120, layout="constrained")
    canvas = agg.FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = range(1, len(losses) + 1)
    line = smoothed(losses)
    axes.plot(steps, losses, color="#9db7d5", linewidth=0.8, label="loss of each step")
    axes.plot(steps, line, color="#d1495b", linewidth=2, label="moving average (50 steps)")
    finite = [value for value in losses if np.isfinite(value)]
    if finite:
        low, high = min(finite), float(np.quantile(finite, 0.995))
        room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
        axes.set_ylim(max(0.0, low - room), high + room)
    axes.set(xlabel="step", ylabel="loss", title=title or f"{len(losses)} steps")
    axes.margins(x=0.01)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba(), dtype=np.float32)[..., :3] / 255
    return torch.from_numpy(pixels.copy())
