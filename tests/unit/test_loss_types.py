"""The loss of a number and the thresholds of the Huber losses, at values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.objective.loss_types import (
    HuberSchedule,
    LossSpec,
    LossType,
    element_losses,
    huber_thresholds,
)
from lora_atelier.training.objective.noise_schedule import NoiseSchedule, PredictionType

EPS, V, FLOW = PredictionType.EPSILON, PredictionType.V_PREDICTION, PredictionType.FLOW
L2, L1, HUBER, SMOOTH = LossType.L2, LossType.L1, LossType.HUBER, LossType.SMOOTH_L1
CONSTANT, EXPONENTIAL, SNR = HuberSchedule.CONSTANT, HuberSchedule.EXPONENTIAL, HuberSchedule.SNR


def losses(kind: LossType, differences: list[float], c: float = 0.5) -> list[float]:
    d = torch.tensor([differences])
    return element_losses(d + 3, torch.full_like(d, 3.0), kind, torch.tensor([c]))[0].tolist()


def test_l2_and_l1() -> None:
    assert losses(L2, [0, 0.5, -2]) == pytest.approx([0, 0.25, 4])
    assert losses(L1, [0, 0.5, -2]) == pytest.approx([0, 0.5, 2])


def test_huber_and_smooth_l1_by_hand() -> None:
    """c = 3, d = 4: √(16 + 9) = 5, so smooth l1 is 2 · 2 and Huber 3 times that."""
    assert losses(SMOOTH, [0, 4, -4], c=3) == pytest.approx([0, 4, 4])
    assert losses(HUBER, [0, 4, -4], c=3) == pytest.approx([0, 12, 12])


def test_huber_is_l2_for_small_and_l1_for_large_differences() -> None:
    small, large = 0.001, 1000.0
    c = 0.1
    huber, smooth = (losses(kind, [small, large], c) for kind in (HUBER, SMOOTH))
    assert huber == pytest.approx([small**2, 2 * c * large], rel=2e-2)
    assert smooth == pytest.approx([small**2 / c, 2 * large], rel=2e-2)


@pytest.mark.parametrize("kind", [L2, L1, HUBER, SMOOTH])
def test_the_gradient_of_an_outlier(kind: LossType) -> None:
    """l2 pulls as hard as it is far off; the others at most so hard."""
    d = torch.tensor([[0.01, 50.0]], requires_grad=True)
    element_losses(d, torch.zeros(1, 2), kind, torch.tensor([0.1])).sum().backward()
    assert d.grad[0, 1].item() == pytest.approx({L2: 100, L1: 1, HUBER: 0.2, SMOOTH: 2}[kind], 1e-4)


def test_each_picture_has_its_own_threshold() -> None:
    d = torch.full((2, 4, 3, 3), 4.0)
    loss = element_losses(d, torch.zeros_like(d), SMOOTH, torch.tensor([3.0, 0.0]))
    assert (loss[0] - 4).abs().max() < 1e-5 and (loss[1] - 8).abs().max() < 1e-5


def test_a_half_precision_answer_is_compared_in_float32() -> None:
    answer = torch.full((1, 4), 300.0, dtype=torch.float16)
    for kind in LossType:
        loss = element_losses(answer, torch.zeros_like(answer), kind, torch.tensor([0.1]))
        assert loss.dtype is torch.float32 and loss.isfinite().all()


def table(kind: PredictionType, sigmas: Tensor) -> NoiseSchedule:
    return NoiseSchedule(kind, sigmas)


@pytest.mark.parametrize("kind", list(PredictionType))
def test_a_constant_threshold(kind: PredictionType) -> None:
    schedule = table(kind, torch.tensor([0.1, 0.5, 0.9]))
    spec = LossSpec(HUBER, 0.2, CONSTANT)
    assert huber_thresholds(schedule.sigmas, schedule, spec).tolist() == pytest.approx([0.2] * 3)


def test_an_exponential_threshold_falls_from_1_to_c_with_the_timestep() -> None:
    """exp(−α t) with α = −ln(c) / 1000, as in kohya-ss/sd-scripts."""
    schedule = table(EPS, torch.logspace(-1, 1, 1000))
    spec = LossSpec(HUBER, 0.1, EXPONENTIAL)
    t = torch.tensor([0, 250, 999])
    alpha = -math.log(0.1) / 1000
    expected = [math.exp(-alpha * x) for x in t.tolist()]
    assert huber_thresholds(schedule.sigmas[t], schedule, spec).tolist() == pytest.approx(expected)
    flow = table(FLOW, torch.linspace(0.001, 1, 1000))
    sigmas = torch.tensor([0.0, 0.5, 1.0])
    assert huber_thresholds(sigmas, flow, spec).tolist() == pytest.approx([1, 0.1**0.5, 0.1])


@pytest.mark.parametrize("kind", [EPS, V])
def test_an_snr_threshold_of_sd_models(kind: PredictionType) -> None:
    """(1 − c) / (1 + σ)² + c with σ² = (1 − ᾱ) / ᾱ."""
    product = torch.tensor([0.99, 0.5, 0.01])
    sigmas = ((1 - product) / product).sqrt()
    expected = [(1 - 0.1) / (1 + s) ** 2 + 0.1 for s in sigmas.tolist()]
    found = huber_thresholds(sigmas, table(kind, sigmas), LossSpec(HUBER, 0.1, SNR))
    assert found.tolist() == pytest.approx(expected)


def test_an_snr_threshold_of_flow_models_is_the_same_function_of_their_snr() -> None:
    sigmas = torch.tensor([0.0, 0.25, 0.8, 1.0])
    found = huber_thresholds(sigmas, table(FLOW, sigmas), LossSpec(HUBER, 0.1, SNR)).tolist()
    for threshold, sigma in zip(found[:3], [0.0, 0.25, 0.8], strict=True):
        noise_to_signal = sigma / (1 - sigma)
        assert threshold == pytest.approx(0.9 / (1 + noise_to_signal) ** 2 + 0.1)
    assert found[3] == pytest.approx(0.1)


@pytest.mark.parametrize("c", [0.0, -0.1, 1.5, math.nan])
def test_a_threshold_out_of_range_is_refused(c: float) -> None:
    with pytest.raises(AtelierError, match=f"huber_c is {c}"):
        LossSpec(huber_c=c)
