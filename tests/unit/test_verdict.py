"""The verdict on recorded curves of real runs, and on simple ones."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from lora_atelier.training.results.loss_history import LossHistory
from lora_atelier.training.results.verdict import Verdict, judge
from lora_atelier.training.results.verdict_text import explain, headline
from recorded_curves import Curve, confusion, recorded_curves, table_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verdict.md"
LEAST_RIGHT = {Verdict.DIVERGING: 0.95, Verdict.NOT_FINITE: 0.95, Verdict.PLATEAU: 0.95}
"""Share of a class; 0.85 for those whose borders run through noise."""


@pytest.fixture(scope="module")
def unseen() -> list[Curve]:
    """The half on which no number of the verdict was chosen."""
    return [curve for curve in recorded_curves() if not curve.held_back_for_tuning]


def test_there_are_curves_of_every_class(unseen: list[Curve]) -> None:
    assert {curve.truth for curve in unseen} == set(Verdict) - {Verdict.TOO_SHORT}


@pytest.mark.parametrize("truth", [v for v in Verdict if v is not Verdict.TOO_SHORT])
def test_recorded_runs_get_the_verdict_that_is_due(unseen: list[Curve], truth: Verdict) -> None:
    row = confusion(unseen)[truth]
    assert row[truth] >= LEAST_RIGHT.get(truth, 0.85) * sum(row.values()), dict(row)


def test_the_page_shows_todays_tables(unseen: list[Curve]) -> None:
    page = PAGE.read_text("utf-8")
    assert table_of(unseen) in page
    assert table_of(c for c in recorded_curves() if c.held_back_for_tuning) in page


def noisy(mean: float, steps: int, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [mean * math.exp(rng.gauss(-0.5, 1.0)) for _ in range(steps)]


def test_a_few_steps_tell_nothing() -> None:
    assert judge(LossHistory(tuple(noisy(0.1, 20)))).verdict is Verdict.TOO_SHORT


def test_a_number_that_is_none_is_found_where_it_stands() -> None:
    losses = [*noisy(0.1, 60), math.nan, 0.1]
    judgement = judge(LossHistory(tuple(losses)))
    assert (judgement.verdict, judgement.bad_step) == (Verdict.NOT_FINITE, 61)
    skipped = (False,) * 60 + (True, False)
    passed_over = LossHistory(tuple(losses), skipped=skipped)
    assert judge(passed_over).verdict is not Verdict.NOT_FINITE


@pytest.mark.parametrize("seed", range(10))
def test_noise_alone_is_no_trend(seed: int) -> None:
    """Without validation pictures, so from the scattered training loss alone."""
    verdict = judge(LossHistory(tuple(noisy(0.1, 400, seed)))).verdict
    assert verdict in (Verdict.PLATEAU, Verdict.CONVERGED)


def test_the_text_says_what_cannot_be_seen_without_validation_pictures() -> None:
    history = LossHistory(tuple(noisy(0.1, 200)))
    text = explain(judge(history), history)
    assert headline(judge(history)) in text
    assert "validation_fraction" in text


def test_overfitting_is_told_from_the_validation_loss() -> None:
    falling = [0.3 * math.exp(-i / 60) + 0.02 for i in range(300)]
    points = [(25 * i, 0.2 - 0.02 * i) for i in range(5)]
    points += [(125 + 25 * i, 0.12 + 0.012 * i) for i in range(8)]
    rng = random.Random(3)
    losses = tuple(loss * math.exp(rng.gauss(-0.1, 0.4)) for loss in falling)
    history = LossHistory(losses, validation=tuple(points))
    assert judge(history).verdict is Verdict.OVERFITTING
    assert "Take max_train_steps about 100" in explain(judge(history), history)
