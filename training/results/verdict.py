"""What became of a training run, told from its loss curve.

The single losses scatter so much that the eye sees trends where there are none. So each sentence
rests on a figure with its standard error (:mod:`training.results.trend`): the fall so far, the fall
still to be expected, and what became of the validation loss since its lowest point.
How often the verdict is right on recorded runs: docs/verdict.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from ..runs.guard import NOT_FINITE_IN_A_ROW
from .loss_history import LossHistory, Points, finite
from .trend import Figure, fit_decay, level, log_blocks, mann_kendall, theil_sen

FEWEST_STEPS = 40
"""Below that nothing but the roughest can be told."""
FEWEST_POINTS = 4
"""Validation losses that make a curve."""
SURE = 3.0
"""Standard errors from which on a change is taken for real."""
EVIDENCE = 7.5
"""Likelihood ratio from which on a trend is: by chance alone in about 1 of 100 runs."""
SURE_OF_POINTS = 1.0
"""The same of validation losses, whose noise is the same each time: what scatters is the LoRA."""
STILL_FALLING = 0.12
"""A fall still ahead, in as many steps again, that is worth the time (about 12 %)."""
RISE = 0.25
"""A rise of the training loss that is no longer a wobble (about 28 %)."""
SURE_OF_AHEAD = 2.0
"""The same of the fall still ahead, where only the scattered training loss tells of it."""
HIDDEN = 0.5
"""A fall (40 %) that has to stand out from the noise before its absence means anything."""
NOTHING = math.log(0.7)
"""An answer of nothing scores about 1, as noise has unit variance; a model that learns, less."""
STEADY = 1.0
"""Scatter of the losses of a model that answers nothing; where it learns they scatter more."""
OVERFIT = 0.03
"""A rise of the validation loss above its lowest stretch that counts (3 %)."""


class Verdict(str, Enum):
    """What a run ended in."""

    CONVERGED = "converged"
    STILL_FALLING = "still falling"
    PLATEAU = "plateau"
    OVERFITTING = "overfitting"
    DIVERGING = "diverging"
    NOT_FINITE = "not finite"
    TOO_SHORT = "too short to tell"


@dataclass(frozen=True)
class Figures:
    """What a verdict rests on; falls and slopes are differences of natural logarithms."""

    steps: int
    fallen: Figure
    """From the first fifth to the last; negative: it rose."""
    evidence: float
    """For a trend at all, see `training.results.trend.Decay`; negative: upwards."""
    ahead: Figure
    """To be expected of as many steps again."""
    last_third: Figure
    """Change of the loss over the last third of the run, from Theil and Sen's slope."""
    last_third_z: float
    """Mann and Kendall's z of it."""
    rise: Figure
    """How far the end lies above the lowest stretch before it."""
    end: float
    """Level of the last third, and the scatter of its single losses."""
    scatter: float
    validation_rise: Figure | None = None
    """How far the last validation losses lie above the lowest."""
    validation_best: int = 0
    """Step with the lowest validation loss."""
    rises_most: str = ""
    """The band of noise in which it has risen most."""


@dataclass(frozen=True)
class Judgement:
    """A verdict and its grounds; `training.results.verdict_text` says it in words."""

    verdict: Verdict
    figures: Figures
    bad_step: int = 0
    """The first step that is no number, from 1."""


def judge(history: LossHistory) -> Judgement:
    """What became of the run.

    Validation losses decide where there are any, since they are taken under the same noise each
    time; without them overfitting cannot be seen.
    """
    bad = _first_bad(history)
    losses = [x for x in history.taken if math.isfinite(x)]
    figures = _figures(losses, history)
    if bad:
        return Judgement(Verdict.NOT_FINITE, figures, bad)
    return Judgement(_verdict(figures, finite(history.validation)), figures)


def _verdict(figures: Figures, validation: Points) -> Verdict:
    if _broke(figures, validation):
        return Verdict.DIVERGING
    seen = len(validation) >= FEWEST_POINTS
    if figures.steps < FEWEST_STEPS and not seen:
        return Verdict.TOO_SHORT
    rise = figures.validation_rise
    if seen and rise and rise.over(SURE_OF_POINTS) and rise.value > OVERFIT:
        return Verdict.OVERFITTING
    if not _fell(figures, validation if seen else ()):
        hidden = SURE * figures.fallen.error > HIDDEN and not seen
        return Verdict.TOO_SHORT if hidden else Verdict.PLATEAU
    ahead = figures.ahead
    goes_on = ahead.value > STILL_FALLING and (seen or ahead.over(SURE_OF_AHEAD))
    return Verdict.STILL_FALLING if goes_on else Verdict.CONVERGED


def _broke(figures: Figures, validation: Points) -> bool:
    """The training loss rose far, or is that of an answer of nothing, or the held-out one rose far
    above that of the base model: more than learning by heart ever does."""
    worse_than_base = validation and math.log(validation[-1][1] / validation[0][1]) > RISE
    rose = figures.rise.over(SURE + 1) or figures.evidence < -2 * EVIDENCE
    answers_nothing = figures.end > NOTHING and figures.scatter < STEADY
    return bool(worse_than_base) or answers_nothing or (rose and figures.rise.value > RISE)


def _fell(figures: Figures, validation: Points) -> bool:
    if validation:
        first, *_, last = (math.log(loss) for _, loss in validation)
        noise = _point_noise(validation)
        if first - last > max(SURE * math.sqrt(2) * noise, OVERFIT):
            return True
    return figures.evidence > EVIDENCE


def _figures(losses: Sequence[float], history: LossHistory) -> Figures:
    validation = finite(history.validation)
    nothing = Figure(0.0, math.inf)
    if len(losses) < 6:
        return Figures(len(losses), nothing, 0.0, nothing, nothing, 0.0, nothing, -math.inf, 0.0)
    y = log_blocks(losses)
    decay = fit_decay(y)
    third = y[-max(len(y) // 3, 3) :]
    slope = theil_sen(range(len(third)), third)
    spread = float(np.std(np.diff(third), ddof=1)) / math.sqrt(2)  # scatter without the trend
    n = len(third)
    error = spread * math.sqrt(12 / (n * (n * n - 1))) if n > 1 else math.inf
    rise, best = _validation_rise(validation)
    ahead = decay.ahead
    if len(validation) >= FEWEST_POINTS:  # under the same noise each time: far less scatter
        ahead = fit_decay(np.log([loss for _, loss in validation])).ahead
    return Figures(
        steps=len(losses),
        fallen=_fallen(y),
        evidence=decay.evidence,
        ahead=ahead,
        last_third=Figure(slope * (n - 1), error * (n - 1)),
        last_third_z=mann_kendall(third),
        rise=_rise(y),
        end=float(third.mean()),
        scatter=float(np.std(log_blocks(losses[-len(losses) // 3 :], len(losses)))),
        validation_rise=rise,
        validation_best=best,
        rises_most=_rises_most(history),
    )


def _rises_most(history: LossHistory) -> str:
    rises = {
        name: rise.value
        for name, points in history.validation_bands.items()
        if (rise := _validation_rise(finite(points))[0]) is not None
    }
    return max(rises, key=rises.__getitem__, default="")


def _fallen(y: np.ndarray) -> Figure:
    """The first fifth against the last."""
    parts = np.array_split(y, 5)
    first, last = level(parts[0]), level(parts[-1])
    return Figure(first.value - last.value, math.hypot(first.error, last.error))


def _rise(y: np.ndarray) -> Figure:
    """The last fifth above the lowest of the fifths before it, or above the first steps."""
    parts = np.array_split(y, 5)
    end = level(parts[-1])
    before = [level(part) for part in parts[:-1] if len(part) > 1]
    if not before:
        return Figure(0.0, math.inf)
    lowest = min(before, key=lambda figure: figure.value)
    return Figure(end.value - lowest.value, math.hypot(end.error, lowest.error))


def _validation_rise(points: Points) -> tuple[Figure | None, int]:
    """How far the mean of the last third of the points lies above the lowest mean of as many points
    before them, and the step of the lowest point."""
    if len(points) < FEWEST_POINTS:
        return None, 0
    logs = np.log([loss for _, loss in points])
    best, count = points[int(np.argmin(logs))][0], max(len(logs) // 3, 2)
    means = np.convolve(logs, np.ones(count) / count, "valid")
    before = means[: len(logs) - 2 * count + 1]
    error = _point_noise(points) * math.sqrt(2 / count)
    return Figure(float(means[-1] - before.min()), error), best


def _point_noise(points: Points) -> float:
    """Scatter of single validation losses: from second differences, which a smooth curve lacks;
    of the later half, for the first fall is no scatter."""
    logs = np.log([loss for _, loss in points])
    second = np.diff(logs[min(len(logs) // 2, len(logs) - 4) :], 2)
    return float(np.median(np.abs(second))) / (0.6745 * math.sqrt(6)) if len(second) else math.inf


def _first_bad(history: LossHistory) -> int:
    """The first step that was taken though it was no number, or the first of the last steps when
    these were all passed over for being none; 0 = there is no such step."""
    norms = history.grad_norm or (0.0,) * history.steps
    skipped = history.skipped or (False,) * history.steps
    bad = [
        not (math.isfinite(x) and math.isfinite(n))
        for x, n in zip(history.loss, norms, strict=True)
    ]
    for step, (is_bad, gone) in enumerate(zip(bad, skipped, strict=True), 1):
        if is_bad and not gone:
            return step
    last_good = max((step for step, is_bad in enumerate(bad, 1) if not is_bad), default=0)
    return last_good + 1 if history.steps - last_good >= NOT_FINITE_IN_A_ROW else 0
