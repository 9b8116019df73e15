"""What can be told of a noisy, falling series: how far it fell, and how much fall is left.

The loss of a single step scatters by a factor of 2 to 10 with the noise level it drew, and evenly
so in the logarithm; so logarithms are averaged over blocks of steps, and every figure comes with
its standard error. All falls are differences of natural logarithms: 0.1 is about 10 %.

    y(t) = a + b · exp(−t / τ) + noise        t = 0 at the first step, 1 at the last

is solved for a and b by least squares at each of several τ, and these answers are averaged by their
likelihood (Bayesian model averaging, Hoeting et al. 1999, Statistical Science 14:382). The slope at
the end is that of Theil and Sen (Sen 1968, J. Am. Stat. Assoc. 63:1379), its significance that of
Mann and Kendall (Kendall 1975, Rank Correlation Methods); neither minds single outliers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MOST_BLOCKS = 240
TIME_CONSTANTS = np.geomspace(0.04, 2.5, 14)
"""τ of the model, in lengths of the run: from a fall that is long over to one that goes straight
on. Evenly spread in the logarithm, which is the prior."""


@dataclass(frozen=True)
class Figure:
    """A number and its standard error."""

    value: float
    error: float

    def over(self, sigmas: float) -> bool:
        """It is more than so many standard errors above 0."""
        return self.value > sigmas * self.error


@dataclass(frozen=True)
class Decay:
    """A series as an exponential approach."""

    ahead: Figure
    """What it would fall in as many steps again; the error holds the doubt about τ too."""
    evidence: float
    """n · ln(misfit of a level line / that of the best τ), the likelihood ratio, about χ² with two
    degrees of freedom where there is no trend; negative where the series rises."""


def log_blocks(values: Sequence[float], most: int = MOST_BLOCKS) -> Floats:
    """Mean logarithms of at most ``most`` blocks of equal length; the odd ones at the start go.

    Zeros count as the least positive value.
    """
    series = np.asarray(values, dtype=np.float64)
    positive = series[series > 0]
    least = positive.min() if positive.size else 1.0
    logs = np.log(np.maximum(series, least))
    length = math.ceil(len(logs) / most)
    count = len(logs) // length
    return logs[len(logs) - count * length :].reshape(count, length).mean(axis=1)


def fit_decay(y: Floats) -> Decay:
    """Fit the model to evenly spaced values.

    Args:
        y: [n] logarithms, n ≥ 4.
    """
    n = len(y)
    t = np.linspace(0.0, 1.0, n)
    flat = float((y - y.mean()) @ (y - y.mean()))
    heights, ahead, errors, misfits = [], [], [], []
    for tau in TIME_CONSTANTS:
        shape = np.exp(-t / tau)
        centred = shape - shape.mean()
        spread = float(centred @ centred)
        b = float(centred @ (y - y.mean())) / spread
        rest = y - y.mean() - b * centred
        misfit = float(rest @ rest)
        error = math.sqrt(misfit / max(n - 3, 1) / spread)
        further = math.exp(-1 / tau) - math.exp(-2 / tau)
        heights.append(b)
        ahead.append(b * further)
        errors.append(error * further)
        misfits.append(misfit)
    share = np.asarray(misfits) / max(min(misfits), 1e-300)
    weights = np.exp(-0.5 * n * np.log(np.maximum(share, 1.0)))
    weights /= weights.sum()
    best = int(np.argmin(misfits))
    ratio = n * math.log(max(flat, 1e-300) / max(misfits[best], 1e-300))
    return Decay(_averaged(ahead, errors, weights), math.copysign(ratio, heights[best]))


def _averaged(values: list[float], errors: list[float], weights: Floats) -> Figure:
    """Mean and deviation of a mixture."""
    mean = float(weights @ values)
    variance = float(weights @ (np.square(errors) + np.square(np.asarray(values) - mean)))
    return Figure(mean, math.sqrt(variance))


def theil_sen(x: Sequence[float], y: Sequence[float]) -> float:
    """Median slope over all pairs."""
    at, of = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    first, second = np.triu_indices(len(at), 1)
    return float(np.median((of[second] - of[first]) / (at[second] - at[first])))


def mann_kendall(y: Sequence[float]) -> float:
    """The test's z: beyond ±2 a trend up or down is hardly chance. Ties count half."""
    values = np.asarray(y, dtype=np.float64)
    n = len(values)
    first, second = np.triu_indices(n, 1)
    score = float(np.sign(values[second] - values[first]).sum())
    ties = np.unique(values, return_counts=True)[1].astype(np.float64)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    if variance <= 0 or score == 0:
        return 0.0
    return (score - math.copysign(1.0, score)) / math.sqrt(variance)


def level(y: Floats) -> Figure:
    """Mean of logarithms; the error is that of independent values."""
    deviation = float(y.std(ddof=1)) if len(y) > 1 else math.inf
    return Figure(float(y.mean()), deviation / math.sqrt(len(y)))
