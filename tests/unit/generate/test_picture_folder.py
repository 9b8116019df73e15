"""Whenever the process is killed: opening the folder again finds whole pictures, no half ones."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_atelier.training.dataset.folder import load_folder
from lora_atelier.training.dataset.samples import Role
from lora_atelier.training.dataset.save import IfExists, save_dataset
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.files import partial_of
from lora_atelier.training.generate.picture_folder import PictureFolder
from lora_atelier.training.generate.plan import Base, GenerateSpec, Planned, plan
from lora_atelier.training.generate.prompts import Prompt, PromptSet
from lora_atelier.training.generate.records import (
    Provenance,
    parameters,
    png,
    record,
    to_picture,
)

SIZE = (48, 32)
BASE = Base("fox.safetensors", "d1", (4, 4, 6))
SPEC = GenerateSpec(seed=5, negative="blurred", guidance=3.5)
PROMPTS = PromptSet(
    tuple(
        Prompt(f"a {name}, flat", f"sks, a {name}", name, name, "flat", "sks")
        for name in ("fox", "cat", "owl", "elk")
    )
)
PLANNED = plan(PROMPTS, SPEC, BASE)
RECORD = partial(record, spec=SPEC, base=BASE, provenance=Provenance(license="MIT"))


def content(picture: Planned) -> bytes:
    noise = torch.rand(32, 48, 3, generator=torch.Generator().manual_seed(picture.seed))
    return png(to_picture(noise), {"parameters": "ä 狐"})


def opened(folder: Path, planned: Sequence[Planned] = PLANNED, **more: Any) -> PictureFolder:
    return PictureFolder(folder, planned, RECORD, **more)


def add(pictures: PictureFolder, planned: Sequence[Planned]) -> None:
    pictures.add([(picture, SIZE, content(picture)) for picture in planned])


def lines(folder: Path) -> dict[str, dict[str, Any]]:
    text = (folder / "metadata.jsonl").read_text("utf-8")
    assert text == "" or text.endswith("\n")
    found = [json.loads(line) for line in text.splitlines()]
    names = [line["file_name"] for line in found]
    assert len(set(names)) == len(names)
    return dict(zip(names, found, strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run that was killed after its second picture."""
    pictures = opened(tmp_path / "style")
    add(pictures, PLANNED[:2])
    return pictures.folder


def whole(folder: Path) -> None:
    """Opening it, painting what is missing: all are there once, each with its line."""
    pictures = opened(folder)
    add(pictures, pictures.missing)
    names = {picture.file_name for picture in PLANNED}
    assert {path.name for path in folder.iterdir()} == {*names, "metadata.jsonl"}
    assert lines(folder).keys() == names
    for picture in PLANNED:
        assert (folder / picture.file_name).read_bytes() == content(picture)


def test_it_goes_on_where_it_was(folder: Path) -> None:
    pictures = opened(folder)
    assert pictures.missing == PLANNED[2:]
    assert (pictures.found, pictures.broken) == (2, 0)
    whole(folder)
    assert opened(folder).missing == []


def test_killed_between_a_picture_and_its_line(folder: Path) -> None:
    (folder / PLANNED[2].file_name).write_bytes(content(PLANNED[2]))
    assert opened(folder).missing == PLANNED[3:]
    assert lines(folder)[PLANNED[2].file_name] == RECORD(PLANNED[2], SIZE)
    whole(folder)


@pytest.mark.parametrize("cut", [1, 40, 150, -1])
def test_killed_within_a_line(folder: Path, cut: int) -> None:
    line = json.dumps(RECORD(PLANNED[2], SIZE) | {"text": "狐"}, ensure_ascii=False).encode()
    (folder / PLANNED[2].file_name).write_bytes(content(PLANNED[2]))
    with (folder / "metadata.jsonl").open("ab") as file:
        file.write(line[:cut])
    whole(folder)


def test_killed_within_a_picture(folder: Path) -> None:
    half = folder / f".{PLANNED[2].file_name}.77.abcd.partial"
    half.write_bytes(content(PLANNED[2])[:500])
    (folder / ".metadata.jsonl.77.abcd.partial").write_bytes(b"{")
    whole(folder)


def test_what_is_left_of_a_picture_with_a_long_name_goes(tmp_path: Path) -> None:
    prompt = Prompt("a fox", "a fox", "an_old_lighthouse_by_the_sea_in_a_heavy_storm_xy")
    planned = plan(PromptSet((prompt,)), SPEC, BASE)
    (tmp_path / "mine.77.abcd.partial").write_bytes(b"x")
    partial_of(tmp_path / planned[0].file_name).write_bytes(content(planned[0])[:500])
    opened(tmp_path, planned)
    assert {path.name for path in tmp_path.iterdir()} == {"metadata.jsonl", "mine.77.abcd.partial"}


@pytest.mark.parametrize("harm", ["empty", "cut", "changed", "text"])
def test_a_broken_picture_is_made_again(folder: Path, harm: str) -> None:
    path = folder / PLANNED[0].file_name
    good = path.read_bytes()
    middle = len(good) // 2
    path.write_bytes(
        {
            "empty": b"",
            "cut": good[:middle],
            "changed": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
            "text": b"no picture",
        }[harm]
    )
    pictures = opened(folder)
    assert pictures.missing == [PLANNED[0], *PLANNED[2:]]
    assert pictures.broken == 1
    whole(folder)


def test_other_settings_leave_the_old_pictures_and_their_lines(folder: Path) -> None:
    spec = replace(SPEC, seed=100)
    planned = plan(PROMPTS, spec, BASE)
    new = partial(record, spec=spec, base=BASE, provenance=Provenance())
    pictures = PictureFolder(folder, planned, new)
    assert pictures.missing == planned
    add(pictures, planned)
    assert pictures.others() == 2
    assert len(lines(folder)) == 6
    dataset = pictures.dataset(64)
    assert {s.name for s in dataset.samples} == {p.file_name for p in planned}
    assert opened(folder).missing == PLANNED[2:]


def test_the_dataset_is_what_the_folder_node_reads(folder: Path) -> None:
    whole(folder)
    (folder / "mine.png").write_bytes(content(PLANNED[0]))
    (folder / "torn.png").write_bytes(b"")
    pictures = opened(folder)
    samples = {sample.name: sample for sample in pictures.dataset(72).samples}
    assert pictures.dataset(72).problems == ()
    assert len(samples) == 4
    for picture in PLANNED:
        sample = samples[picture.file_name]
        assert sample.captions == (picture.prompt.caption,)
        assert (sample.role, sample.license) == (Role.TRAIN, "MIT")
        assert sample.source == "generated with fox.safetensors"
        assert sample.class_tokens == picture.prompt.class_tokens != ""
        assert sample.image.size == SIZE
        assert sample.fit.resolutions == (72,)


def test_another_caption_is_written_without_painting_and_other_facts_stay(folder: Path) -> None:
    known = lines(folder)
    known[PLANNED[0].file_name]["score"] = 0.5
    text = "".join(json.dumps(line) + "\n" for line in known.values())
    (folder / "metadata.jsonl").write_text(text, "utf-8")
    prompts = [replace(p, prompt=replace(p.prompt, caption="new\nwords")) for p in PLANNED]
    pictures = opened(folder, prompts)
    assert pictures.missing == prompts[2:]
    assert [line["text"] for line in lines(folder).values()] == ["new words"] * 2
    assert lines(folder)[PLANNED[0].file_name]["score"] == 0.5


def test_a_folder_that_nothing_changed_is_not_written(folder: Path) -> None:
    opened(folder)
    before = (folder / "metadata.jsonl").stat().st_mtime_ns
    opened(folder)
    assert (folder / "metadata.jsonl").stat().st_mtime_ns == before


def test_with_models_that_cannot_be_told_nothing_counts_and_nothing_comes_twice(
    folder: Path,
) -> None:
    pictures = opened(folder, anew=True)
    assert pictures.missing == PLANNED
    add(pictures, PLANNED)
    assert len(list(folder.glob("*.png"))) == len(lines(folder)) == 4


def test_metadata_of_another_kind_is_not_overwritten(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text("[1]\n{}\n")
    with pytest.raises(AtelierError, match="holds something else than one JSON object"):
        opened(folder)
    assert (folder / "metadata.jsonl").read_text() == "[1]\n{}\n"


def test_a_picture_that_was_deleted_is_missing_again(folder: Path) -> None:
    (folder / PLANNED[1].file_name).unlink()
    assert opened(folder).missing == PLANNED[1:]
    assert lines(folder).keys() == {PLANNED[0].file_name}


def test_saving_the_dataset_over_it_keeps_how_it_was_made(folder: Path) -> None:
    whole(folder)
    save_dataset(load_folder(folder), folder, IfExists.REPLACE)
    line = lines(folder)[PLANNED[0].file_name]
    assert RECORD(PLANNED[0], SIZE).items() <= line.items()
    assert line["num_repeats"] == 1
    assert opened(folder).missing == []


def test_saving_another_picture_of_that_name_does_not(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / PLANNED[0].file_name).write_bytes(content(PLANNED[1]))
    save_dataset(load_folder(other), folder, IfExists.REPLACE)
    assert "prompt" not in lines(folder)[PLANNED[0].file_name]
    assert "prompt" in lines(folder)[PLANNED[1].file_name]


def test_a_record_says_all_that_made_it() -> None:
    values = RECORD(PLANNED[0], SIZE)
    assert values | {"base_digest": "d1", "role": "train", "license": "MIT"} == values
    assert {k: values[k] for k in ("prompt", "negative", "seed", "subject", "style")} == {
        "prompt": "a fox, flat",
        "negative": "blurred",
        "seed": 5,
        "subject": "fox",
        "style": "flat",
    }
    assert parameters(values) == (
        "a fox, flat\nNegative prompt: blurred\nSteps: 20, Sampler: euler, Schedule type: normal, "
        "CFG scale: 7.0, Seed: 5, Size: 48x32, Model: fox.safetensors, Distilled CFG Scale: 3.5"
    )


def test_the_png_holds_texts_of_any_script() -> None:
    with Image.open(io.BytesIO(content(PLANNED[0]))) as picture:
        assert picture.text == {"parameters": "ä 狐"}
