"""Pictures and captions are encoded once, and again only when something about them changed."""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.sd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lora_atelier.training.dataset.fit import Crop, FitOptions, Variant
from lora_atelier.training.dataset.folder import FolderOptions, load_folder
from lora_atelier.training.dataset.samples import ImageDataset
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.session import start_run
from lora_atelier.training.runs.examples import View, captions, views
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingState
from tiny_training import Parts, Recorder, load_parts, quick_spec

PICTURES = Path(__file__).resolve().parents[2] / "demo" / "images" / "glossy" / "train"
FIT = FitOptions((64,))
OLD = 1_700_000_000
"""A time of last change that nobody would take for just now, seconds."""


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "pictures"
    place.mkdir()
    for file in sorted(PICTURES.iterdir())[:8]:
        os.utime(shutil.copy(file, place), (OLD, OLD))
    return place


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Calls(Counter):
    """How often the real VAE and text encoder did their work."""


@pytest.fixture
def calls(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Calls:
    counted = Calls()

    def count(owner: Any, name: str, label: str) -> None:
        real: Callable = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counted[label] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    count(parts.vae.first_stage_model, "encode", "vae")
    count(parts.clip.cond_stage_model, "encode_token_weights", "clip")
    return counted


def begin(parts: Parts, folder: Path, cache: Path, **options: Any) -> TrainingState:
    dataset = load_folder(folder, FolderOptions(**{"fit": FIT, **options}))
    return begin_with(parts, dataset, cache)


@torch.inference_mode()  # as nodes run
def begin_with(parts: Parts, dataset: ImageDataset, cache: Path) -> TrainingState:
    return start_run(parts.model, parts.clip, parts.vae, dataset, quick_spec(), cache)


def edit_picture(file: Path) -> None:
    """Other pixels of the same size."""
    with Image.open(file) as image:
        changed = image.convert("RGB").transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    changed.save(file)


def test_a_second_run_encodes_nothing(parts, folder, cache, calls: Calls) -> None:
    first = begin(parts, folder, cache)
    assert calls == {"vae": 4, "clip": 5}  # four pictures, four captions and the empty one
    again = begin(parts, folder, cache)
    assert calls == {"vae": 4, "clip": 5}
    for view in views(first.run.dataset):
        ours, theirs = (s.run.data.images[view].latent for s in (first, again))
        assert torch.equal(ours, theirs)


def test_a_second_run_loads_neither_vae_nor_text_encoder(parts, folder, cache) -> None:
    begin(parts, folder, cache)
    assert parts.vae.patcher in loaded() and parts.clip.patcher in loaded()
    mm.unload_all_models()
    begin(parts, folder, cache)
    assert loaded() == []


def loaded() -> list[Any]:
    """Patchers of the models that are on the device."""
    return [entry.model for entry in mm.current_loaded_models]


def test_an_edited_picture_is_encoded_again_and_no_other(parts, folder, cache, calls) -> None:
    begin(parts, folder, cache)
    edit_picture(next(folder.glob("*.png")))
    begin(parts, folder, cache)
    assert calls == {"vae": 5, "clip": 5}


def test_a_picture_edited_within_the_clock_s_grain_is_noticed(parts, folder, cache) -> None:
    """Same size, same time: its content was looked at too soon after the change to be trusted."""
    file = folder / "new.bmp"
    Image.new("RGB", (64, 64), "red").save(file)
    (folder / "new.txt").write_text("new")
    times = file.stat().st_mtime_ns
    names = [sample.name for sample in load_folder(folder).samples]
    view = View(names.index("new.bmp"), Variant(0))
    before = begin(parts, folder, cache).run.data.images[view].latent
    Image.new("RGB", (64, 64), "blue").save(file)
    os.utime(file, ns=(times, times))
    after = begin(parts, folder, cache).run.data.images[view].latent
    assert not torch.equal(before, after)


def test_an_edited_caption_is_encoded_and_no_other(parts, folder, cache, calls) -> None:
    begin(parts, folder, cache)
    next(folder.glob("*.txt")).write_text("something quite different")
    begin(parts, folder, cache)
    assert calls == {"vae": 4, "clip": 6}


def test_equal_captions_and_equal_pictures_are_encoded_once(parts, folder, cache, calls) -> None:
    for file in folder.glob("*.txt"):
        file.write_text("the same")
    picture = next(folder.glob("*.png"))
    shutil.copy(picture, folder / "twin.png")
    (folder / "twin.txt").write_text("the same")
    begin(parts, folder, cache)
    begin(parts, folder, cache)
    assert calls == {"vae": 4, "clip": 2}


def test_other_options_of_equal_geometry_share_and_others_do_not(
    parts, folder, cache, calls
) -> None:
    begin(parts, folder, cache)
    begin(parts, folder, cache, fit=replace(FIT, enable_bucket=False))
    assert calls["vae"] == 4
    begin(parts, folder, cache, fit=FitOptions((128,)))
    assert calls["vae"] == 8
    begin(parts, folder, cache, fit=replace(FIT, flip_aug=True))
    assert calls["vae"] == 12  # the mirrored ones only
    begin(parts, folder, cache, fit=replace(FIT, background=(0, 0, 0)))
    assert calls["vae"] == 16


@pytest.mark.parametrize("harm", ["cut short", "emptied", "one byte flipped", "no safetensors"])
def test_a_broken_entry_is_made_again(parts, folder, cache, calls, harm: str) -> None:
    first = begin(parts, folder, cache)
    expected = {view: first.run.data.images[view].latent for view in views(first.run.dataset)}
    for kind in ("latents", "text"):
        entry = next((cache / kind).rglob("*.safetensors"))
        content = bytearray(entry.read_bytes())
        if harm == "cut short":
            content = content[: len(content) // 2]
        elif harm == "emptied":
            content = bytearray()
        elif harm == "one byte flipped":
            content[-3] ^= 16
        else:
            content = bytearray(b"<html>no</html>")
        entry.write_bytes(content)
    again = begin(parts, folder, cache)
    assert calls == {"vae": 5, "clip": 6}
    for view, latent in expected.items():
        assert torch.equal(again.run.data.images[view].latent, latent)


def test_a_cancelled_start_goes_on_where_it_was(parts, folder, cache, calls, monkeypatch) -> None:
    from lora_atelier.training.host import session

    class CancelledAtTheThird(session.HostProgress):
        def tick(self) -> None:
            super().tick()
            if calls["vae"] == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session, "HostProgress", CancelledAtTheThird)
        with pytest.raises(KeyboardInterrupt):
            begin(parts, folder, cache)
    begin(parts, folder, cache)
    assert calls == {"vae": 4, "clip": 5}
    assert not any("atelier" in t.name.lower() for t in threading.enumerate())


def test_every_view_and_text_that_may_be_drawn_is_there(parts, folder, cache) -> None:
    fit = replace(FIT, crop=Crop.RANDOM, crop_variants=3, flip_aug=True, resolutions=(64, 128))
    state = begin(parts, folder, cache, fit=fit)
    data = state.run.data
    assert set(data.images) == set(views(data.dataset)) and len(data.images) == 4 * 3 * 2 * 2
    assert set(captions(data.dataset)) == set(data.conditioning)
    for view in data.images:
        side = (64, 128)[view.variant.resolution] // 8
        assert data.images[view].latent.shape == (4, side, side)


def test_training_from_disk_equals_training_from_memory(parts, folder, cache) -> None:
    state = begin(parts, folder, cache)
    data = state.run.data
    in_memory = replace(data, images=dict(data.images), conditioning=dict(data.conditioning))
    other = replace(state, run=replace(state.run, data=in_memory))
    one, two = (train(s, 3, Recorder()).network for s in (state, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_cache_deleted_during_a_run_is_told_in_words(parts, folder, cache) -> None:
    state = begin(parts, folder, cache)
    shutil.rmtree(cache / "latents")
    with pytest.raises(AtelierError, match="is gone or broken.*queue again"):
        train(state, 1, Recorder())


def test_a_picture_cut_short_is_left_out_and_named(parts, folder, cache, calls) -> None:
    broken = sorted(folder.glob("*.png"))[1]
    broken.write_bytes(broken.read_bytes()[:-900])
    state = begin(parts, folder, cache)
    (problem,) = state.run.dataset.problems
    assert problem.name == broken.name and "damaged or cut short" in problem.reason
    assert str(folder) not in problem.reason  # what a node shows is saved with the graph
    assert broken.name not in [s.name for s in state.run.dataset.samples]
    assert calls == {"vae": 3, "clip": 4}  # its caption is not needed either
    assert set(state.run.data.images) == set(views(state.run.dataset))
    trained = train(state, 3, Recorder())
    assert trained.step == 3


def test_a_picture_cut_short_ends_the_start_when_nothing_may_be_skipped(parts, folder, cache):
    broken = sorted(folder.glob("*.png"))[1]
    broken.write_bytes(broken.read_bytes()[:-900])
    dataset = load_folder(folder, FolderOptions(fit=FIT))
    strict = dataset.changed(replace(s, may_be_skipped=False) for s in dataset.samples)
    with pytest.raises(AtelierError, match="damaged or cut short"):
        begin_with(parts, strict, cache)


def test_pictures_without_captions_are_refused_before_any_work(parts, folder, cache, calls):
    next(folder.glob("*.txt")).unlink()
    with pytest.raises(AtelierError, match="1 of 4 pictures have no caption: .*class_tokens"):
        begin(parts, folder, cache)
    assert not calls


def test_a_checkpoint_without_a_vae_is_refused(parts, tiny_checkpoint, folder, cache) -> None:
    """The host gives an empty one for it."""
    weights = {n: t for n, t in load_file(tiny_checkpoint).items() if "first_stage_model" not in n}
    with torch.inference_mode():
        vae = comfy.sd.load_state_dict_guess_config(weights)[2]
    assert vae is not None
    with pytest.raises(AtelierError, match="vae: this checkpoint holds no VAE"):
        begin(replace(parts, vae=vae), folder, cache)


def lora_on(clip: Any, strength: float) -> Any:
    """The CLIP after a LoRA on one of its layers."""
    key = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
    shape = clip.patcher.model_state_dict()[key].shape
    patched = clip.clone()
    patched.add_patches({key: ("diff", (torch.ones(shape) * 0.01,))}, strength)
    return patched


@torch.inference_mode()
def test_another_text_encoder_or_vae_does_not_get_the_old_entries(
    parts, folder, cache, calls
) -> None:
    begin(parts, folder, cache)
    for strength, count in ((0.5, 10), (0.7, 15), (0.5, 15)):
        begin(replace(parts, clip=lora_on(parts.clip, strength)), folder, cache)
        assert calls == {"vae": 4, "clip": count}
    skipped = parts.clip.clone()
    skipped.clip_layer(-2)
    begin(replace(parts, clip=skipped), folder, cache)
    assert calls == {"vae": 4, "clip": 20}
    begin(parts, folder, cache)
    assert calls == {"vae": 4, "clip": 20}
    weight = next(p for p in parts.vae.first_stage_model.parameters() if p.ndim == 4)
    before = weight.clone()
    try:
        weight.mul_(1.01)
        begin(parts, folder, cache)
    finally:
        weight.copy_(before)
    assert calls == {"vae": 8, "clip": 20}


def test_the_same_checkpoint_loaded_twice_is_the_same(parts, tiny_checkpoint, folder, cache):
    """Also where the host leaves a weight as the memory was."""
    begin(parts, folder, cache)
    files = {f: f.stat().st_mtime_ns for f in cache.rglob("*.safetensors")}
    other = load_parts(tiny_checkpoint)
    with torch.inference_mode():
        other.clip.cond_stage_model.clip_l.transformer.text_projection.weight.fill_(7.0)
    begin(other, folder, cache)
    assert {f: f.stat().st_mtime_ns for f in cache.rglob("*.safetensors")} == files
