"""float16: the loop around torch's own loss scaler, here on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_atelier.training.base_model.precision import accelerating
from lora_atelier.training.network.build import NetworkSpec
from lora_atelier.training.optimizers.lr_scheduler import LRSchedulerSpec, LRSchedulerType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.runs import loop
from lora_atelier.training.runs.adapter_precision import AdapterPrecision
from lora_atelier.training.runs.guard import OVERFLOWS_IN_A_ROW, OnDivergence
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingState, start
from lora_atelier.training.runs.watchman import TrainingDiverged

Make = Callable[..., Any]
CONSTANT = LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.0)
SCALE = 1024.0
TOO_LARGE = 2.0**40
"""A gradient of this is not finite in float16."""
PRECISIONS = list(AdapterPrecision)


@pytest.fixture
def scaled_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let runs have a loss scaler that begins at this: accelerate makes one on GPUs only."""

    def use(scale: float) -> None:
        @contextmanager
        def scaling(device: torch.device, dtype: torch.dtype) -> Iterator[Any]:
            with accelerating(device, torch.float16) as accelerator:
                accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
                accelerator.native_amp = True
                yield accelerator

        monkeypatch.setattr(loop, "accelerating", scaling)

    return use


@pytest.fixture
def half_run(make_run: Make, make_model: Make) -> Callable[..., TrainingState]:
    """A run at step 0 whose model computes in float16, which people cannot choose on the CPU."""

    class Half(make_model):
        def compute_dtype(self, choice: object) -> torch.dtype:
            return torch.float16

    def begin(answer: Callable[[Tensor], Tensor] = lambda x: x, **choices: Any) -> TrainingState:
        return start(make_run(model=Half(answer), lr_scheduler=CONSTANT, **choices))

    return begin


class Overflow:
    """Makes the gradient of the given forward passes (1 is the first) far too large."""

    def __init__(self, *passes: int) -> None:
        self.passes, self.count = passes, 0

    def __call__(self, prediction: Tensor) -> Tensor:
        self.count += 1
        if self.count in self.passes:
            prediction.register_hook(lambda gradient: gradient * TOO_LARGE)
        return prediction


def scale_of(state: TrainingState) -> float:
    return state.optimizer["scaler"]["scale"]


def same(one: TrainingState, other: TrainingState) -> bool:
    return all(torch.equal(one.network[key], other.network[key]) for key in one.network)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_overflow_skips_the_step_and_halves_the_scale(
    half_run: Make, make_listener: Make, scaled_by: Make, precision: AdapterPrecision
) -> None:
    scaled_by(SCALE)
    choices = {"adapter_precision": precision, "optimizer": OptimizerSpec(ema_decay=0.5)}
    before = train(half_run(**choices), 2, make_listener())
    after = train(half_run(Overflow(3), **choices), 3, make_listener())
    assert [record.skipped for record in after.history] == [False, False, True]
    assert (scale_of(before), scale_of(after)) == (SCALE, SCALE / 2)
    assert same(before, after)
    for key, weight in before.training_weights.items():
        assert torch.equal(weight, after.training_weights[key])
    moments = [s.optimizer["optimizer"]["state"] for s in (before, after)]
    for place, moment in moments[0].items():
        assert all(torch.equal(value, moments[1][place][name]) for name, value in moment.items())
    assert not math.isfinite(after.history[2].grad_norm)
    again = train(after, 1, make_listener())
    assert not again.history[3].skipped and not same(after, again)


def test_a_scale_that_is_too_large_comes_down_by_itself(
    half_run: Make, make_listener: Make, scaled_by: Make
) -> None:
    scaled_by(2.0**28)
    state = train(half_run(max_train_steps=30), 30, make_listener())
    skipped = [record.skipped for record in state.history]
    count = sum(skipped)
    assert skipped[0] and not any(skipped[20:])
    assert scale_of(state) == 2.0 ** (28 - count)


def test_what_always_overflows_is_ended_in_words(
    half_run: Make, make_listener: Make, scaled_by: Make
) -> None:
    scaled_by(2.0**100)
    listener = make_listener()
    with pytest.raises(TrainingDiverged, match="20 steps in a row .*mixed_precision bf16"):
        train(half_run(max_train_steps=30), 30, listener)
    (kept,) = listener.interrupted
    assert kept.step == 0, "the last good state"
    assert len(listener.records) == OVERFLOWS_IN_A_ROW - 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_clipped_after_they_were_unscaled(
    half_run: Make,
    make_run: Make,
    make_listener: Make,
    scaled_by: Make,
    precision: AdapterPrecision,
) -> None:
    """AdamW's first moment is a tenth of the gradient that reached it."""

    def first_step(begun: TrainingState) -> tuple[float, float]:
        state = train(begun, 1, make_listener())
        moments = [s["exp_avg"] for s in state.optimizer["optimizer"]["state"].values()]
        length = math.sqrt(sum(m.square().sum().item() for m in moments)) * 10
        return length, state.history[0].grad_norm

    limit = 0.01
    optimizer = OptimizerSpec(max_grad_norm=limit)
    exact = first_step(start(make_run(optimizer=optimizer)))
    scaled_by(SCALE)
    length, norm = first_step(half_run(optimizer=optimizer, adapter_precision=precision))
    assert exact[1] > limit  # there is something to clip
    assert length == pytest.approx(limit, rel=1e-3)
    assert norm == pytest.approx(exact[1], rel=2e-2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_float16_with_any_adapters_learns_what_float32_learns(
    half_run: Make,
    make_run: Make,
    make_listener: Make,
    scaled_by: Make,
    precision: AdapterPrecision,
) -> None:
    choices = {
        "network": NetworkSpec(8, 8.0),
        "optimizer": OptimizerSpec(unet_lr=1e-3),
        "max_train_steps": 20,
        "train_batch_size": 5,
    }
    exact = train(start(make_run(lr_scheduler=CONSTANT, **choices)), 20, make_listener())
    scaled_by(2.0**16)
    state = train(half_run(adapter_precision=precision, **choices), 20, make_listener())
    assert not any(record.skipped for record in state.history)
    ups = [
        torch.cat([s.network[k].flatten() for k in s.network if "up" in k]) for s in (state, exact)
    ]
    assert float(torch.cosine_similarity(*ups, dim=0)) > 0.98
    assert state.history[-1].loss == pytest.approx(exact.history[-1].loss, rel=1e-2)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_that_goes_on_keeps_its_scale(
    half_run: Make, make_listener: Make, scaled_by: Make, precision: AdapterPrecision
) -> None:
    scaled_by(SCALE)
    straight = train(half_run(Overflow(2), adapter_precision=precision), 5, make_listener())
    first = train(half_run(Overflow(2), adapter_precision=precision), 3, make_listener())
    assert scale_of(first) == SCALE / 2
    scaled_by(7.0)  # must not count any more
    resumed = train(first, 2, make_listener())
    assert same(resumed, straight)
    assert str(resumed.history) == str(straight.history)  # one norm is not a number
    assert resumed.optimizer["scaler"] == straight.optimizer["scaler"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_after_a_rollback_gradients_are_unscaled_once(
    half_run: Make,
    make_run: Make,
    make_listener: Make,
    scaled_by: Make,
    precision: AdapterPrecision,
) -> None:
    """20 overflows leave a scale of 1024, and the run begins again."""
    exact = train(start(make_run()), 1, make_listener()).history[0]
    scaled_by(2.0**30)
    overflow = Overflow(*range(1, OVERFLOWS_IN_A_ROW + 1))
    choices = {"adapter_precision": precision, "on_divergence": OnDivergence.ROLL_BACK}
    state = train(half_run(overflow, max_train_steps=30, **choices), 22, make_listener())
    assert len(state.history) == 22 and scale_of(state) == 1024.0
    assert state.history[0].grad_norm == pytest.approx(exact.grad_norm, rel=2e-2)
    assert not any(record.skipped for record in state.history)
