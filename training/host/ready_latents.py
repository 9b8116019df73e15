"""A LATENT of the graph in place of the pictures' pixels: for VAEs that are elsewhere.

It is a batch of as many latents as the dataset has pictures, in its order, as VAE Encode gives them
(the model's own scale is put on here). The dataset says what they show: captions, masks, sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..cache import TensorCache, digest_of
from ..dataset.fit import Crop, LatentKind
from ..dataset.pictures import fitted_mask, open_picture
from ..dataset.samples import ImageDataset, Sample, shorten
from ..errors import require
from ..runs.examples import HELD_OUT, View, placement_of
from ..runs.identity import tensors_digest
from .latents import CachedImages, mask_of_latent, opened_mask, require_some

VERSION = 1
"""Part of every key: raise it when the same latent would be kept in another form."""


def latents_of_pictures(
    latents: Mapping[str, Any], dataset: ImageDataset, base: Any, vae: Any
) -> Tensor:
    """[N, C, …] float32 on the CPU, as the VAE gave them; a copy that autograd accepts.

    Args:
        base: the host's model, which knows its latent format.
        vae: says how many pixels a latent's step stands for; None: see :func:`pixels_a_step`.

    Raises:
        AtelierError: they are not as many as the pictures, or not of their size or of the model's
            kind, or the pictures are to be seen in more than one way.
    """
    samples = latents["samples"]
    require(
        "noise_mask" not in latents,
        "latents: they carry a mask for a sampler. Wire VAE Encode's output itself; masks for "
        "training are part of the dataset.",
    )
    require(
        isinstance(samples, Tensor) and not samples.is_nested,
        "latents: they are no batch of one size. Wire the output of VAE Encode.",
    )
    _require_one_view(dataset)
    names = [sample.name for sample in dataset.samples]
    require(
        len(samples) == len(names),
        f"latents: a batch of {len(samples)}, but the dataset holds {len(names)} pictures. Wire a "
        f"batch of one latent for each, in this order: {shorten(names)}.",
    )
    _require_kind(samples, base)
    step = pixels_a_step(samples, dataset, base, vae)
    for sample in dataset.samples:
        _require_size(sample, samples, step)
    with torch.inference_mode(False):
        return samples.detach().to("cpu", torch.float32, copy=True)


def kept_latents(
    latents: Tensor, dataset: ImageDataset, base: Any, cache: TensorCache
) -> tuple[CachedImages, str]:
    """(views of all pictures with their masks, read from disk when asked for; a digest).

    Raises:
        AtelierError: a mask cannot be read, or hides everything.
    """
    keys: dict[View, str] = {}
    for index, (sample, latent) in enumerate(zip(dataset.samples, latents, strict=True)):
        mask = _mask(sample, latent)
        entry = {"latent": latent} if mask is None else {"latent": latent, "mask": mask}
        key = digest_of(VERSION, "ready latent", tensors_digest(entry))
        if cache.read(key) is None:
            cache.write(key, entry)
        keys[View(index, HELD_OUT)] = key
    return CachedImages(cache, keys, base), digest_of(list(keys.values()))


def pixels_a_step(samples: Tensor, dataset: ImageDataset, base: Any, vae: Any) -> int:
    """How many pixels one number of a latent stands for along a side: as VAE or model tell it, or
    else as the size of the first picture does; 0 where that is no whole number."""
    told = vae.spacial_compression_encode() if has_vae(vae) else None
    told = told or getattr(base.latent_format, "spacial_downscale_ratio", None)  # of newer hosts
    if told:
        return int(told)
    width = placement_of(dataset.samples[0], HELD_OUT).size[0]
    return width // samples.shape[-1] if width % samples.shape[-1] == 0 else 0


def has_vae(vae: Any) -> bool:
    """Whether there is one: from a checkpoint without, the host gives an empty one."""
    return getattr(vae, "first_stage_model", vae) is not None


def latents_note(latents: Mapping[str, Any], dataset: ImageDataset, base: Any, vae: Any) -> str:
    """What the latents are taken for."""
    samples = latents["samples"]
    height, width = samples.shape[-2:]
    step = pixels_a_step(samples, dataset, base, vae)
    return f"latents: ready, {width}×{height} for pictures of {width * step}×{height * step} px"


def _require_one_view(dataset: ImageDataset) -> None:
    """Refuse what would ask for other pixels than those that were encoded."""
    for sample in dataset.samples:
        fit = sample.fit
        asked = {
            "flip_aug is on": fit.flip_aug,
            "crop is random": fit.crop is Crop.RANDOM,
            "latents is sample": fit.latents is LatentKind.SAMPLE,
            f"resolution has {len(fit.resolutions)} values": len(fit.resolutions) > 1,
        }
        wrong = [what for what, applies in asked.items() if applies]
        require(
            not wrong,
            f"{' and '.join(wrong)} (Fit Images), but ready latents are connected, which show "
            f'each picture in one way ("{sample.name}"). Change that, or wire vae in place of '
            "latents.",
        )


def _require_kind(samples: Tensor, base: Any) -> None:
    channels, sides = base.latent_format.latent_channels, base.latent_format.latent_dimensions
    require(
        samples.ndim == 2 + sides and samples.shape[1] == channels,
        f"latents: their shape is {_text(samples.shape)}, but this model works with latents of "
        f"{channels} channels and {sides} sides behind the batch. Encode the pictures with the VAE "
        "that belongs to the model.",
    )
    require(
        bool(samples.isfinite().all()),
        "latents: they hold numbers that are not finite. The VAE's precision was too low: start "
        "ComfyUI with --fp32-vae or --bf16-vae, or use a fixed VAE.",
    )
    require(
        all(bool(latent.any()) for latent in samples),
        "latents: one is all zero, as Empty Latent Image makes it. Wire the output of VAE Encode.",
    )


def _require_size(sample: Sample, latents: Tensor, step: int) -> None:
    width, height = placement_of(sample, HELD_OUT).size
    rows, columns = latents.shape[-2:]
    require(
        (columns * step, rows * step) == (width, height),
        f'latents: {columns}×{rows}, but "{sample.name}" trains at {width}×{height} px. Encode '
        "pictures of the size at which they train, all of one: on Fit Images, switch enable_bucket "
        "off or choose another resolution.",
    )


def _mask(sample: Sample, latent: Tensor) -> Tensor | None:
    """[h, w] of the latent, from the picture's own mask."""
    if sample.mask is None:
        return None
    mask = opened_mask(sample, open_picture(sample.image))
    require_some(mask, sample)
    if mask is None:
        return None
    return mask_of_latent(fitted_mask(mask, placement_of(sample, HELD_OUT)), latent)


def _text(shape: torch.Size) -> str:
    return "×".join(map(str, shape))
