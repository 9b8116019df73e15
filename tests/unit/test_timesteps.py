"""Which noise levels are drawn how often, against distribution functions written out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp, kstest, norm

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.objective.noise_schedule import NoiseSchedule, PredictionType
from lora_atelier.training.objective.timesteps import (
    TimestepSampling,
    TimestepSpec,
    draw_sigma,
    quantile,
    sigma_at,
)

EPS, FLOW = PredictionType.EPSILON, PredictionType.FLOW
SQUARE = (16, 128, 128)  # latent of 1024 px
DRAWS = 4000
UNSURE = 1e-3
"""A right density fails a test with this probability; the draws are seeded, so it is once."""


def flow_table(shift: float = 3.0) -> NoiseSchedule:
    """A flow model's own table: uniform steps, shifted."""
    t = torch.arange(1, 1001) / 1000
    return NoiseSchedule(FLOW, shift * t / (1 + (shift - 1) * t))


def drawn(spec: TimestepSpec, schedule: NoiseSchedule | None = None, shape=SQUARE) -> np.ndarray:
    schedule = schedule or flow_table()
    rng = torch.Generator().manual_seed(12)
    return np.array([float(draw_sigma(schedule, spec, shape, rng)) for _ in range(DRAWS)])


def spec(kind: str, **fields: Any) -> TimestepSpec:
    return TimestepSpec(TimestepSampling(kind), **fields)


def logit(x: np.ndarray) -> np.ndarray:
    return np.log(x / (1 - x))


def shifted_back(x: np.ndarray, shift: float) -> np.ndarray:
    """The inverse of s y / (1 + (s − 1) y)."""
    return x / (shift - (shift - 1) * x)


CASES: dict[str, tuple[TimestepSpec, Callable[[np.ndarray], np.ndarray]]] = {
    "uniform": (spec("uniform"), lambda x: x),
    "sigmoid": (spec("sigmoid"), lambda x: norm.cdf(logit(x))),
    "sigmoid wide": (spec("sigmoid", logit_std=2.0), lambda x: norm.cdf(logit(x) / 2)),
    "logit_normal": (
        spec("logit_normal", logit_mean=-0.5, logit_std=0.7),
        lambda x: norm.cdf((logit(x) + 0.5) / 0.7),
    ),
    # the integral of 2 / (π (1 − 2x + 2x²)), the density in the paper
    "cosmap": (spec("cosmap"), lambda x: 2 / math.pi * (np.arctan(2 * x - 1) + math.pi / 4)),
    "shift": (
        spec("shift", discrete_flow_shift=6.0),
        lambda x: norm.cdf(logit(shifted_back(x, 6.0))),
    ),
    "shift wide": (
        spec("shift", discrete_flow_shift=0.5, logit_std=1.5),
        lambda x: norm.cdf(logit(shifted_back(x, 0.5)) / 1.5),
    ),
    # 1024 px are 64 × 64 tokens, where μ is 1.15
    "flux_shift": (
        spec("flux_shift"),
        lambda x: norm.cdf(logit(shifted_back(x, math.exp(1.15)))),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_flow_models_are_drawn_from_the_density_in_the_literature(name: str) -> None:
    chosen, distribution = CASES[name]
    assert kstest(drawn(chosen), distribution).pvalue > UNSURE


@pytest.mark.parametrize("name", CASES)
def test_a_share_of_all_draws_lies_below_the_noise_level_at_it(name: str) -> None:
    chosen, distribution = CASES[name]
    shares = [0.125, 0.375, 0.625, 0.875]
    found = np.array([float(sigma_at(u, flow_table(), chosen, SQUARE)) for u in shares])
    assert distribution(found) == pytest.approx(shares, abs=1e-5)


def test_entries_of_a_table_are_at_their_share_of_it() -> None:
    """Also where only a part of the table is trained on: entries 200 to 599."""
    eps = NoiseSchedule(EPS, torch.arange(1000.0))
    part = spec("auto", min_timestep=200, max_timestep=600)
    assert float(sigma_at(0.125, eps, spec("auto"), SQUARE)) == 125
    assert float(sigma_at(0.5, eps, part, SQUARE)) == 400
    assert float(sigma_at(1.0, eps, part, SQUARE)) == 599
    table = flow_table()
    assert sigma_at(0.375, table, spec("auto"), SQUARE) == table.sigmas[375]


@pytest.mark.parametrize("name", [n for n in CASES if n != "uniform"])
def test_the_densities_can_be_told_from_uniform_and_from_each_other(name: str) -> None:
    """The test above would be blind if the number of draws were too small."""
    sample = drawn(CASES[name][0])
    others = [distribution for n, (_, distribution) in CASES.items() if n != name]
    assert all(kstest(sample, distribution).pvalue < 1e-6 for distribution in others)


@pytest.mark.parametrize(
    ("chosen", "fields"),
    [
        (
            spec("logit_normal", logit_mean=0.3, logit_std=1.2),
            {"weighting_scheme": "logit_normal", "logit_mean": 0.3, "logit_std": 1.2},
        ),
        (spec("mode"), {"weighting_scheme": "mode", "mode_scale": 1.29}),
        (spec("uniform"), {"weighting_scheme": "none"}),
    ],
)
def test_the_densities_are_those_of_diffusers(chosen: TimestepSpec, fields: dict) -> None:
    rng = torch.Generator().manual_seed(0)
    theirs = compute_density_for_timestep_sampling(
        batch_size=20_000, generator=rng, **{"logit_mean": 0, "logit_std": 1} | fields
    )
    assert ks_2samp(drawn(chosen), theirs.numpy()).pvalue > UNSURE


@pytest.mark.parametrize(
    ("chosen", "mean"),
    [
        ("uniform", 0.5),
        ("sigmoid", 0.5),
        ("mode", 0.5),
        ("cosmap", 0.5),
    ],
)
def test_symmetric_densities_have_their_mean_in_the_middle(chosen: str, mean: float) -> None:
    assert drawn(spec(chosen)).mean() == pytest.approx(mean, abs=0.02)


def test_the_spread_of_the_densities_is_known() -> None:
    """Variances: 1/12; of sigmoid(N) 0.0433; ∫ (t − ½)² 2/(π(1−2t+2t²)) dt = 2/π (½ − π/8)."""
    assert drawn(spec("uniform")).var() == pytest.approx(1 / 12, rel=0.06)
    assert drawn(spec("sigmoid")).var() == pytest.approx(0.0433, rel=0.06)
    assert drawn(spec("cosmap")).var() == pytest.approx(2 / math.pi * (0.5 - math.pi / 8), rel=0.06)


@pytest.mark.parametrize(
    ("size", "mu"), [(256, 0.5), (512, 0.5 + 0.65 * 768 / 3840), (1024, 1.15)], ids=str
)
def test_flux_shift_grows_with_the_picture(size: int, mu: float) -> None:
    chosen = spec("flux_shift")
    sample = drawn(chosen, shape=(16, size // 8, size // 8))
    expected = kstest(sample, lambda x: norm.cdf(logit(shifted_back(x, math.exp(mu)))))
    assert expected.pvalue > UNSURE


def test_flux_shift_counts_the_tokens_of_a_picture_that_is_not_square() -> None:
    wide = drawn(spec("flux_shift"), shape=(16, 64, 256))
    assert np.array_equal(wide, drawn(spec("flux_shift"), shape=SQUARE))
    assert not np.array_equal(wide, drawn(spec("flux_shift"), shape=(16, 64, 128)))


def test_by_default_a_flow_model_is_drawn_from_its_own_shifted_table() -> None:
    sample = drawn(TimestepSpec(), flow_table(3.0))
    assert set(sample) <= set(flow_table(3.0).sigmas.tolist())
    assert kstest(sample, lambda x: shifted_back(x, 3.0)).pvalue > UNSURE


@pytest.mark.parametrize("kind", ["auto", "uniform"])
def test_by_default_sd_models_are_drawn_uniformly_from_their_schedule(kind: str) -> None:
    schedule = NoiseSchedule(EPS, torch.arange(1.0, 11.0))
    rng = torch.Generator().manual_seed(0)
    levels = [int(draw_sigma(schedule, spec(kind), SQUARE, rng)) for _ in range(5000)]
    counts = np.bincount(levels, minlength=11)[1:]
    assert abs(counts - 500).max() < 110  # five standard deviations


def test_the_default_takes_one_whole_number_from_the_stream() -> None:
    """Runs made before there were other densities give the same noise today."""
    schedule = NoiseSchedule(EPS, torch.arange(1000.0) + 1)
    for seed in range(20):
        rng, same = (torch.Generator().manual_seed(seed) for _ in range(2))
        place = int(torch.randint(1000, (1,), generator=same))
        assert draw_sigma(schedule, TimestepSpec(), SQUARE, rng) == place + 1
        assert torch.equal(torch.rand(3, generator=rng), torch.rand(3, generator=same))


def test_on_sd_models_a_density_acts_on_the_place_in_the_table() -> None:
    schedule = NoiseSchedule(EPS, torch.logspace(-1, 1, 1000))
    sigmas = drawn(spec("logit_normal", logit_mean=1.0), schedule)
    places = np.searchsorted(schedule.sigmas.numpy(), sigmas.astype(np.float32))
    assert set(sigmas) <= set(schedule.sigmas.tolist())
    spread = (places + np.random.default_rng(0).random(DRAWS)) / 1000
    assert kstest(spread, lambda x: norm.cdf(logit(x) - 1)).pvalue > UNSURE


@pytest.mark.parametrize("kind", ["auto", "uniform", "sigmoid", "mode", "flux_shift"])
def test_nothing_is_drawn_outside_the_range_and_all_of_it_is(kind: str) -> None:
    limits = {"min_timestep": 200, "max_timestep": 600}
    flow = drawn(spec(kind, **limits))
    assert 0.2 <= flow.min() < 0.29 and 0.51 < flow.max() <= 0.6
    table = NoiseSchedule(EPS, torch.arange(1000.0) + 1)
    places = drawn(spec(kind, **limits), table) - 1
    assert 200 <= places.min() < 290 and 510 < places.max() < 600


def test_a_density_is_squeezed_into_the_range() -> None:
    sample = drawn(spec("sigmoid", min_timestep=100, max_timestep=300))
    assert kstest((sample - 0.1) / 0.2, lambda x: norm.cdf(logit(x))).pvalue > UNSURE


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, {1.0}), (999, 1000, {1000.0}), (5, 7, {6.0, 7.0})],
)
def test_the_range_begins_with_its_first_timestep_and_ends_before_its_last(
    low: int, high: int, expected: set[float]
) -> None:
    """As randint(min, max) of kohya-ss/sd-scripts."""
    table = NoiseSchedule(EPS, torch.arange(1000.0) + 1)
    limits = {"min_timestep": low, "max_timestep": high}
    for kind in ("auto", "sigmoid"):
        assert set(drawn(spec(kind, **limits), table)) == expected


def test_the_noisy_end_of_a_flow_table_is_drawn_too() -> None:
    sample = drawn(spec("auto", min_timestep=998), flow_table(1.0))
    assert {round(float(x), 4) for x in sample} == {0.998, 0.999, 1.0}


def test_a_range_without_a_level_of_the_model_is_refused() -> None:
    """The shifted table of SD3 begins at σ = 0.003."""
    with pytest.raises(AtelierError, match="max_timestep 2: this model has no noise level between"):
        drawn(spec("auto", max_timestep=2))
    assert drawn(spec("uniform", max_timestep=2)).max() <= 0.002  # not bound to the table


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_timestep": 500, "max_timestep": 500}, "min_timestep is 500 and max_timestep 500"),
        ({"min_timestep": 700, "max_timestep": 300}, "the first must be the smaller"),
        ({"min_timestep": -1}, "min_timestep is -1"),
        ({"max_timestep": 1001}, "max_timestep is 1001"),
        ({"logit_std": 0}, "logit_std is 0"),
        ({"logit_mean": math.nan}, "logit_mean is nan"),
        ({"discrete_flow_shift": 0}, "discrete_flow_shift is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(AtelierError, match=message):
        TimestepSpec(**fields)


@given(
    u=st.floats(0, 1, exclude_max=True),
    v=st.floats(0, 1, exclude_max=True),
    kind=st.sampled_from(TimestepSampling),
    std=st.floats(0.01, 10),
    shift=st.floats(0.01, 100),
)
def test_every_quantile_function_rises_and_stays_between_0_and_1(u, v, kind, std, shift) -> None:
    chosen = TimestepSpec(kind, logit_std=std, discrete_flow_shift=shift)
    low, high = (
        float(quantile(torch.tensor(x, dtype=torch.float64), chosen)) for x in sorted((u, v))
    )
    assert -1e-12 <= low <= high + 1e-12 and high <= 1 + 1e-12
