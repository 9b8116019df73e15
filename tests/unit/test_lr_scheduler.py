"""The learning rate of every step, against the formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.lr_scheduler import LRSchedulerSpec, LRSchedulerType, build_lr_scheduler


def _rates(kind: LRSchedulerType, warmup_ratio: float, steps: int) -> list[float]:
    """The rate each step is taken with."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2e-4)
    scheduler = build_lr_scheduler(optimizer, LRSchedulerSpec(kind, warmup_ratio), steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_constant_climbs_and_stays() -> None:
    expected = [0, 0.5e-4, 1e-4, 1.5e-4] + [2e-4] * 6
    assert _rates(LRSchedulerType.CONSTANT, 0.4, 10) == pytest.approx(expected, abs=1e-12)


def test_constant_without_warm_up_is_constant() -> None:
    assert _rates(LRSchedulerType.CONSTANT, 0.0, 5) == [2e-4] * 5


def test_cosine_climbs_and_falls_along_half_a_cosine() -> None:
    falling = [2e-4 * 0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    expected = [0, 1e-4, *falling]
    assert _rates(LRSchedulerType.COSINE, 0.2, 10) == pytest.approx(expected, abs=1e-12)


def test_cosine_is_at_half_its_rate_in_the_middle() -> None:
    assert _rates(LRSchedulerType.COSINE, 0.0, 100)[50] == pytest.approx(1e-4)


@pytest.mark.parametrize(("ratio", "steps", "warmup"), [(0.05, 1000, 50), (0.0, 9, 0), (1, 7, 7)])
def test_warm_up_is_a_share_of_the_steps(ratio: float, steps: int, warmup: int) -> None:
    assert LRSchedulerSpec(lr_warmup_ratio=ratio).warmup_steps(steps) == warmup


@pytest.mark.parametrize("ratio", [-0.1, 1.5, math.nan, math.inf])
def test_a_share_outside_0_to_1_is_refused(ratio: float) -> None:
    with pytest.raises(AtelierError, match=f"lr_warmup_ratio is {ratio}"):
        LRSchedulerSpec(lr_warmup_ratio=ratio)
