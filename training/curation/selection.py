"""Which pictures stay, by a rule, and why; the rule never looks at a file.

Broken pictures go first, then outliers, then near duplicates, and ``keep_best`` counts what is
left: so the places are not taken by pictures that go anyway.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ..dataset.samples import ImageDataset, Role
from ..errors import require, require_number
from .reasons import Cause, Reason
from .scores import DatasetScores, Score

MOST_PICTURES = 1_000_000


@dataclass(frozen=True)
class SelectionRule:
    """What a person asks for; the defaults keep every picture that is sound."""

    score: Score = Score.NONE
    """Orders the pictures; NONE = those that come first are the best."""
    keep_best: int = 0
    """Training pictures that stay at most; 0 = all."""
    drop_duplicates: bool = False
    """Of each group of near duplicates, only the best stays."""
    drop_outliers: bool = False

    def __post_init__(self) -> None:
        advice = "0 keeps all; 20 to 60 pictures are usual for a style."
        require_number("keep_best", self.keep_best, 0, MOST_PICTURES, advice)


class Decision(NamedTuple):
    """What becomes of one picture."""

    keep: bool
    reason: Reason | None
    """None where nothing was asked."""


def select(
    dataset: ImageDataset, scores: DatasetScores, rule: SelectionRule
) -> tuple[Decision, ...]:
    """Apply a rule to a dataset.

    Duplicates are looked for within one role, as they were grouped. ``keep_best`` counts training
    pictures only: regularisation and validation pictures are not ranked against them, and stay.
    Pictures of equal score, and those without one, keep their order; those without come last.

    Returns:
        One decision a sample, in their order.

    Raises:
        AtelierError: the scores are of another dataset, or lack the score that the rule asks for.
    """
    samples = dataset.samples
    require(
        len(scores.digests) == len(samples),
        f"The scores are of {len(scores.digests)} pictures and the dataset has {len(samples)}: "
        "score this dataset anew.",
    )
    order = _best_first(scores, rule.score)
    gone = {i: Reason(Cause.BROKEN, {"why": why}) for i, why in _broken(dataset, scores)}
    if rule.drop_outliers:
        unlike = Reason(Cause.OUTLIER)
        gone |= {i: unlike for i in order if scores.outliers[i] and i not in gone}
    if rule.drop_duplicates:
        gone |= {
            i: Reason(Cause.DUPLICATE, {"name": samples[first].name})
            for i, first in _duplicates(order, scores, gone)
        }
    ranked = [i for i in order if i not in gone and samples[i].role is Role.TRAIN]
    ranks = {i: rank for rank, i in enumerate(ranked, 1)}

    def decide(i: int) -> Decision:
        if i in gone:
            return Decision(False, gone[i])
        keep = i not in ranks or not rule.keep_best or ranks[i] <= rule.keep_best
        return Decision(keep, _rank(ranks.get(i), len(ranked), rule))

    return tuple(decide(i) for i in range(len(samples)))


def _best_first(scores: DatasetScores, score: Score) -> list[int]:
    """Places of all pictures, the best first; equal ones keep their order."""
    places = range(len(scores.digests))
    if score is Score.NONE:
        return list(places)
    values = scores.values.get(score)
    require(
        values is not None,
        f"score {score.value} was not computed: connect what it compares with, or choose another.",
    )
    return sorted(places, key=lambda i: -math.inf if values[i] is None else values[i], reverse=True)


def _broken(dataset: ImageDataset, scores: DatasetScores) -> Iterator[tuple[int, str]]:
    reasons = {problem.name: problem.reason for problem in scores.problems}
    for i, sample in enumerate(dataset.samples):
        if sample.name in reasons:
            yield i, reasons[sample.name]


def _duplicates(
    order: Iterable[int], scores: DatasetScores, gone: Mapping[int, Reason]
) -> Iterator[tuple[int, int]]:
    """(picture that goes, the better one that stays)."""
    best: dict[int, int] = {}
    for i in order:
        group = scores.groups[i]
        if i in gone or group is None:
            continue
        if group in best:
            yield i, best[group]
        best.setdefault(group, i)


def _rank(rank: int | None, count: int, rule: SelectionRule) -> Reason | None:
    if rank is None or not rule.keep_best:
        return None
    if rule.score is Score.NONE:
        return Reason(Cause.RANK, {"rank": rank, "count": count})
    values = {"rank": rank, "count": count, "score": rule.score.value}
    return Reason(Cause.SCORE_RANK, values)
