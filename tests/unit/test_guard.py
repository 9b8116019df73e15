"""A run that goes wrong is told from one that does not, and stopped or rolled back."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_atelier.training.network.build import NetworkSpec
from lora_atelier.training.optimizers.lr_scheduler import LRSchedulerSpec, LRSchedulerType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.runs.guard import (
    NOT_FINITE_IN_A_ROW,
    SETTLED,
    SPIKE,
    Guard,
    OnDivergence,
)
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import StepRecord, TrainingState, start
from lora_atelier.training.runs.watchman import MAX_ROLLBACKS, TrainingDiverged, Watchman

Make = Callable[..., Any]
CONSTANT = LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.0)


def records(losses: Iterable[float], norms: Iterable[float] | None = None) -> list[StepRecord]:
    losses = list(losses)
    norms = [1.0] * len(losses) if norms is None else list(norms)
    return [
        StepRecord(i + 1, 0, loss, 1e-4, norm, skipped=not math.isfinite(loss + norm))
        for i, (loss, norm) in enumerate(zip(losses, norms, strict=True))
    ]


def first_trouble(history: list[StepRecord], **choices: Any) -> tuple[int, str] | None:
    guard = Guard(**choices)
    for record in history:
        if (trouble := guard.look(record)) is not None:
            return record.step, trouble
    return None


def noisy(seed: int, mean: Callable[[int], float], steps: int) -> list[float]:
    """Losses that scatter as those of diffusion models do: log-normal, a factor of 3 either way."""
    rng = random.Random(seed)
    return [mean(i) * math.exp(rng.gauss(-0.5, 1.0)) for i in range(steps)]


@pytest.mark.parametrize("seed", range(20))
def test_healthy_runs_are_left_alone(seed: int) -> None:
    flat = noisy(seed, lambda i: 0.1, 3000)
    falling = noisy(seed, lambda i: 0.05 + 0.3 * math.exp(-i / 300), 3000)
    norms = noisy(seed + 100, lambda i: 0.5 + i / 1000, 3000)
    assert first_trouble(records(flat, norms)) is None
    assert first_trouble(records(falling, norms)) is None


@pytest.mark.parametrize("seed", range(20))
def test_a_loss_that_climbs_away_is_seen(seed: int) -> None:
    losses = noisy(seed, lambda i: 0.1 if i < 500 else 0.1 * 1.02 ** (i - 500), 1000)
    step, trouble = first_trouble(records(losses))
    assert 520 < step < 700
    assert "has climbed" in trouble


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_breaks_in_its_first_steps_is_seen(seed: int) -> None:
    losses = noisy(seed, lambda i: 0.07 if i < 30 else 1.0, 200)
    step, trouble = first_trouble(records(losses))
    assert step <= 100 and "times that of the first 20 steps" in trouble


def test_a_gradient_far_outside_its_history_is_seen() -> None:
    norms = [1.0] * 200 + [SPIKE * 1.01]
    step, trouble = first_trouble(records([0.1] * 201, norms))
    assert step == 201 and "gradient was 101 long, 101 times" in trouble
    assert first_trouble(records([0.1] * 201, [1.0] * 200 + [SPIKE * 0.99])) is None
    early = [1.0] * (SETTLED - 1) + [SPIKE * 10]
    assert first_trouble(records([0.1] * SETTLED, early)) is None


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_several_steps_in_a_row_that_are_no_numbers(what: str) -> None:
    n = NOT_FINITE_IN_A_ROW
    bad, good = [math.nan] * n, [1.0] * n
    losses, norms = (bad, good) if what == "loss" else (good, bad)
    step, trouble = first_trouble(records(losses, norms))
    assert step == n and f"had a {what} that is not a finite number" in trouble
    broken_up = [math.nan] * (n - 1) + [0.1]
    assert first_trouble(records(broken_up * 10)) is None


def test_overflows_under_loss_scaling_have_more_patience() -> None:
    history = records([0.1] * 25, [math.inf] * 25)
    assert first_trouble(history, scaling=True)[0] == 20


def test_ignore_looks_for_nothing_but_what_is_not_finite() -> None:
    climbing = records([0.1] * 100 + [10.0] * 100, [1.0] * 150 + [1e6] * 50)
    assert first_trouble(climbing) is not None
    assert first_trouble(climbing, ignore=True) is None
    assert first_trouble(records([math.nan] * 9), ignore=True) is not None


def test_a_resumed_guard_judges_as_one_that_saw_everything() -> None:
    losses = noisy(3, lambda i: 0.1 if i < 300 else 0.1 * 1.02 ** (i - 300), 600)
    history = records(losses)
    step, trouble = first_trouble(history)
    for cut in (1, 100, step - 1):
        guard = Guard(history[:cut])
        found = next((r.step, t) for r in history[cut:] if (t := guard.look(r)) is not None)
        assert found == (step, trouble)


# In the loop


class Poison:
    """Multiplies the predictions of some calls by a factor."""

    def __init__(self, factor: float, calls: Iterable[int]) -> None:
        self.factor, self.calls, self.count = factor, set(calls), 0

    def __call__(self, prediction: Tensor) -> Tensor:
        self.count += 1
        return prediction * self.factor if self.count in self.calls else prediction


def poisoned(
    make_run: Make, make_model: Make, poison: Poison, choice: OnDivergence, **changes: Any
) -> TrainingState:
    return start(
        make_run(
            model=make_model(poison),
            lr_scheduler=CONSTANT,
            on_divergence=choice,
            **{"max_train_steps": 500, **changes},
        )
    )


def test_stop_hands_over_the_last_good_state(
    make_run: Make, make_model: Make, make_listener: Make
) -> None:
    poison = Poison(100.0, range(121, 10_000))
    listener = make_listener()
    with pytest.raises(TrainingDiverged, match=r"at step 121: the gradient was .*kept"):
        train(poisoned(make_run, make_model, poison, OnDivergence.STOP), 200, listener)
    (kept,) = listener.interrupted
    assert kept.step == 100
    healthy = poisoned(make_run, make_model, Poison(1.0, ()), OnDivergence.STOP)
    expected = train(healthy, 100, make_listener())
    assert all(torch.equal(kept.network[k], v) for k, v in expected.network.items())


def test_roll_back_goes_on_at_half_the_rate(
    make_run: Make, make_model: Make, make_listener: Make
) -> None:
    poison = Poison(100.0, [121])  # and then the model is well again
    listener = make_listener()
    state = train(poisoned(make_run, make_model, poison, OnDivergence.ROLL_BACK), 200, listener)
    ((back, message),) = listener.rolled_back
    assert back.step == 100
    assert "Step 121" in message and "Rolled back to step 100" in message
    assert state.step == 200
    assert [record.step for record in state.history] == list(range(1, 201))
    assert {record.learning_rate for record in state.history[:100]} == {1e-4}
    assert {record.learning_rate for record in state.history[100:]} == {5e-5}


def test_from_the_very_beginning_each_try_is_at_half_the_rate_of_the_one_before(
    make_run: Make, make_model: Make, make_listener: Make
) -> None:
    """There is no good state before step 50 but the first."""
    poison = Poison(math.nan, range(11, 10_000))
    listener = make_listener()
    with pytest.raises(TrainingDiverged):
        train(poisoned(make_run, make_model, poison, OnDivergence.ROLL_BACK), 60, listener)
    assert [back.step for back, _ in listener.rolled_back] == [0, 0, 0]
    first = {record.learning_rate for record, _ in listener.records[:10]}
    assert first == {1e-4}
    assert "at 0.125 of the learning rate" in listener.rolled_back[-1][1]


def test_a_run_in_pieces_is_judged_as_one(
    make_run: Make, make_model: Make, make_listener: Make
) -> None:
    """A piece that begins in the middle of trouble does not take that for a good state."""
    poison = Poison(100.0, range(121, 10_000))
    state = poisoned(make_run, make_model, poison, OnDivergence.STOP)
    watchman, listener = Watchman(state, 200), make_listener()
    with pytest.raises(TrainingDiverged, match="state of step 100 is kept"):
        for _ in range(200):
            state = train(state, 1, listener, watchman)
    assert listener.interrupted[0].step == 100


def test_what_cannot_be_saved_is_ended(
    make_run: Make, make_model: Make, make_listener: Make
) -> None:
    poison = Poison(100.0, range(121, 10_000))
    listener = make_listener()
    with pytest.raises(TrainingDiverged, match=f"Going back {MAX_ROLLBACKS} times did not help"):
        train(poisoned(make_run, make_model, poison, OnDivergence.ROLL_BACK), 200, listener)
    assert len(listener.rolled_back) == MAX_ROLLBACKS
    assert listener.interrupted[0].step == 100


def test_a_run_that_was_rolled_back_keeps_its_rate_when_it_is_resumed(
    make_run: Make, make_model: Make, make_listener: Make
) -> None:
    poison = Poison(100.0, [121])
    begun = poisoned(make_run, make_model, poison, OnDivergence.ROLL_BACK)
    half = train(begun, 150, make_listener())
    rest = train(half, 10, make_listener())
    assert rest.history[-1].learning_rate == 5e-5


def test_weights_that_are_no_numbers_never_get_out(make_run: Make, make_listener: Make) -> None:
    healthy = train(start(make_run(lr_scheduler=CONSTANT)), 2, make_listener())
    name = next(k for k in healthy.network if k.endswith("lora_up.weight"))
    network = {**healthy.network, name: torch.full_like(healthy.network[name], math.nan)}
    listener = make_listener()
    with pytest.raises(TrainingDiverged, match="5 steps in a row had a loss"):
        train(replace(healthy, network=network), 50, listener)


def test_a_rate_of_a_thousand(make_run: Make, make_listener: Make) -> None:
    run = make_run(
        network=NetworkSpec(4, 4.0),
        optimizer=OptimizerSpec(unet_lr=1e3),
        lr_scheduler=CONSTANT,
        max_train_steps=500,
    )
    listener = make_listener()
    with pytest.raises(TrainingDiverged, match="rate was 1e"):
        train(start(run), 500, listener)
    assert all(bool(t.isfinite().all()) for t in listener.interrupted[0].network.values())
