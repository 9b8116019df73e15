"""The learning-rate schedule as a picture."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import needed_package, require_number
from .lr_scheduler import LRSchedulerSpec, LRSchedulerType, check_lr_scheduler

MAX_POINTS = 2000
"""A longer run is drawn at this many of its steps."""


def lr_curve(spec: LRSchedulerSpec, steps: int, samples: int) -> tuple[list[int], list[float]]:
    """Step numbers (from 1) and the share of the full rate with which each is taken.

    Args:
        steps: optimizer steps of the run.
        samples: pictures it looks at; decides automatic warm-up.

    Raises:
        AtelierError: ``steps`` is out of range, or an argument of the schedule does not fit.
    """
    require_number("preview_steps", steps, 1, 10_000_000, "As many as max_train_steps.")
    schedule = check_lr_scheduler(spec, steps, samples)
    places = np.linspace(0, steps - 1, min(steps, MAX_POINTS)).round().astype(int).tolist()
    return [place + 1 for place in places], [schedule.factor(place) for place in places]


def draw_lr_chart(
    spec: LRSchedulerSpec, steps: int, samples: int, size: tuple[int, int] = (640, 360)
) -> Tensor:
    """The rate of every step in per cent of ``unet_lr``.

    Args:
        steps, samples: as for :func:`lr_curve`.
        size: width and height, px.

    Returns:
        [height, width, 3] float32, 0..1, RGB.
    """
    agg = needed_package("matplotlib.backends.backend_agg", "The chart of the learning rate")
    figures = needed_package("matplotlib.figure", "The chart of the learning rate")

    places, shares = lr_curve(spec, steps, samples)
    figure = figures.Figure(figsize=(size[0] / 120, size[1] / 120), dpi=120, layout="constrained")
    canvas = agg.FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(places, [100 * share for share in shares], color="#d1495b", linewidth=2)
    axes.set_ylim(0, 105)
    axes.set_xlim(min(1, steps - 1), max(steps, 2))
    axes.set(xlabel="step", ylabel="% of unet_lr")
    axes.set_title(_title(spec, steps, samples), fontsize="medium")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba(), dtype=np.float32)[..., :3] / 255
    return torch.from_numpy(pixels.copy())


def _title(spec: LRSchedulerSpec, steps: int, samples: int) -> str:
    parts = [spec.lr_scheduler.value, f"{steps} steps"]
    if warmup := spec.warmup_steps(steps, samples):
        parts.append(f"{warmup} of warm-up")
    title = " · ".join(parts)
    if spec.lr_scheduler is LRSchedulerType.REDUCE_ON_PLATEAU:
        title += "\nand falls whenever the loss stops falling"
    return title
