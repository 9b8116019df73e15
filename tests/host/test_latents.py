"""What the cache holds of a picture is what the host's VAE gives for it, made once and bounded."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sd
import numpy as np
import pytest
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from comfy.ldm.wan.vae import WanVAE
from PIL import Image
from torch import Tensor

import lora_atelier.training.host.latents as latents_module
from lora_atelier.training.dataset.digests import ContentDigests
from lora_atelier.training.dataset.fit import Crop, FitOptions, LatentKind, Variant, place
from lora_atelier.training.dataset.pictures import (
    ImageFile,
    ImagePixels,
    fitted_pixels,
    open_picture,
)
from lora_atelier.training.dataset.samples import ImageDataset, Mask, Role, Sample
from lora_atelier.training.errors import AtelierError, FileChanged
from lora_atelier.training.host.latents import CachedImages, cached_images
from lora_atelier.training.runs.examples import View, views
from tiny_training import Parts, load_parts

FIT = FitOptions((64,))
WITHOUT_SCALE = 0.18215
"""SD1.5's latents are multiplied by it before the model sees them."""


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture
def calls(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often the real VAE did its work, and pictures were decoded and fitted."""
    counted: Counter = Counter()

    def count(owner: Any, name: str) -> None:
        real: Callable = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    count(parts.vae.first_stage_model, "encode")
    count(latents_module, "open_picture")
    count(latents_module, "fitted_pixels")
    return counted


def noise_picture(path: Path, seed: int = 0, size: tuple[int, int] = (64, 64)) -> Path:
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)
    return path


def sample_of(path: Path, **fields: Any) -> Sample:
    with Image.open(path) as image:
        size = image.size
    return Sample(ImageFile(str(path), size), path.name, ("a",), **{"fit": FIT, **fields})


def dataset_of(folder: Path, count: int, **fields: Any) -> ImageDataset:
    return ImageDataset(
        tuple(sample_of(noise_picture(folder / f"{i}.png", i), **fields) for i in range(count))
    )


def fill(
    parts: Parts, dataset: ImageDataset, cache: Path, tick: Callable[[], None] = lambda: None
) -> tuple[ImageDataset, CachedImages]:
    with torch.inference_mode():  # as nodes run
        return cached_images(parts.vae, parts.model.model, dataset, cache, tick)


def encode(parts: Parts, pixels: Tensor) -> Tensor:
    """[C, …] as the host's own nodes make it, in the model's scale."""
    with torch.inference_mode():
        return parts.model.model.process_latent_in(parts.vae.encode(pixels[None]))[0]


def view(sample: int = 0, **changes: Any) -> View:
    return View(sample, Variant(**{"resolution": 0, **changes}))


def entries(cache: Path) -> list[Path]:
    return list((cache / "latents").rglob("*.safetensors"))


def test_latents_are_the_host_s_bit_for_bit(parts: Parts, tmp_path: Path) -> None:
    fit = replace(FIT, flip_aug=True, crop=Crop.RANDOM, crop_variants=2, resolutions=(64, 128))
    path = noise_picture(tmp_path / "wide.png", 1, (150, 90))
    dataset = ImageDataset((sample_of(path, fit=fit),))
    _, images = fill(parts, dataset, tmp_path / "cache")
    assert set(images) == set(views(dataset)) and len(images) == 8
    for found in images:
        placement = place((150, 90), fit, found.variant, "wide.png")
        pixels = fitted_pixels(open_picture(dataset.samples[0].image), placement, (255, 255, 255))
        assert torch.equal(images[found].latent, encode(parts, pixels))
        assert images[found].mask is None


def test_the_file_holds_the_latent_in_the_vae_s_own_scale(parts: Parts, tmp_path: Path) -> None:
    """So that models that share a VAE share its latents."""
    dataset = dataset_of(tmp_path, 1)
    _, images = fill(parts, dataset, tmp_path / "cache")
    raw = images._cache.read(entries(tmp_path / "cache")[0].stem)[0]["latent"]
    assert torch.equal(images[view()].latent, raw * WITHOUT_SCALE)


@torch.inference_mode()
def test_what_is_read_in_inference_mode_may_be_trained_with(parts, tmp_path: Path) -> None:
    _, images = fill(parts, dataset_of(tmp_path, 1), tmp_path / "cache")
    assert not images[view()].latent.is_inference()


def test_a_mask_is_averaged_over_each_place_of_the_latent(parts: Parts, tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(0, 256, (96, 64), dtype=np.uint8)
    fit = FitOptions((128,), bucket_no_upscale=True, bucket_reso_steps=32, flip_aug=True)
    sample = sample_of(noise_picture(tmp_path / "a.png", 0, (64, 96)), fit=fit)
    dataset = ImageDataset((replace(sample, mask=ImagePixels(values)),))
    _, images = fill(parts, dataset, tmp_path / "cache")
    for flip in (False, True):
        seen = values[:, ::-1] if flip else values
        expected = (seen / 255).reshape(12, 8, 8, 8).mean(axis=(1, 3))
        mask = images[view(flip=flip)].mask
        np.testing.assert_allclose(mask.numpy(), expected, rtol=0, atol=1e-6)


def test_a_mask_of_another_size_is_scaled_to_its_picture(parts: Parts, tmp_path: Path) -> None:
    small = np.zeros((16, 16), dtype=np.uint8)
    small[:, :8] = 255
    dataset = dataset_of(tmp_path, 1, mask=ImagePixels(small))
    _, images = fill(parts, dataset, tmp_path / "cache")
    expected = torch.zeros(8, 8)
    expected[:, :4] = 1
    torch.testing.assert_close(images[view()].mask, expected, rtol=0, atol=0.1)


def test_transparency_is_a_mask_where_there_is_any(parts: Parts, tmp_path: Path) -> None:
    clear = Image.new("RGBA", (64, 64), (200, 30, 30, 0))
    clear.paste((200, 30, 30, 255), (0, 0, 64, 16))
    clear.save(tmp_path / "clear.png")
    samples = (
        sample_of(tmp_path / "clear.png", mask=Mask.ALPHA),
        sample_of(noise_picture(tmp_path / "full.png"), mask=Mask.ALPHA),
    )
    _, images = fill(parts, ImageDataset(samples), tmp_path / "cache")
    expected = torch.zeros(8, 8)
    expected[:2] = 1
    assert torch.equal(images[view(0)].mask, expected)
    assert images[view(1)].mask is None


def test_masks_of_equal_pictures_are_told_apart(parts: Parts, tmp_path: Path, calls) -> None:
    grey, white = (ImagePixels(np.full((64, 64), v, dtype=np.uint8)) for v in (51, 255))
    (plain,) = dataset_of(tmp_path, 1).samples
    samples = [replace(plain, name=str(m), mask=m) for m in (None, grey, white, Mask.ALPHA)]
    _, images = fill(parts, ImageDataset(tuple(samples)), tmp_path / "cache")
    means = [None if i.mask is None else float(i.mask.mean()) for i in images.values()]
    assert means == [None, pytest.approx(0.2), 1.0, None]
    edited = replace(plain, mask=ImagePixels(np.full((64, 64), 9, dtype=np.uint8)))
    calls.clear()
    fill(parts, ImageDataset((edited,)), tmp_path / "cache")
    assert calls["encode"] == 1


def test_pictures_of_the_graph_are_cached_by_their_pixels(parts, tmp_path: Path, calls) -> None:
    def dataset(shade: int) -> ImageDataset:
        pixels = ImagePixels(np.full((64, 64, 3), shade, dtype=np.uint8))
        return ImageDataset((Sample(pixels, "image 1", ("a",), fit=FIT),))

    for shade, count in ((10, 1), (10, 1), (11, 2)):
        fill(parts, dataset(shade), tmp_path / "cache")
        assert calls["encode"] == count


def test_a_picture_is_decoded_once_for_all_its_views(parts: Parts, tmp_path: Path, calls) -> None:
    fit = replace(FIT, flip_aug=True, crop=Crop.RANDOM, crop_variants=3)
    pictures = [noise_picture(tmp_path / f"{i}.png", i, (160, 80)) for i in range(2)]
    dataset = ImageDataset(tuple(sample_of(path, fit=fit) for path in pictures))
    fill(parts, dataset, tmp_path / "cache")
    assert calls == {"encode": 12, "fitted_pixels": 12, "open_picture": 2}
    calls.clear()
    fill(parts, dataset, tmp_path / "cache")
    assert not calls


def test_only_the_views_that_are_missing_are_made(parts: Parts, tmp_path: Path, calls) -> None:
    dataset = dataset_of(tmp_path, 3, fit=replace(FIT, flip_aug=True))
    fill(parts, dataset, tmp_path / "cache")
    calls.clear()
    entries(tmp_path / "cache")[2].unlink()
    fill(parts, dataset, tmp_path / "cache")
    assert calls == {"encode": 1, "fitted_pixels": 1, "open_picture": 1}


def test_pictures_are_decoded_ahead_in_threads_but_not_without_bound(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real_fit, real_encode = latents_module.fitted_pixels, parts.vae.first_stage_model.encode
    ahead: list[int] = []

    def fit(*args: Any) -> Tensor:
        made.append(threading.current_thread().name)
        return real_fit(*args)

    def slow_encode(pixels: Tensor) -> Tensor:
        time.sleep(0.02)
        ahead.append(len(made) - len(ahead))
        return real_encode(pixels)

    monkeypatch.setattr(latents_module, "fitted_pixels", fit)
    monkeypatch.setattr(parts.vae.first_stage_model, "encode", slow_encode)
    fill(parts, dataset_of(tmp_path, 30), tmp_path / "cache")
    assert 1 < max(ahead) <= latents_module.AHEAD
    assert all(name.startswith("atelier-ahead") for name in made)


class Cancelled(Exception):
    pass


def test_cancel_ends_the_threads_and_keeps_what_is_done(parts, tmp_path: Path, calls) -> None:
    def tick() -> None:
        if calls["encode"] == 3:
            raise Cancelled

    dataset = dataset_of(tmp_path, 9)
    with pytest.raises(Cancelled):
        fill(parts, dataset, tmp_path / "cache", tick)
    assert not [t for t in threading.enumerate() if t.name.startswith("atelier")]
    assert len(entries(tmp_path / "cache")) == 3
    fill(parts, dataset, tmp_path / "cache")
    assert calls["encode"] == 9


def test_every_sample_ticks_twice_whatever_becomes_of_it(parts: Parts, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, 5, fit=replace(FIT, flip_aug=True))
    for _ in ("none is there", "all are"):
        ticks: list[None] = []
        fill(parts, dataset, tmp_path / "cache", lambda ticks=ticks: ticks.append(None))
        assert len(ticks) == 10


def cut_short(path: str) -> None:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


def test_broken_pictures_are_left_out_and_named(parts: Parts, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    dataset = dataset_of(tmp_path / "sub", 5, may_be_skipped=True)
    dataset = dataset.changed(replace(s, name=f"sub/{s.name}") for s in dataset.samples)
    cut_short(dataset.samples[1].image.path)
    black = ImagePixels(np.zeros((64, 64), dtype=np.uint8))
    dataset = dataset.changed(
        replace(s, mask=black) if s.name == "sub/3.png" else s for s in dataset.samples
    )
    left, images = fill(parts, dataset, tmp_path / "cache")
    assert [s.name for s in left.samples] == ["sub/0.png", "sub/2.png", "sub/4.png"]
    assert [p.name for p in left.problems] == ["sub/1.png", "sub/3.png"]
    assert '"sub/1.png" is damaged or cut short' in left.problems[0].reason
    assert '"sub/3.png" has a mask that is black all over' in left.problems[1].reason
    assert not any(str(tmp_path) in problem.reason for problem in left.problems)
    assert set(images) == set(views(left))
    for i, sample in enumerate(left.samples):
        pixels = torch.from_numpy(np.asarray(Image.open(sample.image.path), np.float32) / 255)
        assert torch.equal(images[view(i)].latent, encode(parts, pixels))


def test_a_picture_that_is_gone_is_no_broken_one(parts: Parts, tmp_path: Path) -> None:
    """A network drive that was away for a moment must not cost half of the pictures."""
    dataset = dataset_of(tmp_path, 3, may_be_skipped=True)
    Path(dataset.samples[1].image.path).unlink()
    with pytest.raises(FileChanged, match=r"1\.png.* cannot be read: .*queue again"):
        fill(parts, dataset, tmp_path / "cache")


def test_what_a_vae_of_unknown_making_gives_is_kept_in_memory_only(
    parts: Parts, tmp_path: Path, calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a key that no run finds again, files would pile up."""
    dataset = dataset_of(tmp_path, 3)
    expected = [image.latent for image in fill(parts, dataset, tmp_path / "known")[1].values()]
    monkeypatch.setitem(parts.vae.patcher.wrappers, "of another pack", {"x": [print]})
    for _ in range(2):
        _, images = fill(parts, dataset, tmp_path / "cache")
        found = [images[view(i)].latent for i in range(3)]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert not found[0].is_inference()
    assert calls["encode"] == 9
    assert not (tmp_path / "cache" / "latents").exists()


def test_sizes_that_the_vae_would_cut_are_refused_before_any_work(
    parts: Parts, tmp_path: Path, calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with VAEs that work in steps of 16 px."""
    monkeypatch.setattr(parts.vae, "spacial_compression_encode", lambda: 16)
    noise_picture(tmp_path / "a.png", 0, (72, 64))
    fit = FitOptions((72,), bucket_reso_steps=8)
    dataset = ImageDataset((sample_of(tmp_path / "a.png", fit=fit),))
    message = "steps of 16 px, but pictures are to train at 72×72 px.*bucket_reso_steps of 16"
    with pytest.raises(AtelierError, match=message):
        fill(parts, dataset, tmp_path / "cache")
    assert not calls
    fill(parts, dataset_of(tmp_path, 1), tmp_path / "cache")


def test_a_broken_mask_is_a_broken_picture(parts: Parts, tmp_path: Path) -> None:
    mask = noise_picture(tmp_path / "mask.png")
    samples = dataset_of(tmp_path, 2, may_be_skipped=True).samples
    masked = replace(samples[0], mask=ImageFile(str(mask), (64, 64)))
    cut_short(str(mask))
    left, _ = fill(parts, ImageDataset((masked, samples[1])), tmp_path / "cache")
    (problem,) = left.problems
    assert problem.name == "0.png" and '"mask.png" is damaged' in problem.reason


def test_a_picture_that_may_not_be_skipped_ends_the_start(parts: Parts, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, 3)
    cut_short(dataset.samples[1].image.path)
    with pytest.raises(AtelierError, match=r"1\.png.*is damaged or cut short"):
        fill(parts, dataset, tmp_path / "cache")


@pytest.mark.parametrize("role", [None, Role.REGULARISATION])
def test_when_nothing_is_left_to_train_on_the_first_problem_is_told(
    parts: Parts, tmp_path: Path, role: Role | None
) -> None:
    """Also where sound regularisation pictures remain."""
    dataset = dataset_of(tmp_path, 3, may_be_skipped=True)
    for sample in dataset.samples:
        cut_short(sample.image.path)
    if role is not None:
        sound = sample_of(noise_picture(tmp_path / "reg.png"), role=role)
        dataset = dataset.changed([*dataset.samples, sound])
    with pytest.raises(AtelierError, match=r'none of its pictures can be used\. "0\.png" is dam'):
        fill(parts, dataset, tmp_path / "cache")


def test_a_regularisation_picture_that_steps_in_for_a_broken_one_is_encoded(
    parts: Parts, tmp_path: Path
) -> None:
    """One training picture calls for one of them, and the first is broken."""
    (training,) = dataset_of(tmp_path, 1).samples
    spare = [
        sample_of(
            noise_picture(tmp_path / f"reg{i}.png", i),
            role=Role.REGULARISATION,
            may_be_skipped=True,
        )
        for i in range(3)
    ]
    dataset = ImageDataset((training, *spare))
    assert [v.sample for v in views(dataset)] == [0, 1]
    cut_short(spare[0].image.path)
    left, images = fill(parts, dataset, tmp_path / "cache")
    assert [s.name for s in left.samples] == ["0.png", "reg1.png", "reg2.png"]
    assert set(images) == set(views(left)) == {view(0), view(1)}
    assert images[view(1)].latent.isfinite().all()


@pytest.mark.parametrize("skip", [True, False])
def test_a_picture_edited_while_it_is_read_gives_no_entry(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip: bool
) -> None:
    """What was hashed and what was decoded must be one content, or the key would lie."""
    dataset = dataset_of(tmp_path, 2, may_be_skipped=skip)
    cache = tmp_path / "cache"
    real = latents_module.open_picture

    def open_after_an_edit(picture: ImageFile) -> Image.Image:
        if picture.path.endswith("1.png"):
            noise_picture(Path(picture.path), 77)
        return real(picture)

    with monkeypatch.context() as patch:
        patch.setattr(latents_module, "open_picture", open_after_an_edit)
        # Also where broken pictures may be skipped: this one is not broken.
        with pytest.raises(FileChanged, match="was changed while.*Queue again"):
            fill(parts, dataset, cache)
    _, images = fill(parts, dataset, cache)
    pixels = torch.from_numpy(np.asarray(Image.open(tmp_path / "1.png"), np.float32) / 255)
    assert torch.equal(images[view(1)].latent, encode(parts, pixels))
    assert len(entries(cache)) == 2  # and none under the key of what was there before


def test_a_memo_that_is_wrong_of_a_file_stops_one_start_and_no_more(parts, tmp_path: Path) -> None:
    """As of an edit that left size and times as they were."""
    dataset, cache = dataset_of(tmp_path, 1), tmp_path / "cache"
    path = dataset.samples[0].image.path
    stat = os.stat(path)
    memo = ContentDigests(cache)
    stamp = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    memo._known[path] = memo._added[path] = (stamp, "0" * 64)
    memo.save()
    with pytest.raises(FileChanged, match="Queue again"):
        fill(parts, dataset, cache)
    _, images = fill(parts, dataset, cache)
    assert len(images) == len(entries(cache)) == 1


def test_a_picture_of_another_size_than_when_it_was_listed(parts: Parts, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, 1)
    noise_picture(tmp_path / "0.png", 0, (80, 64))
    with pytest.raises(AtelierError, match=r"0\.png.*was changed while.*Queue again"):
        fill(parts, dataset, tmp_path / "cache")


def kl_autoencoder(channels: int = 4) -> Any:
    """A VAE with a distribution: the host's AutoencoderKL at its least width."""
    config = {"double_z": True, "z_channels": channels, "resolution": 64, "in_channels": 3}
    config |= {"out_ch": 3, "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    config |= {"attn_resolutions": [], "dropout": 0.0}
    params = {"ddconfig": config, "embed_dim": channels}
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        weights = AutoencoderKL(**params).state_dict()
        weights = {name: torch.randn_like(w) * 0.05 for name, w in weights.items()}
        return comfy.sd.VAE(sd=weights, config={"params": params})


@pytest.fixture(scope="module")
def kl(parts: Parts) -> Parts:
    return replace(parts, vae=kl_autoencoder())


def test_a_sample_is_the_mode_plus_noise_as_wide_as_the_vae_says(kl: Parts, tmp_path) -> None:
    dataset = dataset_of(tmp_path, 6)
    noises = []
    for kind in LatentKind:
        of_kind = dataset.changed(
            replace(s, fit=replace(FIT, latents=kind)) for s in dataset.samples
        )
        _, images = fill(kl, of_kind, tmp_path / "cache")
        noises.append([images[view(i)].latent / WITHOUT_SCALE for i in range(6)])
    model = kl.vae.first_stage_model
    for i, (mode, sample) in enumerate(zip(*noises, strict=True)):
        pixels = torch.from_numpy(np.asarray(Image.open(tmp_path / f"{i}.png"), np.float32) / 255)
        with torch.inference_mode():
            moments = model.quant_conv(model.encoder(pixels.movedim(-1, 0)[None] * 2 - 1))
        distribution = DiagonalGaussianDistribution(moments.float())
        torch.testing.assert_close(mode, distribution.mean[0], rtol=0, atol=1e-4)
        noises[0][i] = (sample - mode) / distribution.std[0]
    noise = torch.stack(noises[0])
    assert abs(float(noise.mean())) < 0.1 and abs(float(noise.std()) - 1) < 0.1
    assert len({float(n.sum()) for n in noise}) == 6  # each its own


def test_a_sample_depends_on_its_picture_alone(kl: Parts, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, 4, fit=replace(FIT, latents=LatentKind.SAMPLE))
    before = torch.get_rng_state()
    _, images = fill(kl, dataset, tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    turned = dataset.changed(reversed(dataset.samples))
    _, others = fill(kl, turned, tmp_path / "two")
    for i in range(4):
        assert torch.equal(images[view(i)].latent, others[view(3 - i)].latent)


def test_the_vae_is_left_as_it_was_even_after_an_error(kl: Parts, tmp_path: Path) -> None:
    regularizer = kl.vae.first_stage_model.regularization
    dataset = dataset_of(tmp_path, 1, fit=replace(FIT, latents=LatentKind.SAMPLE))
    weight = kl.vae.first_stage_model.quant_conv.weight
    with torch.inference_mode():
        kept = weight.clone()
        weight.fill_(float("nan"))
        try:
            with pytest.raises(AtelierError, match='not finite for "0.png".*--fp32-vae'):
                fill(kl, dataset, tmp_path / "cache")
        finally:
            weight.copy_(kept)
    assert regularizer.sample is False
    assert not entries(tmp_path / "cache")


def test_a_vae_of_another_model_is_refused(parts: Parts, tmp_path: Path) -> None:
    """Whether it has to work for that or not."""
    other = replace(parts, vae=kl_autoencoder(channels=16))
    dataset = dataset_of(tmp_path, 1)
    for _ in range(2):
        with pytest.raises(AtelierError, match="vae: its latents have 16 channels.*works with 4"):
            fill(other, dataset, tmp_path / "cache")


@pytest.fixture
def video(parts: Parts) -> Iterator[Parts]:
    """A VAE of films, Wan 2.1's at its least width, with a base model of its latents."""
    form = {"dim": 16, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    form |= {"attn_scales": [], "temperal_downsample": [False, True, True], "dropout": 0.0}
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {n: torch.randn_like(w) * 0.1 for n, w in WanVAE(**form).state_dict().items()}
        vae = comfy.sd.VAE(sd=weights)
    base = parts.model.model
    before = base.latent_format
    base.latent_format = comfy.latent_formats.Wan21()
    yield replace(parts, vae=vae)
    base.latent_format = before


def test_a_vae_of_films_gives_films_of_one_picture(video: Parts, tmp_path: Path) -> None:
    """A batch would be one film to it, so pictures go one by one."""
    dataset = dataset_of(tmp_path, 3)
    _, images = fill(video, dataset, tmp_path / "cache")
    for i in range(3):
        assert images[view(i)].latent.shape == (16, 1, 8, 8)
        pixels = torch.from_numpy(np.asarray(Image.open(tmp_path / f"{i}.png"), np.float32) / 255)
        assert torch.equal(images[view(i)].latent, encode(video, pixels))
    _, again = fill(video, dataset, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 3


def test_an_entry_that_is_gone_is_told_in_words(parts: Parts, tmp_path: Path) -> None:
    _, images = fill(parts, dataset_of(tmp_path, 1), tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(AtelierError, match="is gone or broken.*queue again"):
        images[view()]
