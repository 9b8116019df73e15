"""Noise levels, their timesteps, and the schedule that ends in noise alone."""

from __future__ import annotations

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from lora_atelier.training.objective.noise_schedule import (
    NoiseSchedule,
    PredictionType,
    with_zero_terminal_snr,
)

EPS, V, FLOW = PredictionType.EPSILON, PredictionType.V_PREDICTION, PredictionType.FLOW
DDPM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def sigmas_of(scheduler: DDPMScheduler) -> torch.Tensor:
    product = scheduler.alphas_cumprod.double()
    return ((1 - product) / product).sqrt().float()


@pytest.mark.parametrize("kind", [EPS, V])
def test_zero_terminal_snr_is_that_of_diffusers(kind: PredictionType) -> None:
    schedule = NoiseSchedule(kind, sigmas_of(DDPMScheduler(**DDPM)))
    stretched = with_zero_terminal_snr(schedule)
    expected = sigmas_of(DDPMScheduler(**DDPM, rescale_betas_zero_snr=True))
    assert stretched.prediction_type is kind
    # diffusers goes through float32 betas, whose rounding shows where the signal is small
    torch.testing.assert_close(stretched.sigmas[:-50], expected[:-50], rtol=1e-3, atol=0)
    torch.testing.assert_close(stretched.sigmas[-50:-1], expected[-50:-1], rtol=2e-2, atol=0)
    assert stretched.sigmas[0] == pytest.approx(schedule.sigmas[0].item(), rel=1e-5)


def test_at_zero_terminal_snr_the_last_step_is_noise_alone_and_finite() -> None:
    schedule = NoiseSchedule(V, sigmas_of(DDPMScheduler(**DDPM)))
    assert schedule.sigmas[-1] < 15
    last = with_zero_terminal_snr(schedule).sigmas[-1].item()
    assert 1 / (1 + last**2) < 1e-7 and last < 5000


def test_the_stretched_schedule_still_rises() -> None:
    stretched = with_zero_terminal_snr(NoiseSchedule(EPS, sigmas_of(DDPMScheduler(**DDPM))))
    assert (torch.diff(stretched.sigmas) > 0).all()


@pytest.mark.parametrize("count", [1000, 50])
def test_timesteps_of_sd_models_are_places_in_the_table(count: int) -> None:
    """A distilled model of 50 entries counts in twenties."""
    schedule = NoiseSchedule(EPS, torch.logspace(-1, 1, count))
    places = torch.tensor([0, 7, count - 1])
    expected = [0, 7 * 1000 / count, (count - 1) * 1000 / count]
    assert schedule.timesteps_of(schedule.sigmas[places]).tolist() == pytest.approx(expected)
    assert schedule.timesteps[places].tolist() == pytest.approx(expected)


def test_timesteps_of_flow_models_are_thousandths_of_sigma() -> None:
    schedule = NoiseSchedule(FLOW, torch.tensor([0.003, 0.75, 1.0]))
    assert schedule.timesteps.tolist() == pytest.approx([3, 750, 1000])
    assert schedule.timesteps_of(torch.tensor([0.1234])).tolist() == pytest.approx([123.4])
