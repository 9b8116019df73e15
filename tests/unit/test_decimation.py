"""A long history in few points."""

from __future__ import annotations

import json
import math

import pytest

from lora_atelier.training.results.decimation import DecimatedHistory, rounded


def filled(steps: int, max_bins: int = 100, spike: int = 0) -> DecimatedHistory:
    """Losses of 1 / step, save one of 50."""
    history = DecimatedHistory(max_bins)
    for step in range(1, steps + 1):
        history.add(step, {"loss": 50.0 if step == spike else 1 / step})
    return history


def test_a_short_history_is_kept_as_it_is() -> None:
    columns = filled(100).columns()
    assert columns["step"] == list(range(1, 101))
    assert columns["loss"]["mean"] == [rounded(1 / step) for step in range(1, 101)]
    assert columns["loss"]["min"] == columns["loss"]["max"] == columns["loss"]["mean"]


@pytest.mark.parametrize("steps", (101, 777, 5000))
@pytest.mark.parametrize("max_bins", (100, 7))
def test_a_long_one_has_few_points_that_cover_every_step_once(steps: int, max_bins: int) -> None:
    history = filled(steps, max_bins)
    columns, stride = history.columns(), history.stride
    assert max_bins / 2 <= len(history) <= max_bins
    first = 1
    for last, low, mean, high in zip(columns["step"], *columns["loss"].values(), strict=True):
        assert last == min(first + stride - 1, steps)
        inside = [1 / step for step in range(first, last + 1)]
        assert mean == pytest.approx(sum(inside) / len(inside), rel=1e-5)
        assert (low, high) == (rounded(min(inside)), rounded(max(inside)))
        first = last + 1
    assert first == steps + 1


@pytest.mark.parametrize("spike", (1, 2, 3333, 4999, 5000))
def test_a_spike_of_one_step_stays_visible(spike: int) -> None:
    columns = filled(5000, spike=spike).columns()
    (place,) = [i for i, high in enumerate(columns["loss"]["max"]) if high == 50]
    assert place == next(i for i, last in enumerate(columns["step"]) if last >= spike)


def test_what_is_no_number_is_missing_and_breaks_no_json() -> None:
    history = DecimatedHistory(2)
    for step, loss in enumerate((math.nan, math.inf, 1.0, math.nan, 3.0), 1):
        history.add(step, {"loss": loss})
    columns = json.loads(json.dumps(history.columns(), allow_nan=False))
    assert columns == {"step": [4, 5], "loss": {"min": [1, 3], "mean": [1, 3], "max": [1, 3]}}
    nothing = DecimatedHistory()
    nothing.add(1, {"loss": math.nan})
    assert nothing.columns()["loss"]["mean"] == [None]


def test_a_series_may_begin_late() -> None:
    history = DecimatedHistory()
    history.add(1, {"loss": 1.0})
    history.add(2, {"loss": 1.0, "other": 7.0})
    assert history.columns()["other"]["mean"] == [None, 7.0]
    assert history.columns(1) == {
        "step": [2],
        "loss": {"min": [1.0], "mean": [1.0], "max": [1.0]},
        "other": {"min": [7.0], "mean": [7.0], "max": [7.0]},
    }
