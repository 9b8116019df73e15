"""The learning rate of every step, against the formulas written out and against transformers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import get_scheduler

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.optimizers.lr_scheduler import (
    LRSchedulerSpec,
    LRSchedulerType,
    Schedule,
    WarmupType,
    build_lr_scheduler,
    check_lr_scheduler,
    warmup_share,
)
from lora_atelier.training.results.loss_chart import smoothed

FULL = 2e-4
Rates = list[list[float]]


def optimizer(ratio: float = 4.0) -> torch.optim.Optimizer:
    """Two groups, as with LoRA+."""
    weights = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [w], "lr": FULL * f} for w, f in zip(weights, (1, ratio), strict=True)]
    return torch.optim.SGD(groups, lr=FULL)


def follow(
    schedule: Schedule | Any, of: torch.optim.Optimizer, losses: list[float], *, bare: bool = False
) -> Rates:
    """The rates each step is taken with, one list a step."""
    rates = []
    for loss in losses:
        rates.append([group["lr"] for group in of.param_groups])
        of.step()
        schedule.step() if bare else schedule.step(loss)
    return rates


def rates(spec: LRSchedulerSpec, steps: int, losses: list[float] | None = None) -> Rates:
    one = optimizer()
    schedule = build_lr_scheduler(one, spec, steps, samples=steps)
    return follow(schedule, one, losses or [1.0] * steps)


def first(spec: LRSchedulerSpec, steps: int) -> list[float]:
    return [both[0] for both in rates(spec, steps)]


def test_constant_climbs_and_stays() -> None:
    expected = [0, 0.5e-4, 1e-4, 1.5e-4] + [2e-4] * 6
    spec = LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.4)
    assert first(spec, 10) == pytest.approx(expected, abs=1e-12)


def test_constant_without_warm_up_is_constant() -> None:
    assert first(LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.0), 5) == [2e-4] * 5


def test_cosine_climbs_and_falls_along_half_a_cosine() -> None:
    falling = [2e-4 * 0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
    expected = [0, 1e-4, *falling]
    spec = LRSchedulerSpec(LRSchedulerType.COSINE, 0.2)
    assert first(spec, 10) == pytest.approx(expected, abs=1e-12)


def test_cosine_is_at_half_its_rate_in_the_middle() -> None:
    assert first(LRSchedulerSpec(lr_warmup_ratio=0.0), 100)[50] == pytest.approx(1e-4)


PLANNED = {
    "constant": (LRSchedulerType.CONSTANT, "", {}),
    "cosine": (LRSchedulerType.COSINE, "", {}),
    "cosine, more waves": (LRSchedulerType.COSINE, "num_cycles=1.5", {"num_cycles": 1.5}),
    "linear": (LRSchedulerType.LINEAR, "", {}),
    "restarts": (LRSchedulerType.COSINE_WITH_RESTARTS, "", {"num_cycles": 3}),
    "more restarts": (LRSchedulerType.COSINE_WITH_RESTARTS, "num_cycles=5", {"num_cycles": 5}),
    "polynomial": (LRSchedulerType.POLYNOMIAL, "", {"power": 2.0}),
    "polynomial to an end": (
        LRSchedulerType.POLYNOMIAL,
        "power=0.5 lr_end=1e-5",
        {"power": 0.5, "lr_end": 1e-5},
    ),
    "inverse_sqrt": (LRSchedulerType.INVERSE_SQRT, "", {}),
    "inverse_sqrt, slower": (LRSchedulerType.INVERSE_SQRT, "timescale=70", {"timescale": 70}),
    "min": (LRSchedulerType.COSINE_WITH_MIN_LR, "", {"min_lr_rate": 0.1}),
    "min as a rate": (LRSchedulerType.COSINE_WITH_MIN_LR, "min_lr=5e-5", {"min_lr": 5e-5}),
    "min as a share": (
        LRSchedulerType.COSINE_WITH_MIN_LR,
        "min_lr_rate=0.3",
        {"min_lr_rate": 0.3},
    ),
    "wsd, longer": (
        LRSchedulerType.WARMUP_STABLE_DECAY,
        "num_decay_steps=7 decay_type=1-sqrt min_lr_ratio=0.2",
        {"num_decay_steps": 7, "decay_type": "1-sqrt", "min_lr_ratio": 0.2},
    ),
}


@pytest.mark.parametrize(("steps", "warmup"), [(20, 0), (20, 5), (137, 13), (1000, 50)])
@pytest.mark.parametrize("name", PLANNED)
def test_planned_schedules_are_those_of_transformers(name: str, steps: int, warmup: int) -> None:
    kind, text, arguments = PLANNED[name]
    spec = LRSchedulerSpec(kind, 0.9, WarmupType.STEPS, warmup, text)
    theirs = optimizer()
    its_name = kind.value
    if kind is LRSchedulerType.CONSTANT and warmup:
        its_name = "constant_with_warmup"
    reference = get_scheduler(
        its_name, theirs, warmup, steps, scheduler_specific_kwargs=arguments or None
    )
    assert rates(spec, steps) == follow(reference, theirs, [1.0] * steps, bare=True)


@pytest.mark.parametrize(("steps", "warmup", "decay"), [(20, 5, 2), (137, 0, 14), (10, 10, 0)])
def test_warmup_stable_decay_falls_in_the_last_tenth(steps: int, warmup: int, decay: int) -> None:
    spec = LRSchedulerSpec(
        LRSchedulerType.WARMUP_STABLE_DECAY, lr_warmup=WarmupType.STEPS, lr_warmup_steps=warmup
    )
    theirs = optimizer()
    reference = get_scheduler(
        "warmup_stable_decay", theirs, warmup, steps, {"num_decay_steps": decay}
    )
    assert rates(spec, steps) == follow(reference, theirs, [1.0] * steps, bare=True)


def test_every_schedule_has_a_reference() -> None:
    others = {LRSchedulerType.WARMUP_STABLE_DECAY, LRSchedulerType.REDUCE_ON_PLATEAU}
    assert {kind for kind, _, _ in PLANNED.values()} | others == set(LRSchedulerType)


LOSSES = [1 / (1 + i) for i in range(30)] + [0.05 + 0.001 * (i % 3) for i in range(700)]


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", {"factor": 0.5, "patience": 100, "threshold": 1e-3}),
        ("factor=0.3 patience=20", {"factor": 0.3, "patience": 20, "threshold": 1e-3}),
        ("patience=9 cooldown=40 min_lr=3e-5", {"patience": 9, "cooldown": 40, "min_lr": 3e-5}),
    ],
)
def test_reduce_on_plateau_is_that_of_transformers_fed_with_the_smoothed_loss(
    text: str, arguments: dict
) -> None:
    arguments = {"factor": 0.5, "patience": 100, "threshold": 1e-3} | arguments
    kind = LRSchedulerType.REDUCE_ON_PLATEAU
    ours = rates(LRSchedulerSpec(kind, 0.0, lr_scheduler_args=text), len(LOSSES), LOSSES)
    theirs = optimizer()
    reference = get_scheduler(kind.value, theirs, scheduler_specific_kwargs=arguments)
    expected = follow(reference, theirs, smoothed(LOSSES))
    assert ours == expected
    assert expected[-1] < expected[0]  # or nothing was compared


def test_reduce_on_plateau_warms_up_and_then_falls_when_the_loss_stays() -> None:
    spec = LRSchedulerSpec(
        LRSchedulerType.REDUCE_ON_PLATEAU,
        lr_warmup=WarmupType.STEPS,
        lr_warmup_steps=4,
        lr_scheduler_args="patience=5 factor=0.5",
    )
    seen = [both[0] for both in rates(spec, 20)]
    # From step 5 on the loss is judged: the first one is the best, then five and one more.
    falling = [FULL] * 7 + [FULL / 2] * 6 + [FULL / 4] * 3
    assert seen == pytest.approx([0, FULL / 4, FULL / 2, FULL * 3 / 4, *falling])


@pytest.mark.parametrize("kind", LRSchedulerType)
@pytest.mark.parametrize("cut", [3, 150])
def test_a_schedule_goes_on_from_its_state(kind: LRSchedulerType, cut: int) -> None:
    spec = LRSchedulerSpec(kind, 0.05)
    if kind is LRSchedulerType.REDUCE_ON_PLATEAU:
        spec = LRSchedulerSpec(kind, 0.05, lr_scheduler_args="patience=11 cooldown=3")
    straight = rates(spec, 300, LOSSES[:300])
    stopped = optimizer()
    schedule = build_lr_scheduler(stopped, spec, 300, 300)
    begun = follow(schedule, stopped, LOSSES[:cut])
    later = optimizer()
    resumed = build_lr_scheduler(later, spec, 300, 300)
    resumed.load_state_dict(schedule.state_dict(), cut)
    later.load_state_dict(stopped.state_dict())
    assert begun + follow(resumed, later, LOSSES[cut:300]) == straight


@pytest.mark.parametrize("kind", LRSchedulerType)
def test_the_curve_is_what_the_steps_follow(kind: LRSchedulerType) -> None:
    spec = LRSchedulerSpec(kind, 0.1)
    schedule = check_lr_scheduler(spec, 60, 60, FULL)
    falling = [1 / (1 + i) for i in range(60)]
    followed = [both[0] / FULL for both in rates(spec, 60, falling)]
    assert [schedule.factor(step) for step in range(60)] == pytest.approx(followed, abs=1e-12)


@pytest.mark.parametrize(("ratio", "steps", "warmup"), [(0.05, 1000, 50), (0.0, 9, 0), (1, 7, 7)])
def test_warm_up_is_a_share_of_the_steps(ratio: float, steps: int, warmup: int) -> None:
    assert LRSchedulerSpec(lr_warmup_ratio=ratio).warmup_steps(steps, 10**9) == warmup


def test_warm_up_may_be_a_number_of_steps() -> None:
    spec = LRSchedulerSpec(lr_warmup_ratio=0.5, lr_warmup=WarmupType.STEPS, lr_warmup_steps=30)
    assert spec.warmup_steps(1000, 10**9) == 30


@pytest.mark.parametrize(
    ("samples", "share"),
    [
        *((1, 0.05), (9_999, 0.05), (10_000, 0.05)),
        (100_000, 0.075),  # half way to a million, on the scale of factors
        *((1_000_000, 0.1), (10**8, 0.15), (10**10, 0.2), (10**12, 0.2)),
    ],
)
def test_automatic_warm_up_grows_with_the_pictures_seen(samples: int, share: float) -> None:
    assert warmup_share(samples) == pytest.approx(share)
    spec = LRSchedulerSpec(lr_warmup_ratio=0.9, lr_warmup=WarmupType.AUTO, lr_warmup_steps=7)
    assert spec.warmup_steps(2000, samples) == round(share * 2000)


@pytest.mark.parametrize("ratio", [-0.1, 1.5, math.nan, math.inf])
def test_a_share_outside_0_to_1_is_refused(ratio: float) -> None:
    with pytest.raises(AtelierError, match=f"lr_warmup_ratio is {ratio}"):
        LRSchedulerSpec(lr_warmup_ratio=ratio)


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(AtelierError, match="lr_warmup_steps is -1"):
        LRSchedulerSpec(lr_warmup_steps=-1)


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        (
            LRSchedulerType.COSINE_WITH_RESTARTS,
            "num_cycle=3",
            "cosine_with_restarts has no argument num_cycle. Did you mean num_cycles.* "
            "It takes: num_cycles",
        ),
        (LRSchedulerType.LINEAR, "power=2", "linear has no argument power. It takes none"),
        (LRSchedulerType.CONSTANT, "power=2", "constant has no argument power. It takes none"),
        (LRSchedulerType.COSINE, "num_warmup_steps=5", "num_warmup_steps cannot be set here"),
        (LRSchedulerType.REDUCE_ON_PLATEAU, "mode=max", "mode cannot be set here"),
        (LRSchedulerType.REDUCE_ON_PLATEAU, "patience=long", "wants a number such as 10"),
        (LRSchedulerType.REDUCE_ON_PLATEAU, "factor=2", "Factor should be < 1.0"),
        (LRSchedulerType.POLYNOMIAL, "lr_end=1", "lr_scheduler polynomial: lr_end .*1.* smaller"),
        (LRSchedulerType.WARMUP_STABLE_DECAY, "decay_type=steep", "Unknown decay type: steep"),
        (LRSchedulerType.WARMUP_STABLE_DECAY, "num_decay_steps=99", "only 95 of the 100 steps"),
        (LRSchedulerType.WARMUP_STABLE_DECAY, "num_decay_steps=x", "num_decay_steps is x, but"),
        (LRSchedulerType.COSINE_WITH_MIN_LR, "min_lr=1e-5 min_lr_rate=0.1", "Give one"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_words(
    kind: LRSchedulerType, text: str, words: str
) -> None:
    with pytest.raises(AtelierError, match=words):
        check_lr_scheduler(LRSchedulerSpec(kind, lr_scheduler_args=text), 100, 100)


def test_names_are_those_of_transformers_and_stand_in_saved_workflows() -> None:
    assert [kind.value for kind in LRSchedulerType] == [
        *("constant", "cosine", "linear", "cosine_with_restarts", "polynomial", "inverse_sqrt"),
        *("warmup_stable_decay", "cosine_with_min_lr", "reduce_lr_on_plateau"),
    ]
