"""Every picture has its own seed, and a name that changes with whatever changes the picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.generate.plan import Base, GenerateSpec, batches, plan
from lora_atelier.training.generate.prompts import Prompt, PromptSet

BASE = Base("fox.safetensors", "d1", (4, 8, 8))
PROMPTS = PromptSet(tuple(Prompt(f"a {n}, flat", f"sks, a {n}", n) for n in ("fox", "cat", "owl")))


def names(prompts: PromptSet, spec: GenerateSpec, base: Base = BASE) -> list[str]:
    return [picture.file_name for picture in plan(prompts, spec, base)]


def test_seeds_count_on_and_every_prompt_comes_once_before_one_comes_twice() -> None:
    planned = plan(PROMPTS, GenerateSpec(images_per_prompt=2, seed=10), BASE)
    assert [(p.prompt.name, p.seed) for p in planned] == [
        *(("fox", 10), ("cat", 11), ("owl", 12)),
        *(("fox", 13), ("cat", 14), ("owl", 15)),
    ]


def test_seeds_begin_again_after_the_last() -> None:
    planned = plan(PROMPTS, GenerateSpec(seed=2**64 - 1), BASE)
    assert [picture.seed for picture in planned] == [2**64 - 1, 0, 1]


def test_more_pictures_of_each_prompt_leave_the_first_as_they_are() -> None:
    few, many = (names(PROMPTS, GenerateSpec(images_per_prompt=n)) for n in (1, 3))
    assert many[:3] == few
    assert len(set(many)) == 9


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"steps": 21},
        {"cfg": 7.5},
        {"sampler_name": "heun"},
        {"scheduler": "karras"},
        {"negative": "blurred"},
        {"guidance": 3.5},
    ],
)
def test_whatever_changes_a_picture_changes_its_name(change: dict[str, Any]) -> None:
    assert not set(names(PROMPTS, GenerateSpec())) & set(names(PROMPTS, GenerateSpec(**change)))


@pytest.mark.parametrize("change", [{"digest": "d2"}, {"latent": (4, 8, 16)}])
def test_so_do_the_models_and_the_size(change: dict[str, Any]) -> None:
    spec = GenerateSpec()
    assert not set(names(PROMPTS, spec)) & set(names(PROMPTS, spec, replace(BASE, **change)))


def test_the_caption_and_the_name_of_the_base_file_do_not() -> None:
    spec = GenerateSpec(cfg=7)
    other = PromptSet(tuple(replace(p, caption="something else") for p in PROMPTS.prompts))
    moved = replace(BASE, name="moved.safetensors")
    assert names(other, GenerateSpec(cfg=7.0), moved) == names(PROMPTS, spec)


def test_a_prompt_that_comes_twice_is_two_pictures_and_a_long_name_is_cut() -> None:
    long = Prompt("a fox", "a fox", "狐" * 100)
    one, two = names(PromptSet((long, long)), GenerateSpec())
    assert one != two
    assert len(one.encode()) < 120 and one.startswith("狐" * 26 + "_")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images_per_prompt": 0}, "images_per_prompt is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"cfg": float("nan")}, "cfg is nan"),
        ({"guidance": 101}, "guidance is 101"),
    ],
)
def test_what_cannot_be_is_refused_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(AtelierError, match=message):
        GenerateSpec(**change)


def test_more_pictures_than_a_folder_holds_are_refused_before_they_are_listed() -> None:
    prompts = PromptSet((Prompt("a fox", "fox", "fox"),) * 1000)
    with pytest.raises(AtelierError, match="images_per_prompt 10000 make 10000000 pictures"):
        plan(prompts, GenerateSpec(10_000), BASE)


def test_batches_keep_the_order() -> None:
    planned = plan(PROMPTS, GenerateSpec(images_per_prompt=2), BASE)
    assert [len(batch) for batch in batches(planned, 4)] == [4, 2]
    assert [picture for batch in batches(planned, 4) for picture in batch] == planned
