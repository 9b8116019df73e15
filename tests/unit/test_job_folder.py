"""A job folder gives back what the run was made of, bit for bit, and refuses what is not whole."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_atelier.training.cache import digest_of
from lora_atelier.training.dataset.caption_options import CaptionOptions
from lora_atelier.training.dataset.fit import Crop, FitOptions, LatentKind, Variant
from lora_atelier.training.dataset.pictures import ImageFile, ImagePixels
from lora_atelier.training.dataset.samples import ImageDataset, Mask, Problem, Role, Sample
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.jobs.dataset_json import dataset_from_json, dataset_to_json
from lora_atelier.training.jobs.job_folder import begin_job, read_job, write_job
from lora_atelier.training.network.existing_lora import ExistingLora
from lora_atelier.training.runs.examples import EncodedDataset, EncodedImage, View
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import Ingredients, TrainingState, start

Make = Callable[..., Any]
BASE = {
    "prompt": {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}}},
    "model": ["1", 0],
    "clip": ["1", 1],
}


@pytest.fixture
def state(make_run: Make, make_listener: Make) -> TrainingState:
    """After three steps; one picture has a mask, two have the same latent."""
    run = make_run()
    images = dict(run.data.images)
    first, second, third = (View(i, Variant(0)) for i in range(3))
    images[first] = EncodedImage(images[first].latent, torch.rand(2, 2))
    images[third] = images[second]
    data = EncodedDataset(run.dataset, images, run.data.conditioning)
    ingredients = Ingredients("m", "c", "v", "d")
    run = replace(run, data=data, identity="ab" * 32, ingredients=ingredients)
    return train(start(run), 3, make_listener())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "jobs" / "shapes"


def with_digest(description: dict[str, Any]) -> str:
    """job.json of this content, as if it had been written so."""
    said = {k: v for k, v in description.items() if k not in ("version", "digest")}
    return json.dumps(description | {"digest": digest_of(said)})


def test_everything_comes_back_bit_for_bit(state: TrainingState, folder: Path) -> None:
    assert write_job(folder, state, BASE, {"nodes": []}) == folder
    job, run = read_job(folder), state.run
    assert (job.name, job.spec, job.identity, job.step) == ("shapes", run.spec, "ab" * 32, 3)
    assert (job.ingredients, job.base_prompt) == (run.ingredients, BASE)
    assert list(job.data.images) == list(run.data.images)
    for view, image in run.data.images.items():
        kept = job.data.images[view]
        assert torch.equal(kept.latent, image.latent) and kept.latent.dtype == torch.float32
        assert (kept.mask is None) == (image.mask is None)
        assert image.mask is None or torch.equal(kept.mask, image.mask)
    assert list(job.data.conditioning) == list(run.data.conditioning)
    for text, conditioning in run.data.conditioning.items():
        assert torch.equal(job.data.conditioning[text], conditioning)
    assert json.loads((folder / "workflow.json").read_text()) == {"nodes": []}
    assert "launch.py" in (folder / "README.txt").read_text()
    back = begin_job(job, run)
    assert back.step == 3 and back.history == state.history
    assert all(torch.equal(back.network[k], state.network[k]) for k in state.network)


def test_training_goes_on_from_a_job_as_from_the_state(
    state: TrainingState, folder: Path, make_listener: Make
) -> None:
    job = read_job(write_job(folder, state, BASE))
    run = replace(state.run, spec=job.spec, data=job.data)
    outside = train(begin_job(job, run), 3, make_listener())
    inside = train(state, 3, make_listener())
    assert outside.history == inside.history
    assert all(torch.equal(outside.network[k], inside.network[k]) for k in inside.network)


def test_what_several_pictures_share_is_kept_once(state: TrainingState, folder: Path) -> None:
    write_job(folder, state, BASE)
    assert len(list((folder / "cache/latents").rglob("*.safetensors"))) == 4  # of 5 pictures


def test_asking_whether_something_is_kept_reads_no_file(state: TrainingState, folder: Path) -> None:
    write_job(folder, state, BASE)
    images = read_job(folder).data.images
    view = next(iter(images))
    for file in (folder / "cache/latents").rglob("*.safetensors"):
        file.unlink()
    assert view in images and View(99, view.variant) not in images


def test_texts_stay_texts_where_the_text_encoder_is_trained(
    state: TrainingState, folder: Path
) -> None:
    texts = {text: text for text in ("", *state.run.data.conditioning)}
    data = replace(state.run.data, conditioning=texts)
    write_job(folder, replace(state, run=replace(state.run, data=data)), BASE)
    assert dict(read_job(folder).data.conditioning) == texts
    assert not (folder / "cache/text").exists()


def test_every_field_of_a_sample_comes_back() -> None:
    odd = Sample(
        ImageFile("/a/b.png", (640, 480)),
        "b.png",
        ("a\ud800", "ä"),
        3,
        Role.REGULARISATION,
        0.25,
        Mask.ALPHA,
        "my garden",
        "CC0",
        FitOptions((64, 128), False, 32, 64, 256, True, Crop.RANDOM, 2, True, LatentKind.SAMPLE),
        CaptionOptions(True, 1, "", 0.1, 0.2, 3, True, 4, ";"),
        True,
        "fx fox",
    )
    plain = Sample(odd.image, "plain.png")
    assert [f.name for f in fields(Sample) if getattr(odd, f.name) == getattr(plain, f.name)] == [
        "image"
    ], "each field is another than by default, or this test would not notice its loss"
    pixels = ImagePixels(np.zeros((48, 64), np.uint8))
    masked = replace(odd, name="c.png", image=pixels, mask=pixels)
    dataset = ImageDataset((odd, masked), "garden", (Problem("d.png", "broken"),))
    back = dataset_from_json(json.loads(json.dumps(dataset_to_json(dataset))))
    b, c = ImageFile("b.png", (640, 480)), ImageFile("c.png", (64, 48))
    assert back.samples == (replace(odd, image=b), replace(masked, image=c, mask=c))
    assert (back.name, back.problems) == (dataset.name, dataset.problems)


def test_the_same_job_is_left_alone_and_another_gets_a_number(
    state: TrainingState, folder: Path, make_listener: Make
) -> None:
    write_job(folder, state, BASE)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    assert write_job(folder, state, BASE, {"another": "view"}) == folder
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    later = train(state, 1, make_listener())
    second = write_job(folder, later, BASE)
    assert second == folder.with_name("shapes-2")
    assert read_job(second).step == 4
    assert write_job(folder, later, BASE) == second
    assert write_job(folder, state, {**BASE, "clip": ["2", 0]}).name == "shapes-3"
    (folder / "base.json").write_text("{}")
    assert write_job(folder, state, BASE).name == "shapes-4", "a damaged one does not count"
    assert sorted(p.name for p in folder.parent.iterdir()) == [
        *("shapes", "shapes-2", "shapes-3", "shapes-4")
    ]


def test_a_run_that_cannot_be_told_has_its_jobs_identity(
    state: TrainingState, folder: Path
) -> None:
    unknown = replace(state, run=replace(state.run, identity=""))
    write_job(folder, unknown, BASE)
    one = read_job(folder)
    assert len(one.identity) == 64 and read_job(folder).identity == one.identity
    other = read_job(write_job(folder, unknown, {**BASE, "model": ["2", 0]}))
    assert other.identity != one.identity


def test_a_lora_that_is_continued_is_in_the_job(state: TrainingState, folder: Path) -> None:
    existing = ExistingLora(state.network, "mine.safetensors")
    network = replace(state.run.spec.network, existing=existing)
    spec = replace(state.run.spec, network=network)
    write_job(folder, replace(state, run=replace(state.run, spec=spec)), BASE)
    back = read_job(folder).spec.network.existing
    assert back.name == "mine.safetensors"
    assert all(torch.equal(back.tensors[k], state.network[k]) for k in state.network)


def test_ended_early_nothing_stays(state: TrainingState, folder: Path) -> None:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_job(folder, state, BASE, tick=tick)
    assert list(folder.parent.iterdir()) == []


def test_what_a_killed_process_left_behind_is_removed(state: TrainingState, folder: Path) -> None:
    old, young = (folder.parent / f".{name}.partial" for name in ("old", "young"))
    for place in (old, young):
        (place / "cache").mkdir(parents=True)
    os.utime(old, (time.time() - 90_000,) * 2)
    write_job(folder, state, BASE)
    assert (old.exists(), young.exists()) == (False, True)


def test_a_folder_that_cannot_be_made_is_told(state: TrainingState, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AtelierError, match="could not be written"):
        write_job(tmp_path / "file" / "job", state, BASE)


def test_what_no_file_can_hold_is_told(state: TrainingState, folder: Path) -> None:
    hooked = {**state.run.data.conditioning, "": [torch.ones(1), {"hooks": print}]}
    data = replace(state.run.data, conditioning=hooked)
    with pytest.raises(AtelierError, match="builtin_function_or_method"):
        write_job(folder, replace(state, run=replace(state.run, data=data)), BASE)
    assert list(folder.parent.iterdir()) == []


@pytest.mark.parametrize("name", ["job.json", "base.json", "state.safetensors"])
@pytest.mark.parametrize("harm", ["gone", "empty", "half", "flipped"])
def test_a_damaged_file_is_refused(
    state: TrainingState, folder: Path, name: str, harm: str
) -> None:
    path = write_job(folder, state, BASE) / name
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "flipped":
        changed = bytearray(content)
        changed[-20] ^= 1
        path.write_bytes(changed)
    else:
        path.write_bytes(content[: len(content) // 2 if harm == "half" else 0])
    with pytest.raises(AtelierError, match=r"damaged|no whole state file|is no training job"):
        begin_job(read_job(folder), state.run)


def test_a_missing_entry_is_told_at_once_and_a_damaged_one_when_it_is_read(
    state: TrainingState, folder: Path
) -> None:
    write_job(folder, state, BASE)
    job = read_job(folder)
    for path in (folder / "cache").rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    for entries in (job.data.images, job.data.conditioning):
        with pytest.raises(AtelierError, match="gone or damaged"):
            entries[next(iter(entries))]
    for kind in ("text", "latents"):
        next((folder / "cache" / kind).rglob("*.safetensors")).unlink()
        with pytest.raises(AtelierError, match=r"lacks 1 of \d files"):
            begin_job(read_job(folder), state.run)


def test_a_newer_version_is_told(state: TrainingState, folder: Path) -> None:
    path = write_job(folder, state, BASE) / "job.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"version": 2, "shape": "new"}))
    with pytest.raises(AtelierError, match="newer version of LoRA Atelier"):
        read_job(folder)
    path.write_text(with_digest(data | {"spec": data["spec"] | {"magic": 1}}))
    with pytest.raises(AtelierError, match="does not know"):
        read_job(folder)


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"version": "x"}', '{"version": 1}'])
def test_what_is_no_description_is_refused(
    state: TrainingState, folder: Path, content: str
) -> None:
    path = write_job(folder, state, BASE) / "job.json"
    path.write_text(content)
    with pytest.raises(AtelierError, match="damaged"):
        read_job(folder)


def test_a_description_that_was_changed_is_refused(state: TrainingState, folder: Path) -> None:
    path = write_job(folder, state, BASE) / "job.json"
    path.write_text(path.read_text().replace("caption 1", "caption 7"))
    with pytest.raises(AtelierError, match=r"job.json\" is damaged"):
        read_job(folder)


def test_a_description_without_a_part_is_refused(state: TrainingState, folder: Path) -> None:
    path = write_job(folder, state, BASE) / "job.json"
    data = json.loads(path.read_text())
    for name in data.keys() - {"version", "digest"}:
        path.write_text(with_digest({k: v for k, v in data.items() if k != name}))
        with pytest.raises(AtelierError, match="damaged"):
            begin_job(read_job(folder), state.run)


def test_a_folder_without_a_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match="is no training job"):
        read_job(tmp_path)
