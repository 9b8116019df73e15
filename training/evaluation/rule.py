"""Which LoRA to take, in which strength, and why not the others.

A row is rejected when
- more than 15 % of its pictures are copies of training pictures: it has memorised them;
- its loss on pictures that were held out has risen: it is clearly (two standard errors of the
  difference, picture by picture) and by more than 1 % above that of an earlier step of its run
  in the same strength, or above the base's;
- the prompts are gone: less than half of what can be told of them from the base's own pictures can
  be told from its own;
- its pictures are all alike: less than half as unlike each other as those of the base and the
  training pictures are.

Of the rest, those count whose score is clearly above 0 and more than a fifth. The score is the mean
of what pictures and loss say of the same question, how much of the way is gone:

    gain of the pictures                         0 = the base, 1 = as near as training pictures are
    (base loss - loss) / (base loss - lowest)    0 = the base, 1 = the lowest of all rows, which is
                                                 taken to be at least 2 % below the base

Where only one of the two can be told, it stands alone: the gain when no pictures were held out, the
loss when the base draws like the training pictures anyway. The row with the highest score wins, or
the first to come within one standard error of it: fewer steps before more, then the strength
nearest to 1 (the one-standard-error rule of Breiman et al. 1984, Classification and Regression
Trees, 3.4.3: of models that cannot be told apart, the simplest).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from .measures import CHANCE, Estimate, estimate
from .results import Evaluation, Row, loss_change

MOST_COPIES = 0.15
RISE = 0.01
LEAST_KEPT = 0.5
LEAST_DIVERSITY = 0.5
LEAST_SCORE = 0.2
LEAST_FALL = 0.02


class Fault(str, Enum):
    """Why a row is not recommended."""

    MEMORISED = "memorised"
    OVERFITTED = "overfitted"
    WORSE_THAN_BASE = "worse than the base"
    PROMPTS_LOST = "prompts lost"
    ALL_ALIKE = "all alike"
    LITTLE_GAIN = "little gain"


@dataclass(frozen=True, eq=False)
class Judged:
    """A row and what speaks against it."""

    row: Row
    faults: tuple[Fault, ...]
    parts: tuple[np.ndarray, ...]
    """What the score is the mean of, as far as it can be told: gain of the pictures [N], share of
    the fall of the held-out loss [P]."""

    @property
    def is_good(self) -> bool:
        return not self.faults

    @property
    def gain(self) -> Estimate | None:
        """Of the pictures."""
        return None if self.row.gain is None else estimate(self.row.gain)

    @property
    def score(self) -> Estimate | None:
        """None when nothing can be told."""
        return _together(self.parts) if self.parts else None


@dataclass(frozen=True, eq=False)
class Recommendation:
    """The outcome."""

    evaluation: Evaluation
    rows: tuple[Judged, ...]
    best: int | None
    """Its place among the rows; None when none is good enough."""

    @property
    def chosen(self) -> Judged | None:
        return None if self.best is None else self.rows[self.best]


def recommend(evaluation: Evaluation) -> Recommendation:
    """Judge every row, and choose."""
    lowest = min(row.loss for row in evaluation.rows)
    fall = max(evaluation.base_loss - lowest, LEAST_FALL * evaluation.base_loss, 1e-12)
    judged = tuple(_judged(row, evaluation, fall) for row in evaluation.rows)
    return Recommendation(evaluation, judged, _best(judged))


def _judged(row: Row, evaluation: Evaluation, fall: float) -> Judged:
    parts = [] if row.gain is None else [row.gain]
    if evaluation.are_held_out:
        parts.append((evaluation.base_losses - row.candidate.losses).mean(axis=1) / fall)
    judged = Judged(row, (), tuple(parts))
    found = []
    if len(row.copies) > MOST_COPIES * len(row.pairs):
        found.append(Fault.MEMORISED)
    if evaluation.are_held_out:
        found += _loss_faults(row, evaluation)
    possible = evaluation.base_kept - CHANCE
    if row.kept is not None and row.kept.value - CHANCE < LEAST_KEPT * possible:
        found.append(Fault.PROMPTS_LOST)
    if row.diversity < LEAST_DIVERSITY * min(1.0, evaluation.training_diversity):
        found.append(Fault.ALL_ALIKE)
    score = judged.score
    if score is None or not score.is_clear or score.value < LEAST_SCORE:
        found.append(Fault.LITTLE_GAIN)
    return replace(judged, faults=tuple(found))


def _together(parts: Sequence[np.ndarray]) -> Estimate:
    """The mean of the means of independent measurements."""
    means = [estimate(part) for part in parts]
    error = math.hypot(*(mean.error for mean in means)) / len(means)
    return Estimate(sum(mean.value for mean in means) / len(means), error)


def _loss_faults(row: Row, evaluation: Evaluation) -> list[Fault]:
    if _is_above(row, evaluation.base_losses, evaluation.base_loss):
        return [Fault.WORSE_THAN_BASE]
    earlier = [
        other
        for other in evaluation.rows
        if other.candidate.run == row.candidate.run
        and other.candidate.strength == row.candidate.strength
        and 0 < other.candidate.step < row.candidate.step
    ]
    lowest = min(earlier, key=lambda other: other.loss, default=None)
    if lowest is not None and _is_above(row, lowest.candidate.losses, lowest.loss):
        return [Fault.OVERFITTED]
    return []


def _is_above(row: Row, losses: np.ndarray, mean: float) -> bool:
    change = loss_change(row, losses)
    return change.is_clear and change.value > RISE * mean


def _best(judged: Sequence[Judged]) -> int | None:
    good = [i for i, one in enumerate(judged) if one.is_good]
    if not good:
        return None
    top = judged[max(good, key=lambda i: judged[i].score.value)]
    within = [i for i in good if _is_within(judged[i], top)]
    return min(within, key=lambda i: _simplicity(judged[i].row))


def _is_within(one: Judged, top: Judged) -> bool:
    """Less than one standard error of the difference behind it, picture by picture."""
    behind = _together([best - own for best, own in zip(top.parts, one.parts, strict=True)])
    return behind.value <= behind.error


def _simplicity(row: Row) -> tuple[float, float]:
    candidate = row.candidate
    return (candidate.step or np.inf, abs(candidate.strength - 1))
