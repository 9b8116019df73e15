"""Runs that give other weights have other identities; what changes nothing changes it not."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any

import pytest
import torch

from lora_atelier.training.dataset.caption_options import CaptionOptions
from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.samples import ImageDataset, Mask, Role, Sample
from lora_atelier.training.network.build import NetworkSpec
from lora_atelier.training.network.existing_lora import ExistingLora
from lora_atelier.training.optimizers.lr_scheduler import LRSchedulerSpec
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.runs.identity import (
    WITHOUT_EFFECT,
    branch_identity,
    dataset_digest,
    run_identity,
)
from lora_atelier.training.runs.run import Ingredients, TrainingSpec

KNOWN = Ingredients("m", "c", "v", "d")
READY = {
    "conditioning": replace(KNOWN, clip="", conditioning="r"),
    "latents": replace(KNOWN, vae="", latents="r"),
}


def test_equal_runs_are_the_same() -> None:
    assert run_identity(KNOWN, TrainingSpec()) == run_identity(KNOWN, TrainingSpec())


@pytest.mark.parametrize("name", [f.name for f in fields(Ingredients)])
def test_another_ingredient_makes_another_run(name: str) -> None:
    known = READY.get(name, KNOWN)
    other = run_identity(replace(known, **{name: "x"}), TrainingSpec())
    assert other not in ("", run_identity(known, TrainingSpec()))
    assert run_identity(replace(known, **{name: ""}), TrainingSpec()) == ""


def _changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, Enum):
        return next(member for member in type(value) if member is not value)
    if isinstance(value, int | float):
        return value + 1
    if is_dataclass(value):
        first = fields(value)[0].name
        return replace(value, **{first: _changed(getattr(value, first))})
    raise TypeError(value)


@pytest.mark.parametrize("name", [f.name for f in fields(TrainingSpec)])
def test_settings_count_unless_they_change_no_weight(name: str) -> None:
    spec = TrainingSpec()
    if name == "network":
        other = replace(spec, network=replace(spec.network, network_dim=8))
    elif name == "optimizer":
        other = replace(spec, optimizer=replace(spec.optimizer, unet_lr=2e-4))
    else:
        other = replace(spec, **{name: _changed(getattr(spec, name))})
    same = run_identity(KNOWN, other) == run_identity(KNOWN, spec)
    assert same is (name in WITHOUT_EFFECT)


def test_the_lora_that_is_continued_counts_by_its_numbers() -> None:
    def run(number: float) -> str:
        existing = ExistingLora({"a": torch.tensor(number)}, "file")
        return run_identity(KNOWN, TrainingSpec(network=NetworkSpec(existing=existing)))

    assert run(1.0) == run(1.0)
    assert run(1.0) != run(2.0)


SAMPLE = Sample(ImageFile("/here/a.png", (64, 64)), "a.png", ("a fox",))
CHANGES = {
    "name": "b.png",
    "captions": ("a dog",),
    "num_repeats": 2,
    "loss_weight": 0.5,
    "role": Role.REGULARISATION,
    "mask": Mask.ALPHA,
    "fit": FitOptions(resolutions=(128,)),
    "caption_options": CaptionOptions(caption_dropout_rate=0.5),
}


def digest(*samples: Sample, content: str = "same") -> str:
    return dataset_digest(ImageDataset(samples), lambda picture: content)


@pytest.mark.parametrize("name", list(CHANGES))
def test_whatever_is_said_of_a_picture_counts(name: str) -> None:
    assert digest(replace(SAMPLE, **{name: CHANGES[name]})) != digest(SAMPLE)


@pytest.mark.parametrize("name", ["source", "license", "class_tokens"])
def test_what_only_the_file_tells_does_not(name: str) -> None:
    assert digest(replace(SAMPLE, **{name: "x"})) == digest(SAMPLE)


def test_every_field_of_a_sample_is_looked_at() -> None:
    """A new field would have to be told apart, or be named here as one without effect."""
    known = {*CHANGES, "image", "source", "license", "class_tokens", "may_be_skipped"}
    assert {f.name for f in fields(Sample)} == known


def test_a_picture_is_told_by_its_content_and_not_by_its_path() -> None:
    moved = replace(SAMPLE, image=ImageFile("/there/a.png", (64, 64)))
    assert digest(moved) == digest(SAMPLE)
    assert digest(SAMPLE, content="other") != digest(SAMPLE)


def test_validation_pictures_do_not_count() -> None:
    held_out = replace(SAMPLE, name="v.png", role=Role.VALIDATION)
    assert digest(SAMPLE, held_out) == digest(SAMPLE)


def test_branches_differ_by_place_and_settings() -> None:
    one = OptimizerSpec(unet_lr=1e-3)
    schedule = LRSchedulerSpec()
    names = {
        branch_identity("a", 3, one, schedule),
        branch_identity("b", 3, one, schedule),
        branch_identity("a", 4, one, schedule),
        branch_identity("a", 3, OptimizerSpec(), schedule),
        branch_identity("a", 3, one, LRSchedulerSpec(lr_warmup_ratio=0.1)),
    }
    assert len(names) == 5
    assert branch_identity("", 3, one, schedule) == ""
