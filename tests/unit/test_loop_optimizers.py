"""The optimizer's and the schedule's settings decide what the loop does: none is decoration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_atelier.training.network.build import NetworkSpec
from lora_atelier.training.optimizers.lr_scheduler import (
    LRSchedulerSpec,
    LRSchedulerType,
    WarmupType,
)
from lora_atelier.training.optimizers.optimizer import OptimizerSpec, OptimizerType
from lora_atelier.training.results.lora_file import lora_metadata
from lora_atelier.training.results.loss_chart import smoothed
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingState, start

Make = Callable[..., Any]
CONSTANT = LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.0)
STEPS = 4


@pytest.fixture
def trained(make_run: Make, make_listener: Make) -> Callable[..., TrainingState]:
    def run(steps: int = STEPS, lr_scheduler: LRSchedulerSpec = CONSTANT, **choices: Any):
        choices = {"lr_scheduler": lr_scheduler, "network": NetworkSpec(64, 64.0)} | choices
        return train(start(make_run(**choices)), steps, make_listener())

    return run


def differ(one: TrainingState, other: TrainingState) -> bool:
    return any(not torch.equal(one.network[key], other.network[key]) for key in one.network)


def rates(state: TrainingState) -> list[float]:
    return [record.learning_rate for record in state.history]


@pytest.mark.parametrize(
    "change",
    [
        {"unet_lr": 2e-4},
        {"weight_decay": 0.3},
        {"max_grad_norm": 0.001},
        {"loraplus_lr_ratio": 8.0},
        {"betas": "0.5, 0.9"},
        {"eps": "0.1"},
        {"optimizer_args": "amsgrad=True"},
        {"ema_decay": 0.9},
        {"optimizer_type": OptimizerType.PYTORCH_OPTIMIZER, "optimizer_name": "adan"},
    ],
    ids=lambda change: " ".join(change),
)
def test_every_setting_of_the_optimizer_changes_the_lora(trained: Make, change: dict) -> None:
    steps = 12  # amsgrad shows when the second moment has once been larger
    plain = trained(steps, max_train_steps=steps, optimizer=OptimizerSpec())
    assert differ(plain, trained(steps, max_train_steps=steps, optimizer=OptimizerSpec(**change)))


def test_another_name_is_another_optimizer(trained: Make) -> None:
    kind = OptimizerType.PYTORCH_OPTIMIZER
    names = ("soap", "adan", "schedulefreeadamw")
    soap, adan, free = (trained(optimizer=OptimizerSpec(kind, optimizer_name=n)) for n in names)
    assert differ(soap, adan) and differ(adan, free)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_all_optimizers_train_and_no_two_alike(trained: Make) -> None:
    kinds = [kind for kind in OptimizerType if kind is not OptimizerType.PYTORCH_OPTIMIZER]
    states = {
        kind: trained(optimizer=OptimizerSpec(kind, OptimizerSpec(kind).kind.rates.usual))
        for kind in kinds
    }
    alike = {OptimizerType.ADAMW_8BIT, OptimizerType.PAGED_ADAMW_8BIT}  # but for their memory
    for kind, state in states.items():
        up = [value for key, value in state.network.items() if "lora_up" in key]
        assert all(value.isfinite().all() and value.any() for value in up), kind
        same = {other for other in kinds if not differ(state, states[other])}
        assert same == (alike if kind in alike else {kind})


@pytest.mark.parametrize(
    "change",
    [
        {"lr_scheduler": LRSchedulerType.LINEAR},
        {"lr_warmup_ratio": 0.5},
        {"lr_warmup": WarmupType.STEPS, "lr_warmup_steps": 3},
        {"lr_warmup": WarmupType.AUTO, "lr_warmup_ratio": 0.5},
        {"lr_scheduler_args": "num_cycles=1.5"},
    ],
    ids=lambda change: " ".join(change),
)
def test_every_setting_of_the_schedule_changes_the_rates(trained: Make, change: dict) -> None:
    plain = {"lr_scheduler": LRSchedulerType.COSINE, "lr_warmup_ratio": 0.0}
    before, after = (
        trained(lr_scheduler=LRSchedulerSpec(**spec), max_train_steps=40)
        for spec in (plain, plain | change)
    )
    assert rates(before) != rates(after) and differ(before, after)


def test_automatic_warm_up_counts_the_pictures_of_all_micro_steps(trained: Make) -> None:
    """100 steps of 400 × 25 pictures are a million: 10 steps of warm-up, not 5."""
    spec = LRSchedulerSpec(LRSchedulerType.CONSTANT, lr_warmup=WarmupType.AUTO)
    choices = {"max_train_steps": 100, "network": NetworkSpec(1, 1.0), "repeats": (1,)}
    state = trained(2, spec, train_batch_size=400, gradient_accumulation_steps=25, **choices)
    assert rates(state) == pytest.approx([0, 1e-4 / 10])
    assert rates(trained(2, spec, **choices)) == pytest.approx([0, 1e-4 / 5])
    assert lora_metadata(state)["ss_lr_warmup_steps"] == "10"


def test_the_moving_average_is_that_of_a_loop_written_out_by_hand(trained: Make) -> None:
    """The weights after 1, 2, … steps of a run without it, averaged in plain numbers."""
    optimizer = {"unet_lr": 1e-3, "weight_decay": 0.1}
    averaged = trained(6, optimizer=OptimizerSpec(ema_decay=0.35, **optimizer))
    after = [trained(n, optimizer=OptimizerSpec(**optimizer)).network for n in range(1, 7)]
    begin = start(averaged.run).network
    for key, value in averaged.network.items():
        if key.endswith("alpha"):
            assert torch.equal(value, begin[key])
            continue
        expected = begin[key].double()
        for step, weights in enumerate(after, start=1):
            decay = min(0.35, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * weights[key].double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(averaged.training_weights[key], after[-1][key])


def test_the_moving_average_does_not_disturb_the_run(trained: Make) -> None:
    plain = trained(optimizer=OptimizerSpec())
    averaged = trained(optimizer=OptimizerSpec(ema_decay=0.99))
    assert averaged.history == plain.history


def _up(state: TrainingState) -> dict[str, Tensor]:
    return {key: value for key, value in state.network.items() if "lora_up" in key}


def test_with_loraplus_the_first_step_is_longer_by_the_ratio(trained: Make) -> None:
    """AdamW's first step has the length of the rate, whatever the gradient."""
    choices = {"weight_decay": 0.0, "eps": "1e-30"}
    slow, fast = (
        _up(trained(1, optimizer=OptimizerSpec(loraplus_lr_ratio=ratio, **choices)))
        for ratio in (1.0, 16.0)
    )
    for key, value in slow.items():
        torch.testing.assert_close(fast[key], 16 * value, rtol=1e-4, atol=1e-9)


def test_the_history_tells_the_rate_that_prodigy_found(trained: Make) -> None:
    optimizer = OptimizerSpec(
        OptimizerType.PRODIGY,
        1.0,
        optimizer_args="use_bias_correction=False",  # finds it sooner
    )
    state = trained(
        30, optimizer=optimizer, max_train_steps=30, repeats=(1,), gradient_accumulation_steps=4
    )
    found = state.optimizer["optimizer"]["param_groups"][0]["d"]
    assert found > 1e-5
    assert rates(state)[0] == pytest.approx(1e-6)
    assert rates(state)[-1] == pytest.approx(found)


def test_the_history_tells_a_warm_up_of_the_optimizers_own(trained: Make) -> None:
    optimizer = OptimizerSpec(
        OptimizerType.ADAMW_SCHEDULE_FREE, 1e-3, optimizer_args="warmup_steps=4"
    )
    assert rates(trained(6, optimizer=optimizer)) == pytest.approx(
        [0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3]
    )


def test_the_plateau_is_looked_for_in_the_loss_of_the_steps(trained: Make) -> None:
    spec = LRSchedulerSpec(
        LRSchedulerType.REDUCE_ON_PLATEAU,
        0.0,
        lr_scheduler_args="patience=2 threshold=0.0 factor=0.5 eps=0.0",
    )
    state = trained(40, spec, max_train_steps=40, optimizer=OptimizerSpec(unet_lr=1e-2))
    other = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        other, factor=0.5, patience=2, threshold=0.0, eps=0.0
    )
    expected = []
    for loss in smoothed([record.loss for record in state.history]):
        expected.append(other.param_groups[0]["lr"])
        plateau.step(loss)
    assert rates(state) == expected
    assert 0 < len(set(expected)) - 1 < 40 // 3  # the loss decides, not the patience alone


def test_an_optimizers_random_numbers_are_those_of_the_runs_seed(trained: Make) -> None:
    """dash draws a vector at the start."""
    optimizer = OptimizerSpec(OptimizerType.PYTORCH_OPTIMIZER, optimizer_name="dash")
    torch.manual_seed(1)
    one = trained(12, optimizer=optimizer)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    other = trained(12, optimizer=optimizer)
    assert not differ(one, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (OptimizerSpec(OptimizerType.LION), "Lion"),
        (
            OptimizerSpec(optimizer_args="amsgrad=True, foreach=False"),
            "AdamW(amsgrad=True,foreach=False)",
        ),
        (OptimizerSpec(OptimizerType.PYTORCH_OPTIMIZER, optimizer_name="soap"), "soap"),
    ],
)
def test_the_file_says_which_optimizer_it_was(
    trained: Make, optimizer: OptimizerSpec, told: str
) -> None:
    assert lora_metadata(trained(1, optimizer=optimizer))["ss_optimizer"] == told
