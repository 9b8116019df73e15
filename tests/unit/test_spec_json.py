"""Settings survive JSON, every one of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lora_atelier.training.dataset.caption_options import CaptionOptions
from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.build import Algorithm, NetworkSpec
from lora_atelier.training.network.existing_lora import ExistingLora
from lora_atelier.training.objective.loss_types import LossSpec, LossType
from lora_atelier.training.objective.objective import ObjectiveSpec
from lora_atelier.training.runs.run import TrainingSpec
from lora_atelier.training.runs.spec_json import from_json, to_json

ODD = TrainingSpec(
    network=NetworkSpec(8, 4.5, Algorithm.DORA, block_dims=(1, 2, 0), network_dropout=0.1),
    objective=ObjectiveSpec(loss=LossSpec(LossType.HUBER), guidance=3.5),
    seed=2**64 - 1,
)


@pytest.mark.parametrize("spec", [TrainingSpec(), ODD, FitOptions((64, 128)), CaptionOptions()])
def test_there_and_back(spec: object) -> None:
    assert from_json(type(spec), json.loads(json.dumps(to_json(spec)))) == spec


def test_of_a_continued_lora_the_name_stays() -> None:
    spec = TrainingSpec(network=NetworkSpec(existing=ExistingLora({}, "other.safetensors")))
    back = from_json(TrainingSpec, to_json(spec))
    assert back.network.existing.name == "other.safetensors"


def test_what_is_missing_takes_its_default() -> None:
    data = to_json(ODD)
    del data["train_batch_size"]
    assert from_json(TrainingSpec, data) == replace(ODD, train_batch_size=1)


def test_a_setting_of_a_newer_version_is_named() -> None:
    with pytest.raises(AtelierError, match="warp_drive.*Update the pack"):
        from_json(TrainingSpec, {**to_json(ODD), "warp_drive": 1})
