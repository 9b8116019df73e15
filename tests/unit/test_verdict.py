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


def test_a_model_that_answers_nothing_is_broken_whatever_came_before() -> None:
    """Its losses lie about 1 and hardly scatter; there may be no good step to compare with."""
    rng = random.Random(1)
    losses = tuple(math.exp(rng.gauss(0, 0.2)) for _ in range(100))
    judgement = judge(LossHistory(losses))
    assert judgement.verdict is Verdict.DIVERGING
    assert "answers nothing" in explain(judgement, LossHistory(losses))


def test_noise_that_could_hide_a_large_fall_is_said_to_hide_it() -> None:
    history = LossHistory(tuple(noisy(0.1, 100)))
    assert judge(history).verdict is Verdict.TOO_SHORT
    assert "A fall of less than about" in explain(judge(history), history)


def test_a_few_steps_tell_nothing() -> None:
    assert judge(LossHistory(tuple(noisy(0.1, 20)))).verdict is Verdict.TOO_SHORT


def test_a_number_that_is_none_is_found_where_it_stands() -> None:
    losses = [*noisy(0.1, 60), math.nan, 0.1]
    judgement = judge(LossHistory(tuple(losses)))
    assert (judgement.verdict, judgement.bad_step) == (Verdict.NOT_FINITE, 61)
    skipped = (False,) * 60 + (True, False)
    passed_over = LossHistory(tuple(losses), skipped=skipped)
    assert judge(passed_over).verdict is not Verdict.NOT_FINITE


def test_noise_alone_is_no_trend() -> None:
    """From the scattered training loss alone; about 1 of 100 is one by chance."""
    verdicts = [judge(LossHistory(tuple(noisy(0.1, 1000, seed)))).verdict for seed in range(60)]
    assert sum(verdict is not Verdict.PLATEAU for verdict in verdicts) <= 2


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


@pytest.mark.parametrize(("passed_over", "verdict"), [(4, False), (5, True)])
def test_a_run_that_ends_in_steps_passed_over_broke_down(passed_over: int, verdict: bool) -> None:
    """One such step on the way changes nothing; a row of them at the end is the end."""
    losses = (*noisy(0.1, 60), *[math.nan] * passed_over)
    skipped = (False,) * 60 + (True,) * passed_over
    judgement = judge(LossHistory(losses, skipped=skipped))
    assert (judgement.verdict is Verdict.NOT_FINITE) is verdict
    assert judgement.bad_step == (61 if verdict else 0)


def test_the_band_in_which_the_loss_rises_most_is_named() -> None:
    falling = tuple((25 * i, 0.2 - 0.005 * i) for i in range(12))
    rising = tuple((25 * i, 0.1 + 0.01 * i) for i in range(12))
    history = LossHistory(
        tuple(noisy(0.1, 300)),
        validation=tuple((s, 0.15 + abs(i - 4) * 0.005) for i, (s, _) in enumerate(rising)),
        validation_bands={"much noise": falling, "little noise": rising},
    )
    assert "rises most where there is little noise" in explain(judge(history), history)


def test_advice_names_the_rate_that_was_used_and_the_steps() -> None:
    rates = (2e-4,) * 300
    losses = tuple(x * math.exp(-i / 150) for i, x in enumerate(noisy(1.0, 300)))
    history = LossHistory(losses, learning_rate=rates)
    assert judge(history).verdict is Verdict.STILL_FALLING
    text = explain(judge(history), history)
    assert "max_train_steps about 600" in text and "unet_lr 0.0002 \u2192 0.0004" in text
    rising = LossHistory(tuple(noisy(0.1, 200) + noisy(1.0, 100)), learning_rate=rates)
    assert judge(rising).verdict is Verdict.DIVERGING
    assert "unet_lr 0.0002 \u2192 4e-05" in explain(judge(rising), rising)
