"""The picture of an objective: its curves are the functions that training uses."""

from __future__ import annotations

import pytest
import torch

from lora_atelier.training.objective.chart import density_curves, draw_objective, weight_curve
from lora_atelier.training.objective.noise_schedule import PredictionType
from lora_atelier.training.objective.objective import ObjectiveSpec
from lora_atelier.training.objective.timesteps import TimestepSampling, TimestepSpec
from lora_atelier.training.objective.weighting import Weighting

EPS, V, FLOW = PredictionType.EPSILON, PredictionType.V_PREDICTION, PredictionType.FLOW


def test_the_weight_is_drawn_over_the_timesteps_of_sd() -> None:
    """SD's schedule passes SNR 5 between timestep 147 and 148."""
    timesteps, weights = weight_curve(ObjectiveSpec(), EPS)
    assert timesteps.tolist() == list(range(1000))
    assert weights[148:].tolist() == [1] * 852 and weights[146] < 1
    _, velocity = weight_curve(ObjectiveSpec(), V)
    assert 146 <= int(velocity.argmax()) <= 149
    assert set(weight_curve(ObjectiveSpec(), FLOW)[1].tolist()) == {1}


def test_the_weight_is_drawn_where_there_is_training_only() -> None:
    limits = TimestepSpec(min_timestep=200, max_timestep=300)
    assert weight_curve(ObjectiveSpec(timesteps=limits), EPS)[0].tolist() == list(range(200, 300))


def test_zero_terminal_snr_changes_the_curve() -> None:
    plain, stretched = (
        weight_curve(ObjectiveSpec(weighting=Weighting.DEBIASED, zero_terminal_snr=on), EPS)[1]
        for on in (False, True)
    )
    assert plain[-1] < 15 < 1000 < stretched[-1]


@pytest.mark.parametrize("kind", list(TimestepSampling))
@pytest.mark.parametrize("limits", [(0, 1000), (200, 700)])
def test_every_density_has_the_area_of_all_alike(kind: TimestepSampling, limits) -> None:
    spec = TimestepSpec(kind, min_timestep=limits[0], max_timestep=limits[1])
    for timesteps, often in density_curves(spec).values():
        assert limits[0] <= timesteps[0] and timesteps[-1] <= limits[1]
        assert torch.trapezoid(often, timesteps).item() == pytest.approx(1000, rel=0.01)


def test_a_density_is_highest_where_it_draws_most() -> None:
    ((timesteps, often),) = density_curves(TimestepSpec(TimestepSampling.MODE)).values()
    assert timesteps[often.argmax()].item() == pytest.approx(500, abs=5)
    ((timesteps, often),) = density_curves(TimestepSpec(TimestepSampling.SHIFT)).values()
    assert timesteps[often.argmax()] > 750
    shifted = density_curves(TimestepSpec())["flow, own shift of 3"]
    assert shifted[1][-1].item() == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize("size", [(960, 400), (501, 300)])
def test_the_picture_has_the_size_that_was_asked_for(size: tuple[int, int]) -> None:
    picture = draw_objective(ObjectiveSpec(), size)
    assert picture.shape == (size[1], size[0], 3) and picture.dtype is torch.float32
    assert picture.min() < 0.5 and picture.max() == 1


@pytest.mark.parametrize(
    "changed",
    [
        ObjectiveSpec(1),
        ObjectiveSpec(weighting=Weighting.NONE),
        ObjectiveSpec(timesteps=TimestepSpec(TimestepSampling.SHIFT)),
        ObjectiveSpec(timesteps=TimestepSpec(max_timestep=500)),
        ObjectiveSpec(zero_terminal_snr=True),
    ],
)
def test_another_objective_is_another_picture(changed: ObjectiveSpec) -> None:
    assert not torch.equal(draw_objective(changed), draw_objective(ObjectiveSpec()))
