"""The loss curve as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import needed_package, require
from .chart_text import any_text, fitted_text
from .loss_history import LossHistory, finite

EMA_DECAY = 0.98
"""Smoothing of the drawn line: a mean over about the last 50 steps."""
MOST_POINTS = 4000
"""Single losses drawn; of a longer run every second, third … step."""
MOST_COLUMNS = 88
"""Characters of the title that fit into a picture 960 px wide."""

RAW, AVERAGE, VALIDATION, RATE, GRADIENT = "#9db7d5", "#d1495b", "#1b7f5c", "#8a6d3b", "#6c6f93"


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


def draw_loss_chart(
    history: LossHistory | Sequence[float], title: str = "", size: tuple[int, int] = (960, 540)
) -> Tensor:
    """Raw loss as a faint line, its moving average as a strong one, and what else is known.

    Validation losses are dots on a line, with that of the base model as a dotted one; the learning
    rate is drawn against an axis of its own, the length of the gradient below. The scale of the
    loss is logarithmic where its average spans more than a decade.

    Args:
        history: of a run, or its losses alone, one a step.
        title: any text, over the chart.
        size: width and height, px.

    Returns:
        [height, width, 3] float32, 0..1, RGB.
    """
    history = history if isinstance(history, LossHistory) else LossHistory(tuple(history))
    require(history.steps > 0, "loss_map: there are no steps to draw.")
    agg = needed_package("matplotlib.backends.backend_agg", "The loss chart")
    figures = needed_package("matplotlib.figure", "The loss chart")  # not pyplot: it keeps state

    figure = figures.Figure(figsize=(size[0] / 120, size[1] / 120), dpi=120, layout="constrained")
    canvas = agg.FigureCanvasAgg(figure)
    if any(map(math.isfinite, history.grad_norm)):
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        _draw_gradient(below, history.grad_norm)
    else:
        axes = below = figure.add_subplot()
    below.set_xlabel("step")
    lines = _draw_losses(axes, history)
    if any(map(math.isfinite, history.learning_rate)):
        lines += _draw_rate(axes, history.learning_rate)
    heading = fitted_text(title or f"{history.steps} steps", MOST_COLUMNS * size[0] // 960)
    axes.set_title(heading, fontsize="medium", **any_text())
    figure.legend(
        handles=lines, loc="outside lower center", ncols=3, fontsize="small", frameon=False
    )
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba(), dtype=np.float32)[..., :3] / 255
    return torch.from_numpy(pixels.copy())


def _draw_losses(axes: Any, history: LossHistory) -> list[Any]:
    line = smoothed(history.loss)
    places = _places(history.steps)
    steps = [place + 1 for place in places]
    raw = [history.loss[place] for place in places]
    lines = axes.plot(steps, raw, color=RAW, linewidth=0.8, label="loss of each step")
    average = [line[place] for place in places]
    lines += axes.plot(
        steps, average, color=AVERAGE, linewidth=2, label="moving average (50 steps)"
    )
    points = finite(history.validation)
    if points:
        at, losses = zip(*points, strict=True)
        lines += axes.plot(
            at, losses, "o-", color=VALIDATION, linewidth=2, markersize=4, label="validation loss"
        )
        if math.isfinite(history.base):
            name = "validation loss of the base model"
            lines.append(axes.axhline(history.base, color=VALIDATION, linestyle=":", label=name))
    held_out = [y for _, y in points] + [history.base] * (
        bool(points) and math.isfinite(history.base)
    )
    _scale(axes, raw, [value for value in average if math.isfinite(value)], held_out)
    axes.set_ylabel("loss")
    _tidy(axes)
    return lines


def _scale(axes: Any, raw: list[float], average: list[float], validation: list[float]) -> None:
    """Room for all but the rarest losses; logarithmic where a straight one would hide the line."""
    known = [value for value in raw if math.isfinite(value)]
    if not known:
        return
    low, high = min(known), float(np.quantile(known, 0.995))
    high = max([high, *average[-1:], *validation])
    kept = [*average, *validation]
    if min(kept) > 0 and max(kept) > 10 * min(kept):
        positive = [value for value in known if value > 0]
        axes.set_yscale("log")
        axes.set_ylim(float(np.quantile(positive, 0.01)) / 1.3, max(kept + [high]) * 1.3)
        return
    low = min([low, *validation])
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    axes.set_ylim(max(0.0, low - room), high + room)


def _draw_rate(axes: Any, rates: Sequence[float]) -> list[Any]:
    places = _places(len(rates))
    right = axes.twinx()
    lines = right.plot(
        [place + 1 for place in places],
        [rates[place] for place in places],
        color=RATE,
        linewidth=1.2,
        linestyle="--",
        label="learning rate",
    )
    top = max((rate for rate in rates if math.isfinite(rate)), default=0.0)
    right.set_ylim(0, top * 1.08 or 1.0)
    right.set_ylabel("learning rate", color=RATE)
    right.tick_params(axis="y", colors=RATE, labelsize="small")
    right.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    right.spines["top"].set_visible(False)
    return lines


def _draw_gradient(axes: Any, norms: Sequence[float]) -> None:
    places = _places(len(norms))
    values = [norms[place] if norms[place] > 0 else math.nan for place in places]
    axes.plot([place + 1 for place in places], values, color=GRADIENT, linewidth=0.8)
    if any(map(math.isfinite, values)):
        axes.set_yscale("log")
    axes.set_ylabel("gradient", fontsize="small")
    axes.tick_params(axis="y", labelsize="x-small")
    axes.minorticks_off()
    _tidy(axes)


def _places(count: int) -> list[int]:
    """At most :data:`MOST_POINTS` evenly spaced places, the first and the last among them."""
    return np.linspace(0, count - 1, min(count, MOST_POINTS)).round().astype(int).tolist()


def _tidy(axes: Any) -> None:
    axes.margins(x=0.01)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
