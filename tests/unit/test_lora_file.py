"""The LoRA file: what is in it, and that it is whole or not there."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lora_atelier.training.base_model.facts import BaseModelFacts
from lora_atelier.training.dataset.caption_options import CaptionOptions
from lora_atelier.training.dataset.samples import Role
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.files import write_whole
from lora_atelier.training.network.build import NetworkSpec
from lora_atelier.training.results.lora_facts import tag_frequency
from lora_atelier.training.results.lora_file import (
    SavePrecision,
    TrainedLora,
    lora_metadata,
    save_lora,
    trained_lora,
)
from lora_atelier.training.runs.run import start

FLOAT, FP16, BF16 = SavePrecision.FLOAT, SavePrecision.FP16, SavePrecision.BF16
DTYPES = {FLOAT: torch.float32, FP16: torch.float16, BF16: torch.bfloat16}


@pytest.fixture
def lora() -> dict[str, Tensor]:
    return {
        "lora_unet_a.lora_down.weight": torch.randn(2, 5),
        "lora_unet_a.lora_up.weight": torch.randn(2, 7).T,  # not contiguous
        "lora_unet_a.alpha": torch.tensor(1.5),
    }


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def _without_hashes(path: Path) -> dict[str, str]:
    return {k: v for k, v in _metadata(path).items() if "hash" not in k}


@pytest.mark.parametrize("precision", list(SavePrecision))
def test_the_file_gives_the_tensors_back_in_the_chosen_format(
    tmp_path: Path, lora: dict[str, Tensor], precision: SavePrecision
) -> None:
    path = tmp_path / "new folder" / "a.safetensors"
    save_lora(path, lora, precision)
    stored = load_file(path)
    assert stored.keys() == lora.keys()
    for key, value in lora.items():
        assert stored[key].dtype == DTYPES[precision]
        assert torch.equal(stored[key], value.to(DTYPES[precision]))


def test_what_the_lora_remembers_is_in_the_file(tmp_path: Path, lora) -> None:
    remembered = TrainedLora(lora, {"ss_steps": "7", "ss_output_name": "狐狸"})
    save_lora(tmp_path / "a.safetensors", remembered, FLOAT)
    expected = {"format": "pt", "ss_steps": "7", "ss_output_name": "狐狸"}
    assert _without_hashes(tmp_path / "a.safetensors") == expected


def test_a_plain_dict_of_a_core_node_can_be_saved(tmp_path: Path, lora) -> None:
    save_lora(tmp_path / "a.safetensors", lora, FLOAT)
    assert _without_hashes(tmp_path / "a.safetensors") == {"format": "pt"}


@pytest.mark.parametrize(
    ("value", "precision"),
    [(float("nan"), FLOAT), (float("inf"), BF16), (70000.0, FP16)],
    ids=["nan", "inf", "too large for fp16"],
)
def test_numbers_that_are_not_finite_are_refused_and_the_old_file_stays(
    tmp_path: Path, lora, value: float, precision: SavePrecision
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"the old file")
    lora["lora_unet_a.lora_down.weight"][1, 2] = value
    with pytest.raises(AtelierError, match=f"not finite in .* {precision.value} .*1 of 3"):
        save_lora(path, lora, precision)
    assert path.read_bytes() == b"the old file"
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_refused_lora_leaves_no_file_where_there_was_none(tmp_path: Path, lora) -> None:
    lora["lora_unet_a.alpha"].fill_(float("nan"))
    with pytest.raises(AtelierError):
        save_lora(tmp_path / "a.safetensors", lora, FLOAT)
    assert os.listdir(tmp_path) == []


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"the first, longer one")
    with path.open("rb") as reader:
        write_whole(path, b"the second")
        assert reader.read() == b"the first, longer one"  # whoever has it open is not disturbed
    assert path.read_bytes() == b"the second"
    assert os.listdir(tmp_path) == ["a"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command to make a small disk with")
    if done.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_said_and_leaves_the_old_file(small_disk: Path) -> None:
    path = small_disk / "a.safetensors"
    write_whole(path, b"the old file")
    with pytest.raises(AtelierError, match="a.safetensors.* could not be written: .*space"):
        write_whole(path, bytes(200_000))
    assert path.read_bytes() == b"the old file"
    assert os.listdir(small_disk) == ["a.safetensors"]


def test_a_file_size_limit_leaves_the_old_file(tmp_path: Path) -> None:
    """What a full disk does, on any Unix: the write fails half way."""
    resource = pytest.importorskip("resource", reason="Unix only")
    signal = pytest.importorskip("signal")
    path = tmp_path / "a.safetensors"
    write_whole(path, b"the old file")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(AtelierError, match="could not be written"):
            write_whole(path, bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"the old file"
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("name", ["file/a.safetensors", "n" * 256])
def test_a_place_that_cannot_be_written_is_said_in_words(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("where a folder should be")
    with pytest.raises(AtelierError, match="could not be written"):
        write_whole(tmp_path / name, b"content")


def test_tags_are_counted_once_a_picture_times_its_repeats(
    make_run: Callable[..., Any],
) -> None:
    run = make_run(repeats=(1, 3, 2))
    captions = ["fox, snow, fox", "fox , tree,", "snow"]
    for sample, caption in zip(run.dataset.samples, captions, strict=True):
        object.__setattr__(sample, "captions", (caption,))
    frequency = tag_frequency(run.dataset.with_role(Role.TRAIN))
    assert frequency == {"fox": 1 + 3, "snow": 1 + 2, "tree": 3}
    assert list(frequency) == ["fox", "snow", "tree"]  # the most frequent first, then as they come


def test_tags_are_counted_as_training_cuts_captions(make_run: Callable[..., Any]) -> None:
    first = make_run().dataset.samples[0]
    options = CaptionOptions(caption_separator=";")
    sample = replace(first, captions=("sks ||| fox, red; snow",), caption_options=options)
    assert tag_frequency((sample,)) == {"sks": 1, "fox, red": 1, "snow": 1}


def tags_in_a1111(file: Path) -> list[tuple[str, int]]:
    """The rule of A1111's page of a LoRA: texts that begin with a brace are JSON; the counts of all
    datasets are added up; tags of 16 letters and more on average are sentences, of which the words
    of 3 letters and more count; the most frequent come first."""
    told = {k: json.loads(v) if v[:1] == "{" else v for k, v in _metadata(file).items()}
    count: dict[str, int] = {}
    for tags in told.get("ss_tag_frequency", {}).values():
        for tag, number in tags.items():
            count[tag.strip()] = count.get(tag.strip(), 0) + int(number)
    if sum(map(len, count)) >= 16 * len(count) > 0:
        words: dict[str, int] = {}
        for tag, number in count.items():
            for word in re.findall(r"[-_\w']+", tag):
                if len(word) >= 3:
                    words[word] = words.get(word, 0) + number
        count = words
    return sorted(count.items(), key=lambda row: -row[1])


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["fox, snow", "fox, 狐狸"], [("fox", 4), ("狐狸", 3), ("snow", 1)]),
        (
            ["a small fox in deep snow", "the fox is asleep by the old tree"],
            [("the", 6), ("fox", 4), ("snow", 1), ("deep", 1)],
        ),
    ],
    ids=["tags", "sentences"],
)
def test_a1111_reads_the_tags(
    make_run: Callable[..., Any],
    tmp_path: Path,
    captions: list[str],
    expected: list[tuple[str, int]],
) -> None:
    run = make_run(repeats=(1, 3))
    for sample, caption in zip(run.dataset.samples, captions, strict=True):
        object.__setattr__(sample, "captions", (caption,))
    save_lora(tmp_path / "a.safetensors", trained_lora(start(run)), FLOAT)
    found = tags_in_a1111(tmp_path / "a.safetensors")
    assert set(expected) <= set(found)
    assert [number for _, number in found] == sorted((n for _, n in found), reverse=True)


def test_metadata_tells_how_the_lora_was_made(make_run: Callable[..., Any]) -> None:
    run = make_run(
        repeats=(1, 3),
        network=NetworkSpec(8, 4.0),
        train_batch_size=3,
        max_train_steps=200,
        seed=42,
    )
    facts = lora_metadata(start(run))
    assert all(type(key) is str and type(value) is str for key, value in facts.items())
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "ss_optimizer": "AdamW",
        "ss_unet_lr": "0.0001",
        "ss_lr_scheduler": "cosine",
        "ss_lr_warmup_steps": "10",
        "ss_min_snr_gamma": "5.0",
        "ss_mixed_precision": "no",
        "ss_batch_size_per_device": "3",
        "ss_gradient_accumulation_steps": "1",
        "ss_max_train_steps": "200",
        "ss_steps": "0",
        "ss_seed": "42",
        "ss_num_train_images": "4",
        "ss_num_batches_per_epoch": "3",
        "ss_resolution": "(64, 64)",
    }
    assert {key: facts.get(key) for key in expected} == expected
    tags = {"shapes": {"caption 1": 3, "caption 0": 1}}
    assert json.loads(facts["ss_tag_frequency"]) == tags
    # Nothing known, nothing said.
    assert not {"atelier.dataset_license", "modelspec.trigger_phrase"} & facts.keys()


def test_a_trained_lora_is_the_states_network_with_its_metadata(
    make_run: Callable[..., Any], tmp_path: Path
) -> None:
    state = start(make_run())
    lora = trained_lora(state)
    save_lora(tmp_path / "a.safetensors", lora, FLOAT)
    stored = load_file(tmp_path / "a.safetensors")
    assert stored.keys() == state.network.keys()
    assert all(torch.equal(stored[key], value) for key, value in state.network.items())
    assert _metadata(tmp_path / "a.safetensors")["ss_network_dim"] == "4"


def test_a_file_that_fails_its_check_is_not_kept(tmp_path: Path, lora) -> None:
    def refuse(read: dict[str, Tensor]) -> None:
        assert read.keys() == lora.keys()
        raise AtelierError("not what was trained")

    path = tmp_path / "a.safetensors"
    path.write_bytes(b"the old file")
    with pytest.raises(AtelierError, match="not what was trained"):
        save_lora(path, lora, FLOAT, check=refuse)
    assert path.read_bytes() == b"the old file"
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_what_is_told_at_the_end_stands_before_what_the_lora_remembers(tmp_path, lora) -> None:
    remembered = TrainedLora(lora, {"modelspec.title": "shapes", "ss_steps": "7"})
    save_lora(tmp_path / "a", remembered, FLOAT, {"modelspec.title": "Foxes"})
    told = _metadata(tmp_path / "a")
    assert (told["modelspec.title"], told["ss_steps"]) == ("Foxes", "7")


def pack_version() -> str:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    return re.search(r'^version = "(.+)"$', text, re.MULTILINE)[1]


def test_metadata_are_what_a1111_and_lora_managers_parse(make_run: Callable[..., Any]) -> None:
    """A1111 takes every `ss_` value that begins with a brace for JSON, and shows these."""
    run = make_run(
        repeats=(1, 3, 2),
        train_batch_size=2,
        gradient_accumulation_steps=2,
        max_train_steps=7,
    )
    base = BaseModelFacts("sd_v1", "stable-diffusion-v1", "diffusers", "epsilon", host="ComfyUI 1")
    facts = lora_metadata(start(replace(run, base=base)))
    parsed = {k: json.loads(v) if v.startswith("{") else v for k, v in facts.items()}
    assert parsed["ss_tag_frequency"]["shapes"]["caption 1"] == 3
    assert parsed["ss_dataset_dirs"] == {"shapes": {"n_repeats": 2, "img_count": 3}}
    versions = f"LoRA Atelier {pack_version()}, PyTorch {torch.__version__}, ComfyUI 1"
    assert parsed["atelier.versions"] == versions
    assert parsed["ss_reg_dataset_dirs"] == {}
    bucket = {"resolution": [64, 64], "count": 6}
    assert parsed["ss_bucket_info"] == {"buckets": {"0": bucket}}
    expected = {
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_total_batch_size": "4",
        "ss_num_epochs": "4",  # 7 steps of 2 batches, 4 batches an epoch
        "ss_epoch": "0",
        "ss_min_bucket_reso": "64",
        "ss_max_bucket_reso": "128",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "64x64",
        "modelspec.title": "shapes",
    }
    assert {key: facts.get(key) for key in expected} == expected
    datetime.fromisoformat(facts["modelspec.date"])


def test_of_an_unknown_base_model_nothing_is_said(make_run: Callable[..., Any]) -> None:
    facts = lora_metadata(start(make_run()))
    assert not facts.keys() & {"ss_base_model_version", "ss_v2", "modelspec.architecture"}
