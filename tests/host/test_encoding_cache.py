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

import comfy.sd
import pytest
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from PIL import Image
from torch import Tensor

from lora_atelier.training.dataset.fit import Crop, FitOptions, LatentKind, Variant
from lora_atelier.training.dataset.folder import FolderOptions, MaskSource, load_folder
from lora_atelier.training.dataset.samples import ImageDataset
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.examples import View, captions, views
from lora_atelier.training.host.session import start_run
from lora_atelier.training.loop import train
from lora_atelier.training.run import TrainingState
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


def test_two_runs_share_a_cache_at_the_same_time(parts, folder, cache) -> None:
    """Writers of the same entries do not get in each other's way."""
    from lora_atelier.training.cache import TensorCache

    store = TensorCache(cache)
    tensors = {"latent": torch.randn(4, 64, 64)}
    keys = [f"{i:064x}" for i in range(20)]

    def write_all() -> None:
        for key in keys * 5:
            store.write(key, tensors)

    threads = [threading.Thread(target=write_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in threads):
        for key in keys:
            entry = store.read(key)
            if entry is not None:
                seen += 1
                assert torch.equal(entry[0]["latent"], tensors["latent"])
    assert seen > 0
    assert not [f for f in cache.rglob("*") if f.name.endswith(".partial")]


def test_a_latent_is_what_the_vae_gives_in_the_model_s_scale(parts, folder, cache) -> None:
    state = begin(parts, folder, cache)
    sample = state.run.dataset.samples[0]
    with Image.open(sample.image.path) as image:
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image.convert("RGB"), mask=image.convert("RGBA").getchannel("A"))
        small = flat.resize((64, 64), Image.Resampling.LANCZOS)
    pixels = (
        torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(1, 64, 64, 3) / 255
    )
    with torch.inference_mode():
        expected = parts.model.model.process_latent_in(parts.vae.encode(pixels))[0]
    latent = state.run.data.images[views(state.run.dataset)[0]].latent
    torch.testing.assert_close(latent, expected, rtol=0, atol=0.02)
    assert not latent.is_inference()


def test_a_mask_is_kept_at_the_latent_s_size(parts, folder, cache) -> None:
    picture = next(folder.glob("*.png"))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 20, 64))
    mask.save(folder / f"{picture.stem}.mask.png")
    state = begin(parts, folder, cache, mask=MaskSource.FILES)
    samples = state.run.dataset.samples
    found = [state.run.data.images[v].mask for v in views(state.run.dataset)]
    assert [m is not None for m in found] == [s.name == picture.name for s in samples]
    kept = next(m for m in found if m is not None)
    expected = torch.zeros(8, 8)
    expected[:, :2], expected[:, 2] = 1.0, 0.5  # 20 of 64 px are two and a half of eight places
    torch.testing.assert_close(kept, expected, rtol=0, atol=0.02)


def test_alpha_serves_as_mask(parts, folder, cache) -> None:
    picture = Image.new("RGBA", (64, 64), (200, 30, 30, 0))
    picture.paste((200, 30, 30, 255), (0, 0, 64, 16))
    picture.save(folder / "zzz.png")
    (folder / "zzz.txt").write_text("a red stripe")
    state = begin(parts, folder, cache, mask=MaskSource.ALPHA)
    masks = [state.run.data.images[v].mask for v in views(state.run.dataset)]
    assert [m is None for m in masks] == [True] * 4 + [False]  # no alpha channel, no mask
    expected = torch.zeros(8, 8)
    expected[:2] = 1.0
    torch.testing.assert_close(masks[-1], expected)


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


@pytest.fixture(scope="module")
def autoencoder() -> Any:
    """A VAE with a distribution: the host's AutoencoderKL at its least width."""
    config = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3}
    config |= {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    config |= {"attn_resolutions": [], "dropout": 0.0}
    params = {"ddconfig": config, "embed_dim": 4}
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        weights = AutoencoderKL(**params).state_dict()
        weights = {name: torch.randn_like(w) * 0.05 for name, w in weights.items()}
        return comfy.sd.VAE(sd=weights, config={"params": params})


def test_the_mode_or_a_sample_of_the_vae_s_distribution(
    parts, autoencoder, folder, cache, calls
) -> None:
    parts = replace(parts, vae=autoencoder)

    def latents(kind: LatentKind, place: str) -> list[Tensor]:
        state = begin(parts, folder, cache / place, fit=replace(FIT, latents=kind))
        return [state.run.data.images[v].latent for v in views(state.run.dataset)]

    state = torch.get_rng_state()
    mode, sample = latents(LatentKind.MODE, "a"), latents(LatentKind.SAMPLE, "a")
    assert torch.equal(torch.get_rng_state(), state)
    assert autoencoder.first_stage_model.regularization.sample is False
    assert not any(torch.equal(a, b) for a, b in zip(mode, sample, strict=True))
    again = latents(LatentKind.SAMPLE, "b")
    assert all(torch.equal(a, b) for a, b in zip(sample, again, strict=True))
    assert calls["vae"] == 0  # none of it came from the other VAE
