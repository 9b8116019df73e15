"""The curve of the learning rate as numbers and as a picture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.optimizers.lr_chart import MAX_POINTS, draw_lr_chart, lr_curve
from lora_atelier.training.optimizers.lr_scheduler import (
    LRSchedulerSpec,
    LRSchedulerType,
    WarmupType,
)

COSINE = LRSchedulerSpec(LRSchedulerType.COSINE, 0.2)


def line(chart: Tensor) -> Tensor:
    """[N, 2] row and column of the curve's pixels."""
    return ((chart - torch.tensor([0xD1, 0x49, 0x5B]) / 255).abs().amax(dim=2) < 0.02).nonzero()


def test_the_curve_holds_every_step_of_a_short_run() -> None:
    places, shares = lr_curve(COSINE, 10, 10)
    assert places == list(range(1, 11))
    assert shares[:3] == pytest.approx([0, 0.5, 1.0])
    assert shares[6] == pytest.approx(0.5)


def test_a_long_run_is_drawn_at_some_of_its_steps_with_the_first_and_the_last() -> None:
    places, shares = lr_curve(COSINE, 1_000_000, 1_000_000)
    assert len(places) == len(shares) == MAX_POINTS
    assert (places[0], places[-1]) == (1, 1_000_000)
    assert shares[-1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("steps", [0, -1, 10_000_001])
def test_the_number_of_steps_is_held_to_its_range(steps: int) -> None:
    with pytest.raises(AtelierError, match=f"preview_steps is {steps}"):
        lr_curve(COSINE, steps, 1)


@pytest.mark.parametrize("kind", LRSchedulerType)
@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_every_schedule_is_drawn(kind: LRSchedulerType, steps: int) -> None:
    chart = draw_lr_chart(LRSchedulerSpec(kind), steps, steps)
    assert chart.shape == (360, 640, 3) and chart.dtype == torch.float32
    assert 0 <= chart.min() < 0.5 and chart.max() == 1
    if steps > 1:
        assert len(line(chart)) > 50


def test_a_falling_rate_is_drawn_falling() -> None:
    curve = line(draw_lr_chart(LRSchedulerSpec(LRSchedulerType.LINEAR, 0.0), 500, 500))
    left, right = curve[curve[:, 1] < 200], curve[curve[:, 1] > 500]
    assert right[:, 0].float().mean() > left[:, 0].float().mean() + 100  # rows count downward


def test_automatic_warm_up_is_drawn_for_the_pictures_of_the_run() -> None:
    spec = LRSchedulerSpec(LRSchedulerType.CONSTANT, lr_warmup=WarmupType.AUTO)
    few, many = lr_curve(spec, 1000, 1000)[1], lr_curve(spec, 1000, 1_000_000)[1]
    assert (few.index(1.0), many.index(1.0)) == (50, 100)
