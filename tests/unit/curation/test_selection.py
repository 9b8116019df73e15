"""The rule: who goes, in which order, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lora_atelier.training.curation.reasons import Cause, Reason
from lora_atelier.training.curation.scores import DatasetScores, Score
from lora_atelier.training.curation.selection import Decision, SelectionRule, select
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.samples import ImageDataset, Problem, Role, Sample
from lora_atelier.training.errors import AtelierError

NAMES = "abcdef"
DATASET = ImageDataset(tuple(Sample(ImageFile(f"/{n}.png", (8, 8)), n) for n in NAMES))
SCORES = DatasetScores(
    digests=tuple(NAMES),
    values={Score.SHARPNESS: (0.3, 0.9, 0.5, 0.5, None, 0.1)},
    groups=(0, None, 0, 1, 1, None),
    outliers=(False, True, False, False, False, False),
    problems=(),
)


def kept(rule: SelectionRule, scores: DatasetScores = SCORES) -> str:
    decisions = select(DATASET, scores, rule)
    return "".join(name for name, (keep, _) in zip(NAMES, decisions, strict=True) if keep)


@pytest.mark.parametrize(
    ("rule", "left"),
    [
        (SelectionRule(), "abcdef"),
        (SelectionRule(keep_best=2), "ab"),
        (SelectionRule(Score.SHARPNESS, keep_best=3), "bcd"),
        (SelectionRule(Score.SHARPNESS, keep_best=2), "bc"),  # of equal ones the first
        (SelectionRule(Score.SHARPNESS, keep_best=5), "abcdf"),  # without a score: last
        (SelectionRule(drop_duplicates=True), "abdf"),  # the first of a group stays
        (SelectionRule(Score.SHARPNESS, drop_duplicates=True), "bcdf"),  # or the best
        (SelectionRule(drop_outliers=True), "acdef"),
        (SelectionRule(Score.SHARPNESS, 2, drop_duplicates=True, drop_outliers=True), "cd"),
    ],
)
def test_what_stays(rule: SelectionRule, left: str) -> None:
    assert kept(rule) == left


def test_the_reasons_name_rank_and_original() -> None:
    rule = SelectionRule(Score.SHARPNESS, 2, drop_duplicates=True, drop_outliers=True)
    decisions = select(DATASET, SCORES, rule)
    assert [(keep, str(reason)) for keep, reason in decisions] == [
        (False, "near duplicate of c"),
        (False, "unlike the others"),
        (True, "rank 1 of 3 by sharpness"),
        (True, "rank 2 of 3 by sharpness"),
        (False, "near duplicate of d"),
        (False, "rank 3 of 3 by sharpness"),
    ]
    assert decisions[0].reason == Reason(Cause.DUPLICATE, {"name": "c"})
    in_order = select(DATASET, SCORES, SelectionRule(keep_best=1))
    assert [str(decision.reason) for decision in in_order[:2]] == ["rank 1 of 6", "rank 2 of 6"]


def test_a_broken_picture_is_never_kept_and_leads_no_group() -> None:
    scores = replace(SCORES, problems=(Problem("a", "a: cut short."),))
    decisions = select(DATASET, scores, SelectionRule(drop_duplicates=True))
    assert decisions[0] == Decision(False, Reason(Cause.BROKEN, {"why": "a: cut short."}))
    assert decisions[2].keep


def test_only_training_pictures_are_ranked() -> None:
    samples = [
        replace(s, role=Role.REGULARISATION) if s.name in "ab" else s for s in DATASET.samples
    ]
    decisions = select(DATASET.changed(samples), SCORES, SelectionRule(keep_best=1))
    assert [d.keep for d in decisions] == [True, True, True, False, False, False]
    assert decisions[0].reason is None


def test_a_score_that_is_not_there_and_scores_of_another_dataset_are_refused() -> None:
    with pytest.raises(AtelierError, match="clip_similarity was not computed"):
        select(DATASET, SCORES, SelectionRule(Score.CLIP))
    with pytest.raises(AtelierError, match="scores are of 6 pictures and the dataset has 2"):
        select(DATASET.changed(DATASET.samples[:2]), SCORES, SelectionRule())
    with pytest.raises(AtelierError, match="keep_best"):
        SelectionRule(keep_best=-1)
