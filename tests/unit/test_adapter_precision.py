"""Adapters that are stored in bfloat16: how they are rounded, and that they still learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.build import Algorithm, NetworkSpec, build_network
from lora_atelier.training.network.targets import TargetLayer
from lora_atelier.training.optimizers.lr_scheduler import LRSchedulerSpec, LRSchedulerType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec, OptimizerType
from lora_atelier.training.results.lora_file import lora_metadata
from lora_atelier.training.runs.adapter_precision import (
    AdapterPrecision,
    AdapterStorage,
    stochastically_rounded,
    with_compensation,
)
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.preflight import preflight
from lora_atelier.training.runs.run import TrainingSpec, start

Make = Callable[..., Any]
CONSTANT = LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.0)
NARROW = [AdapterPrecision.BF16_STOCHASTIC, AdapterPrecision.BF16_KAHAN]
STOCHASTIC, KAHAN = NARROW
EPSILON = 2.0**-7
"""Distance of neighbouring bfloat16 between 1 and 2."""


@pytest.fixture(autouse=True)
def _own_random_numbers():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        yield


def spec_of(algorithm: Algorithm) -> NetworkSpec:
    return (
        NetworkSpec(4, 4.0, algorithm) if algorithm.has_rank else NetworkSpec(algorithm=algorithm)
    )


def network(algorithm: Algorithm = Algorithm.LORA, numbers: float = 0.0) -> nn.ModuleDict:
    """One adapter of a 32 × 32 layer, with normal numbers of that size added."""
    made = build_network(
        {"layer": TargetLayer(nn.Linear(32, 32), "layer", "layer")},
        spec_of(algorithm),
        seed=3,
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += numbers * torch.randn(parameter.shape)
    return made


def bits(values: Tensor) -> Tensor:
    return values.view(torch.int16 if values.dtype == torch.bfloat16 else torch.int32)


@pytest.mark.parametrize("size", [1.3, -1.3, 3e-20, -2.7e12])
@pytest.mark.parametrize("place", [0.02, 0.25, 0.5, 0.9])
def test_stochastic_rounding_takes_the_two_neighbours_so_often_that_the_mean_is_kept(
    size: float, place: float
) -> None:
    low = torch.tensor(size).bfloat16()
    high = (bits(low) + 1).view(torch.bfloat16)
    step = high.double() - low.double()
    value = (low.double() + place * step).float()
    count = 40_000
    rounded = stochastically_rounded(value.expand(count).contiguous())
    assert set(rounded.tolist()) == {low.item(), high.item()}
    # Standard deviation of the mean of `count` draws, in steps; five of them.
    tolerance = 5 * math.sqrt(place * (1 - place) / count)
    mean = (rounded.double().mean() - low.double()) / step
    assert float(mean) == pytest.approx(place, abs=tolerance + 1e-4)


def test_what_is_a_bfloat16_already_and_what_is_no_number_stay_themselves() -> None:
    numbers = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    every = numbers.view(torch.bfloat16)
    rounded = stochastically_rounded(every.float())
    assert torch.equal(bits(rounded)[~every.isnan()], bits(every)[~every.isnan()])
    assert torch.equal(rounded.isnan(), every.isnan())
    widest_nan = torch.full((1000,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    assert stochastically_rounded(widest_nan).isnan().all()


def test_what_is_rounded_and_what_is_lost_make_sixteen_bits_and_stay_the_same_pair() -> None:
    values = torch.randn(200_000) * torch.logspace(-6, 6, 200_000)
    rounded, lost = with_compensation(values)
    total = rounded.float() + lost.float()
    assert float(((total - values) / values).abs().max()) < 2.0**-16
    again = with_compensation(total)
    assert torch.equal(bits(again[0]), bits(rounded)) and torch.equal(again[1], lost)
    # Here the lost part rounds to half a step, and the sum is a tie that goes to the neighbour.
    tie = torch.tensor([1 + EPSILON + EPSILON / 2 - 2.0**-23])
    first, second = with_compensation(tie)
    assert (first.item(), second.item()) == (1 + 2 * EPSILON, -EPSILON / 2)


@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_between_steps_the_adapters_are_narrow_and_during_a_step_wide(
    precision: AdapterPrecision, algorithm: Algorithm
) -> None:
    adapters = network(algorithm, 0.1)
    parameters = dict(adapters["layer"].named_parameters())
    fresh = {name: p.detach().clone() for name, p in parameters.items()}
    storage = AdapterStorage(adapters, precision, seed=0, step=0)
    stays = {"dora_scale"} & parameters.keys()
    narrow = {n for n, p in parameters.items() if p.dtype is torch.bfloat16}
    assert narrow == parameters.keys() - stays and narrow
    assert all(torch.equal(parameters[name], fresh[name]) for name in stays)
    between = {name: p.detach().clone() for name, p in parameters.items()}
    for name in narrow:
        parameters[name].grad = torch.full_like(parameters[name], 0.3)
    with storage.widened(1):
        assert {p.dtype for p in parameters.values()} == {torch.float32}
        for name in narrow:
            gradient = parameters[name].grad
            assert gradient is not None and gradient.dtype is torch.float32
            assert float(gradient.max()) == torch.tensor(0.3).bfloat16().item()
        error = 2.0**-7 if precision is STOCHASTIC else 2.0**-16
        for name, value in fresh.items():
            torch.testing.assert_close(parameters[name].data, value, rtol=error, atol=0)
    assert dict(adapters["layer"].named_parameters()).items() == parameters.items()
    for name, value in between.items():  # the step has changed nothing: no second rounding
        assert torch.equal(parameters[name], value), name
    assert all(parameters[name].grad is None for name in narrow)


def test_in_fp32_nothing_happens() -> None:
    adapters = network(numbers=0.1)
    storage = AdapterStorage(adapters, AdapterPrecision.FP32, seed=0, step=0)
    before = [(p.data_ptr(), p.dtype) for p in adapters.parameters()]
    for parameter in adapters.parameters():
        parameter.grad = torch.ones_like(parameter)
    with storage.widened(1):
        assert [(p.data_ptr(), p.dtype) for p in adapters.parameters()] == before
    assert [(p.data_ptr(), p.dtype) for p in adapters.parameters()] == before
    assert all(p.grad is not None for p in adapters.parameters())


def test_the_rounding_of_a_step_depends_on_the_seed_and_the_step_alone() -> None:
    def rounded(seed: int, step: int, drawn_before: int) -> Tensor:
        adapters = network()
        storage = AdapterStorage(adapters, STOCHASTIC, seed, 0)
        torch.rand(drawn_before)
        before = torch.get_rng_state()
        with storage.widened(step), torch.no_grad():
            adapters["layer"].lora_up.weight += 0.7 + EPSILON / 7
        assert torch.equal(before, torch.get_rng_state())
        return adapters["layer"].lora_up.weight.detach()

    one = rounded(0, 4, 0)
    assert torch.equal(one, rounded(0, 4, 9))
    assert not torch.equal(one, rounded(0, 5, 0)) and not torch.equal(one, rounded(1, 4, 0))


def test_tiny_steps_are_not_lost() -> None:
    """1000 steps of a 50th of bfloat16's step: plain rounding would stand still."""
    update, steps = EPSILON / 50, 1000

    def moved(precision: AdapterPrecision) -> Tensor:
        adapters = network()
        weight = adapters["layer"].lora_up.weight
        with torch.no_grad():
            weight += 1
        storage = AdapterStorage(adapters, precision, seed=2, step=0)
        for step in range(steps):
            with storage.widened(step + 1), torch.no_grad():
                weight += update
        with storage.widened(steps):
            return weight.detach().clone() - 1

    standing = torch.tensor(1.0).bfloat16()
    assert (standing.float() + update).bfloat16() == standing
    due = update * steps
    kahan, stochastic = moved(KAHAN), moved(STOCHASTIC)
    # Kahan's rest has 8 bits itself, the last of which is EPSILON / 512 at most.
    assert float((kahan - due).abs().max()) < 0.05 * due
    # 128 random walks: each step goes EPSILON with probability 1/50.
    deviation = EPSILON * math.sqrt(steps * (1 / 50) * (49 / 50))
    assert float(stochastic.mean()) == pytest.approx(due, abs=5 * deviation / math.sqrt(128))
    assert 0.7 * deviation < float(stochastic.std()) < 1.3 * deviation


def test_kahan_follows_a_training_in_fp32_closer_than_rounding_does(
    make_run: Make, make_listener: Make
) -> None:
    """At a low rate, where a step is less than what bfloat16 can tell from nothing."""
    steps = 60
    choices = {
        "optimizer": OptimizerSpec(unet_lr=1e-5, weight_decay=0.0),
        "lr_scheduler": CONSTANT,
        "max_train_steps": steps,
    }

    def moved(precision: AdapterPrecision) -> dict[str, Tensor]:
        begun = start(make_run(adapter_precision=precision, **choices))
        first = train(begun, 0, make_listener())
        last = train(begun, steps, make_listener())
        return {k: last.network[k] - first.network[k] for k in first.network if "down" in k}

    exact, kahan, stochastic = (moved(p) for p in (AdapterPrecision.FP32, KAHAN, STOCHASTIC))

    def error(other: dict[str, Tensor]) -> float:
        return float(
            torch.cat([(other[k] - exact[k]).flatten() for k in exact]).norm()
            / torch.cat([value.flatten() for value in exact.values()]).norm()
        )

    assert error(kahan) < 0.05
    assert error(kahan) < error(stochastic) / 5


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize(
    "kind", [k for k in OptimizerType if k is not OptimizerType.PYTORCH_OPTIMIZER]
)
def test_every_optimizer_trains_them(
    make_run: Make, make_listener: Make, kind: OptimizerType, precision: AdapterPrecision
) -> None:
    optimizer = OptimizerSpec(kind)
    spec = TrainingSpec(optimizer=optimizer, adapter_precision=precision)
    if optimizer.kind.averages:
        with pytest.raises(AtelierError, match=f"adapter_precision is {precision.value}, but"):
            preflight(spec)
        return
    preflight(spec)
    rate = optimizer.kind.rates.usual
    choices = {
        "network": NetworkSpec(64, 64.0),  # enough for a state in bytes
        "optimizer": OptimizerSpec(kind, rate),
        "lr_scheduler": CONSTANT,
    }
    run = make_run(adapter_precision=precision, **choices)
    state, exact = (train(start(r), 5, make_listener()) for r in (run, make_run(**choices)))
    for key, value in state.network.items():
        assert value.dtype is torch.float32 and value.isfinite().all()
        assert value.any(), key
    moments = [t for t in _tensors(state.optimizer["optimizer"]) if t.is_floating_point()]
    assert all(t.dtype is torch.float32 for t in moments)
    ups = [key for key in state.network if "lora_up" in key]
    for key in ups:  # about the same way from nothing; Muon makes small differences large
        cosine = torch.cosine_similarity(
            state.network[key].flatten(), exact.network[key].flatten(), dim=0
        )
        assert float(cosine) > 0.8, key


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [t for part in parts if isinstance(part, dict | list | Tensor) for t in _tensors(part)]


@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_every_algorithm_trains_so(
    make_run: Make, make_listener: Make, algorithm: Algorithm, precision: AdapterPrecision
) -> None:
    choices = {
        "network": spec_of(algorithm),
        "optimizer": OptimizerSpec(unet_lr=1e-3),
        "lr_scheduler": CONSTANT,
    }
    run = make_run(adapter_precision=precision, **choices)
    state, exact = (train(start(r), 4, make_listener()) for r in (run, make_run(**choices)))
    assert all(w.isfinite().all() for w in state.network.values())
    # The first loss is that of the base in both: the beginning is not changed by rounding.
    losses = [[record.loss for record in s.history] for s in (state, exact)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_the_moving_average_takes_in_what_the_steps_gave_before_rounding(
    make_run: Make, make_listener: Make
) -> None:
    """One step from the start: ema = start + (1 − d) (w − start), d = min(0.5, 2/11)."""
    choices = {
        "optimizer": OptimizerSpec(unet_lr=1e-4, ema_decay=0.5),
        "lr_scheduler": CONSTANT,
    }
    begun = start(make_run(adapter_precision=STOCHASTIC, **choices))
    state = train(begun, 1, make_listener())
    assert state.training_weights is not None
    ups = [key for key in state.network if "lora_up" in key]
    for key in ups:  # AdamW's first step from 0 has the length of the rate
        taken = state.network[key] / (1 - 2 / 11)
        torch.testing.assert_close(taken.abs(), torch.full_like(taken, 1e-4), rtol=2e-3, atol=0)
        rounded = state.training_weights[key]
        assert torch.equal(rounded, rounded.bfloat16().float())
        assert not torch.equal(taken.bfloat16().float(), taken)


def test_the_file_says_so(make_run: Make) -> None:
    for precision in NARROW:
        facts = lora_metadata(start(make_run(adapter_precision=precision)))
        assert facts["atelier.adapter_precision"] == precision.value
    assert "atelier.adapter_precision" not in lora_metadata(start(make_run()))
