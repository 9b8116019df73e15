"""Settings that are allowed and probably not meant are spoken of."""

from __future__ import annotations

import pytest
import torch

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.build import Algorithm, NetworkSpec
from lora_atelier.training.optimizers.advice import lr_advice, schedule_advice
from lora_atelier.training.optimizers.lr_scheduler import LRSchedulerSpec, LRSchedulerType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec, OptimizerType
from lora_atelier.training.runs.preflight import preflight
from lora_atelier.training.runs.run import TrainingSpec

KNOWN = [kind for kind in OptimizerType if kind is not OptimizerType.PYTORCH_OPTIMIZER]


def test_the_defaults_need_no_advice() -> None:
    with torch.inference_mode():  # as nodes run
        assert preflight(TrainingSpec()) == []


def test_the_host_keeps_its_random_numbers() -> None:
    before = torch.get_rng_state()
    preflight(TrainingSpec())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", KNOWN)
def test_a_usual_rate_is_left_alone_and_a_far_one_is_not(kind: OptimizerType) -> None:
    usual = OptimizerSpec(kind).kind.rates.usual
    assert lr_advice(OptimizerSpec(kind, usual)) == ""
    assert "is far below what" in lr_advice(OptimizerSpec(kind, usual / 300))
    assert "is far above what" in lr_advice(OptimizerSpec(kind, usual * 300))


def test_adamws_rate_is_too_low_for_prodigy() -> None:
    assert lr_advice(OptimizerSpec(OptimizerType.PRODIGY, 1e-4)) == (
        "unet_lr 0.0001 is far below what Prodigy is used with: 1 is usual, 0.1 to 10 is common "
        "(it finds the rate itself, and multiplies it by this)."
    )


def test_prodigys_rate_is_too_high_for_adamw() -> None:
    assert "far above what AdamW is used with: 0.0001 is usual" in lr_advice(
        OptimizerSpec(unet_lr=1)
    )


def test_lion_wants_a_third_of_adamws() -> None:
    rates = [OptimizerSpec(kind).kind.rates for kind in (OptimizerType.LION, OptimizerType.ADAMW)]
    assert rates[0].usual / rates[1].usual == pytest.approx(0.3, abs=0.04)
    assert "a third of AdamW's" in lr_advice(OptimizerSpec(OptimizerType.LION, 1e-3))


def test_a_rate_of_zero_is_meant() -> None:
    assert lr_advice(OptimizerSpec(unet_lr=0)) == ""


@pytest.mark.parametrize(("name", "spoken"), [("prodigy", True), ("lion", True), ("soap", False)])
def test_of_the_big_package_the_well_known_are_known(name: str, spoken: bool) -> None:
    spec = OptimizerSpec(OptimizerType.PYTORCH_OPTIMIZER, 1e-2, optimizer_name=name)
    assert bool(lr_advice(spec)) is spoken


def test_an_averaging_optimizer_wants_a_constant_rate() -> None:
    free = OptimizerSpec(OptimizerType.ADAMW_SCHEDULE_FREE, 3e-4)
    told = schedule_advice(free, LRSchedulerSpec(LRSchedulerType.COSINE))
    assert "lr_scheduler constant suits it better than cosine" in told
    assert schedule_advice(free, LRSchedulerSpec(LRSchedulerType.CONSTANT)) == ""


def test_an_optimizer_that_finds_its_rate_wants_a_steady_schedule() -> None:
    prodigy = OptimizerSpec(OptimizerType.PRODIGY, 1.0)
    told = schedule_advice(prodigy, LRSchedulerSpec(LRSchedulerType.COSINE_WITH_RESTARTS))
    assert "not with cosine_with_restarts" in told
    assert schedule_advice(prodigy, LRSchedulerSpec(LRSchedulerType.COSINE)) == ""
    adamw = OptimizerSpec()
    assert schedule_advice(adamw, LRSchedulerSpec(LRSchedulerType.COSINE_WITH_RESTARTS)) == ""


def test_all_advice_comes_before_the_run() -> None:
    spec = TrainingSpec(optimizer=OptimizerSpec(OptimizerType.ADAMW_SCHEDULE_FREE, 1.0))
    first, second = preflight(spec)
    assert "far above" in first and "averages its weights" in second


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"optimizer": OptimizerSpec(optimizer_args="beta=1")}, "AdamW has no argument beta"),
        (
            {
                "lr_scheduler": LRSchedulerSpec(
                    LRSchedulerType.WARMUP_STABLE_DECAY, lr_scheduler_args="num_decay_steps=50"
                ),
                "max_train_steps": 40,
            },
            "only 38 of the 40 steps",
        ),
        (
            {
                "lr_scheduler": LRSchedulerSpec(LRSchedulerType.POLYNOMIAL),
                "optimizer": OptimizerSpec(unet_lr=1e-8),
            },
            "lr_end .* must be smaller than initial lr",
        ),
        (
            {
                "network": NetworkSpec(4, 4.0, Algorithm.LOHA),
                "optimizer": OptimizerSpec(loraplus_lr_ratio=4),
            },
            "loraplus_lr_ratio is 4, but algorithm loha has no up matrices",
        ),
        (
            {
                "network": NetworkSpec(4, 4.0, scale_weight_norms=1.0),
                "optimizer": OptimizerSpec(OptimizerType.ADAMW_SCHEDULE_FREE),
            },
            "scale_weight_norms is 1, but AdamWScheduleFree averages weights",
        ),
    ],
)
def test_what_cannot_train_is_refused_before_the_run(choices: dict, words: str) -> None:
    with pytest.raises(AtelierError, match=words):
        preflight(TrainingSpec(**choices))
