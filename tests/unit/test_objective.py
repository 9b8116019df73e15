"""Noisy latents, targets and losses, against formulas written out and against diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.objective.loss_types import HuberSchedule, LossSpec, LossType
from lora_atelier.training.objective.noise import Noise
from lora_atelier.training.objective.noise_schedule import NoiseSchedule, PredictionType
from lora_atelier.training.objective.objective import (
    NoisedBatch,
    ObjectiveSpec,
    PriorSpec,
    add_noise,
    require_possible,
    sample_losses,
)
from lora_atelier.training.objective.timesteps import TimestepSpec
from lora_atelier.training.objective.weighting import Weighting

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
    return add_noise(latents, noise, SIGMAS[t], NoiseSchedule(kind, SIGMAS), OFF)


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
    batch = add_noise(latents, noise, schedule.sigmas[t], schedule, OFF)
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


def test_add_noise_weighs_each_picture_by_its_own_timestep(latents, noise) -> None:
    schedule = NoiseSchedule(EPS, SIGMAS)
    batch = add_noise(latents, noise, SIGMAS[[0, 2, 0]], schedule, ObjectiveSpec(5.0))
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


@pytest.mark.parametrize("gamma", [-1.0, math.nan, math.inf])
def test_a_gamma_that_is_no_number_is_refused(gamma: float) -> None:
    with pytest.raises(AtelierError, match=f"min_snr_gamma is {gamma}"):
        ObjectiveSpec(gamma)


@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (2, 16, 1, 3, 5)], ids=["picture", "one frame"])
def test_a_mask_weights_each_place_and_the_mean_is_over_all_of_them(shape: tuple) -> None:
    prediction, target = torch.randn(shape), torch.randn(shape)
    masks = torch.rand(2, 3, 5)
    batch = NoisedBatch(target, torch.ones(2), target, torch.tensor([1.0, 0.5]))
    losses = sample_losses(prediction, batch, masks)
    for i, weight in enumerate((1.0, 0.5)):
        total = 0.0
        for y in range(3):
            for x in range(5):
                difference = prediction[i, ..., y, x] - target[i, ..., y, x]
                total += (difference.square().sum() * masks[i, y, x]).item()
        assert losses[i].item() == pytest.approx(weight * total / target[i].numel(), rel=1e-5)


def test_what_the_mask_hides_gets_no_gradient() -> None:
    prediction = torch.randn(1, 4, 2, 2, requires_grad=True)
    target = torch.randn(1, 4, 2, 2)
    mask = torch.tensor([[[1.0, 0.0], [0.25, 1.0]]])
    batch = NoisedBatch(target, torch.ones(1), target, torch.ones(1))
    sample_losses(prediction, batch, mask).sum().backward()
    assert (prediction.grad[..., 0, 1] == 0).all()
    assert (prediction.grad[..., mask[0] > 0] != 0).all()


@pytest.mark.parametrize("kind", list(PredictionType))
def test_perturbed_noise_goes_into_the_input_and_not_into_the_target(kind, latents, noise) -> None:
    schedule = NoiseSchedule(kind, SIGMAS)
    more = torch.randn(3, 4, 2, 5)
    sigmas = SIGMAS[[0, 1, 2]]
    plain = add_noise(latents, noise, sigmas, schedule, OFF)
    perturbed = add_noise(latents, Noise(noise, noise + 0.1 * more), sigmas, schedule, OFF)
    assert torch.equal(perturbed.target, plain.target)
    difference = perturbed.noisy_latents - plain.noisy_latents
    expected = sigmas.view(3, 1, 1, 1) * 0.1 * more
    torch.testing.assert_close(difference, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", list(PredictionType))
@pytest.mark.parametrize("loss_type", list(LossType))
def test_the_loss_of_a_batch_is_the_chosen_one_at_each_pictures_threshold(
    kind, loss_type, latents, noise
) -> None:
    spec = ObjectiveSpec(0, loss=LossSpec(loss_type, 0.2, HuberSchedule.SNR))
    sigmas = torch.tensor([0.1, 0.5, 0.9])
    batch = add_noise(latents, noise, sigmas, NoiseSchedule(kind, sigmas), spec)
    answer = torch.randn(3, 4, 2, 5)
    losses = sample_losses(answer, batch)
    for i, sigma in enumerate(sigmas.tolist()):
        signal = 1 - sigma if kind is FLOW else 1 / (1 + sigma)
        c = 0.8 * signal**2 + 0.2
        numbers = (answer[i] - batch.target[i]).flatten().tolist()
        soft = [2 * (math.sqrt(d * d + c * c) - c) for d in numbers]
        by_hand = {
            LossType.L2: [d * d for d in numbers],
            LossType.L1: [abs(d) for d in numbers],
            LossType.HUBER: [c * x for x in soft],
            LossType.SMOOTH_L1: soft,
        }[loss_type]
        assert losses[i].item() == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)


@pytest.mark.parametrize("weighting", ["min_snr", "soft_min_snr", "debiased"])
def test_a_flow_model_refuses_snr_weightings_with_the_reason(weighting: str) -> None:
    spec = ObjectiveSpec(weighting=Weighting(weighting))
    message = f"weighting is {weighting}: .* flow model .*timestep_sampling.* auto or none"
    with pytest.raises(AtelierError, match=message):
        require_possible(spec, NoiseSchedule(FLOW, SIGMAS / 20))
    require_possible(spec, NoiseSchedule(EPS, SIGMAS))
    require_possible(spec, NoiseSchedule(V, SIGMAS))


def test_a_flow_model_refuses_a_gamma_that_was_chosen(latents) -> None:
    flow = NoiseSchedule(FLOW, SIGMAS / 20)
    with pytest.raises(
        AtelierError, match="min_snr_gamma is 7: .* flow model .* weighting to none"
    ):
        require_possible(ObjectiveSpec(7), flow)
    for accepted in (ObjectiveSpec(), OFF, ObjectiveSpec(7, Weighting.NONE)):
        require_possible(accepted, flow)


def test_a_flow_model_refuses_zero_terminal_snr() -> None:
    spec = ObjectiveSpec(zero_terminal_snr=True)
    with pytest.raises(AtelierError, match="zero_terminal_snr is on: .* Switch it off"):
        require_possible(spec, NoiseSchedule(FLOW, SIGMAS / 20))
    require_possible(spec, NoiseSchedule(V, SIGMAS))


def test_a_range_of_timesteps_without_any_is_refused() -> None:
    spec = ObjectiveSpec(timesteps=TimestepSpec(min_timestep=1, max_timestep=2))
    with pytest.raises(AtelierError, match="no noise level between them"):
        require_possible(spec, NoiseSchedule(EPS, torch.logspace(-1, 1, 50)))
    require_possible(spec, NoiseSchedule(EPS, torch.logspace(-1, 1, 1000)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PriorSpec(prior_loss_weight=-1), "prior_loss_weight is -1"),
        (lambda: PriorSpec(prior_preservation=math.nan), "prior_preservation is nan"),
        (lambda: ObjectiveSpec(guidance=-0.5), "guidance is -0.5"),
        (lambda: ObjectiveSpec(guidance=101), "guidance is 101"),
    ],
)
def test_numbers_out_of_range_are_refused(build, message: str) -> None:
    with pytest.raises(AtelierError, match=message):
        build()
