"""Weights of the noise levels, at hand-computed levels and against diffusers' SNR."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import compute_snr

from lora_atelier.training.objective.noise_schedule import (
    NoiseSchedule,
    PredictionType,
    with_zero_terminal_snr,
)
from lora_atelier.training.objective.weighting import Weighting, loss_weights

EPS, V, FLOW = PredictionType.EPSILON, PredictionType.V_PREDICTION, PredictionType.FLOW
AUTO, NONE, MIN_SNR = Weighting.AUTO, Weighting.NONE, Weighting.MIN_SNR
SOFT, DEBIASED = Weighting.SOFT_MIN_SNR, Weighting.DEBIASED
SIGMAS = torch.tensor([0.1, 0.5, 1.0, 2.0])  # SNR 100, 4, 1, 0.25


def weights(kind: PredictionType, weighting: Weighting, gamma: float = 5.0) -> list[float]:
    return loss_weights(SIGMAS, NoiseSchedule(kind, SIGMAS), weighting, gamma).tolist()


@pytest.mark.parametrize(
    ("kind", "weighting", "expected"),
    [
        (EPS, MIN_SNR, [5 / 100, 1, 1, 1]),
        (V, MIN_SNR, [5 / 101, 4 / 5, 1 / 2, 0.25 / 1.25]),
        (EPS, SOFT, [5 / 105, 5 / 9, 5 / 6, 5 / 5.25]),
        (V, SOFT, [500 / 105 / 101, 20 / 9 / 5, 5 / 6 / 2, 1.25 / 5.25 / 1.25]),
        (EPS, DEBIASED, [1 / 10, 1 / 2, 1, 2]),
        (V, DEBIASED, [1 / 101, 1 / 5, 1 / 2, 1 / 1.25]),
        (EPS, NONE, [1, 1, 1, 1]),
        (V, NONE, [1, 1, 1, 1]),
    ],
)
def test_weights_at_hand_computed_noise_levels(kind, weighting, expected) -> None:
    assert weights(kind, weighting) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [EPS, V])
def test_auto_is_min_snr_for_sd_models(kind: PredictionType) -> None:
    assert weights(kind, AUTO) == weights(kind, MIN_SNR) != weights(kind, NONE)


@pytest.mark.parametrize("weighting", list(Weighting))
def test_flow_models_are_not_weighted(weighting: Weighting) -> None:
    assert weights(FLOW, weighting) == [1] * 4


@pytest.mark.parametrize("weighting", [AUTO, MIN_SNR, SOFT])
@pytest.mark.parametrize("kind", list(PredictionType))
def test_gamma_0_switches_weighting_off(kind: PredictionType, weighting: Weighting) -> None:
    assert weights(kind, weighting, 0) == [1] * 4


def test_gamma_decides_where_weights_begin_to_fall() -> None:
    assert weights(EPS, MIN_SNR, 1) == pytest.approx([1 / 100, 1 / 4, 1, 1])
    assert weights(EPS, SOFT, 1) == pytest.approx([1 / 101, 1 / 5, 1 / 2, 1 / 1.25])
    assert weights(EPS, DEBIASED, 1) == weights(EPS, DEBIASED, 5)  # has no gamma


@pytest.mark.parametrize("kind", [EPS, V])
@pytest.mark.parametrize("weighting", [MIN_SNR, SOFT, DEBIASED])
def test_every_weight_of_sds_schedule_by_the_formula_on_diffusers_snr(kind, weighting) -> None:
    ddpm = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    snr = compute_snr(ddpm, torch.arange(1000)).double()
    more = 1 if kind is V else 0
    if weighting is DEBIASED:
        least = snr.clamp(max=1000)
        expected = 1 / (least + 1) if more else 1 / least.sqrt()
        assert snr.max() > 1000  # the limit is reached
    elif weighting is SOFT:
        expected = 1 / (1 / snr + 1 / 5) / (snr + more)
    else:
        expected = snr.clamp(max=5) / (snr + more)
    schedule = NoiseSchedule(kind, snr.rsqrt().float())
    found = loss_weights(schedule.sigmas, schedule, weighting, 5.0)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-7)


def test_soft_min_snr_lies_below_min_snr_and_meets_it_far_from_gamma() -> None:
    hard, soft = weights(EPS, MIN_SNR), weights(EPS, SOFT)
    assert all(s < h for s, h in zip(soft, hard, strict=True))
    assert soft[0] == pytest.approx(hard[0], rel=0.05) and soft[3] == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("kind", [EPS, V])
@pytest.mark.parametrize("weighting", list(Weighting))
def test_weights_are_finite_where_there_is_no_signal(kind, weighting) -> None:
    schedule = with_zero_terminal_snr(NoiseSchedule(kind, SIGMAS))
    assert loss_weights(schedule.sigmas, schedule, weighting, 5.0).isfinite().all()
