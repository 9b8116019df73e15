"""Noise, targets and weights, against formulas written out and against diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.objective import (
    NoisedBatch,
    NoiseSchedule,
    ObjectiveSpec,
    PredictionType,
    add_noise,
    draw_timestep,
    min_snr_weights,
    sample_losses,
)

EPS, V, FLOW = PredictionType.EPSILON, PredictionType.V_PREDICTION, PredictionType.FLOW
OFF = ObjectiveSpec(min_snr_gamma=0)
SIGMAS = torch.tensor([0.1, 0.5, 1.0, 2.0, 14.6])


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(3, 4, 2, 5)


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(3, 4, 2, 5)


@pytest.fixture(scope="module")
def ddpm() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def _noised(kind: PredictionType, latents: Tensor, noise: Tensor, t: list[int]) -> NoisedBatch:
    return add_noise(latents, noise, torch.tensor(t), NoiseSchedule(kind, SIGMAS), OFF)


@pytest.mark.parametrize("kind", list(PredictionType))
def test_every_picture_gets_the_noise_and_target_of_its_own_timestep(kind, latents, noise) -> None:
    batch = _noised(kind, latents, noise, [0, 2, 3])
    for i, sigma in enumerate([0.1, 1.0, 2.0]):
        x, n = latents[i], noise[i]
        noisy = (1 - sigma) * x + sigma * n if kind is FLOW else x + sigma * n
        target = {EPS: n, FLOW: n - x, V: (n - sigma * x) / math.sqrt(1 + sigma * sigma)}[kind]
        torch.testing.assert_close(batch.noisy_latents[i], noisy)
        torch.testing.assert_close(batch.target[i], target)
        assert batch.sigmas[i].item() == pytest.approx(sigma)


@pytest.mark.parametrize("kind", [EPS, V])
def test_noisy_latents_and_targets_equal_those_of_diffusers(kind, ddpm, latents, noise) -> None:
    product = ddpm.alphas_cumprod.double()
    schedule = NoiseSchedule(kind, ((1 - product) / product).sqrt().float())
    t = torch.tensor([3, 500, 999])
    batch = add_noise(latents, noise, t, schedule, OFF)
    scaled = batch.noisy_latents / (1 + batch.sigmas.view(-1, 1, 1, 1) ** 2).sqrt()
    target = noise if kind is EPS else ddpm.get_velocity(latents, noise, t)
    torch.testing.assert_close(scaled, ddpm.add_noise(latents, noise, t), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(batch.target, target, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", list(PredictionType))
def test_a_perfect_answer_leads_back_to_the_clean_latents(kind, latents, noise) -> None:
    """Karras et al. 2022, table 1: x₀ = c_skip · x + c_out · answer."""
    batch = _noised(kind, latents, noise, [0, 1, 3])
    sigma = batch.sigmas.view(-1, 1, 1, 1)
    scale = (1 + sigma**2).sqrt()
    if kind is V:
        clean = batch.noisy_latents / scale**2 - batch.target * sigma / scale
    else:
        clean = batch.noisy_latents - sigma * batch.target
    torch.testing.assert_close(clean, latents, rtol=1e-4, atol=1e-5)


def test_v_and_epsilon_targets_are_two_views_of_one_noise(latents, noise) -> None:
    """eps = (v · √(1 + σ²) + σ x₀), and eps from x and v alone = σ x / (1 + σ²) + v / √(1 + σ²)."""
    batch = _noised(V, latents, noise, [1, 2, 3])
    sigma = batch.sigmas.view(-1, 1, 1, 1)
    eps = sigma * batch.noisy_latents / (1 + sigma**2) + batch.target / (1 + sigma**2).sqrt()
    torch.testing.assert_close(eps, noise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # σ = 0.1, 0.5, 1, 2 have SNR = 100, 4, 1, 0.25; γ = 5
        (EPS, [5 / 100, 1, 1, 1]),
        (V, [5 / 101, 4 / 5, 1 / 2, 0.25 / 1.25]),
        (FLOW, [1, 1, 1, 1]),
    ],
)
def test_min_snr_weights_at_hand_computed_noise_levels(kind, expected) -> None:
    weights = min_snr_weights(SIGMAS[:4], NoiseSchedule(kind, SIGMAS), ObjectiveSpec(5.0))
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", list(PredictionType))
def test_gamma_0_switches_weighting_off(kind) -> None:
    assert min_snr_weights(SIGMAS, NoiseSchedule(kind, SIGMAS), OFF).tolist() == [1] * 5


def test_add_noise_weighs_each_picture_by_its_own_timestep(latents, noise) -> None:
    schedule = NoiseSchedule(EPS, SIGMAS)
    batch = add_noise(latents, noise, torch.tensor([0, 2, 0]), schedule, ObjectiveSpec(5.0))
    assert batch.weights.tolist() == pytest.approx([0.05, 1, 0.05], rel=1e-5)


def test_each_picture_has_its_own_weighted_loss() -> None:
    target = torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]]])
    batch = NoisedBatch(target, torch.ones(2), target, weights=torch.tensor([1.0, 0.5]))
    losses = sample_losses(torch.tensor([[[1.0, 3.0]], [[1.0, 5.0]]]), batch)
    assert losses.tolist() == [5.0, 4.0]  # (1 + 9) / 2 · 1 and (0 + 16) / 2 · 0.5


def test_the_loss_of_a_half_precision_answer_is_float32() -> None:
    target = torch.zeros(1, 4)
    batch = NoisedBatch(target, torch.ones(1), target, torch.ones(1))
    loss = sample_losses(torch.full((1, 4), 300.0, dtype=torch.float16), batch)
    assert loss.tolist() == [90000.0]  # over float16's largest number


@pytest.mark.parametrize("shape", [(2, 1, 2, 2), (1, 4, 2, 2), (2, 4, 4), (2, 4, 2, 3)])
def test_an_answer_of_another_shape_is_an_error(shape: tuple[int, ...]) -> None:
    target = torch.zeros(2, 4, 2, 2)
    batch = NoisedBatch(target, torch.ones(2), target, torch.ones(2))
    with pytest.raises(AtelierError, match=r"where \(2, 4, 2, 2\) was due"):
        sample_losses(torch.zeros(shape), batch)


@pytest.mark.parametrize(("shape", "steps"), [((3, 4, 2, 4), 3), ((1, 4, 2, 5), 3), (None, 2)])
def test_noise_or_timesteps_that_do_not_fit_are_an_error(shape, steps, latents, noise) -> None:
    noise = noise if shape is None else torch.zeros(shape)
    with pytest.raises(AtelierError, match="do not belong together"):
        _noised(EPS, latents, noise, [0] * steps)


def test_timesteps_are_uniform_over_the_whole_schedule() -> None:
    schedule = NoiseSchedule(EPS, torch.ones(10))
    rng = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([draw_timestep(schedule, rng) for _ in range(5000)]))
    assert len(counts) == 10
    assert (counts - 500).abs().max() < 110  # five standard deviations


@pytest.mark.parametrize("gamma", [-1.0, math.nan, math.inf])
def test_a_gamma_that_is_no_number_is_refused(gamma: float) -> None:
    with pytest.raises(AtelierError, match=f"min_snr_gamma is {gamma}"):
        ObjectiveSpec(gamma)
