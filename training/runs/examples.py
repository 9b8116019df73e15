"""From a place in the run to what the model sees there: latent, caption, mask, size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..cache import digest_of
from ..dataset.caption_options import caption_variant, caption_variants, count_variants
from ..dataset.fit import Placement, Variant, bucket_of, place
from ..dataset.samples import ImageDataset, Role, Sample
from ..errors import require
from ..random_streams import generator
from .batches import Draw

Conditioning = Any
"""One caption as the host encoded it; opaque to the engine."""


OWN = "\ufdd2"
"""Begins the key of a conditioning that is a picture's own; no caption has this character, which
Unicode keeps for a program's own use."""

HELD_OUT = Variant(0)
"""How a validation picture is seen: at its first resolution, in its first cut, not mirrored."""


class View(NamedTuple):
    """One way in which one sample may be seen."""

    sample: int
    """Index into the dataset's samples."""
    variant: Variant


@dataclass(frozen=True)
class EncodedImage:
    """A view as the VAE gave it."""

    latent: Tensor
    """[C, …] float32 on the CPU, in the model's own scale."""
    mask: Tensor | None = None
    """[H, W] of the latent, 0..1: how much each place counts in the loss."""


@dataclass(frozen=True)
class Example:
    """One picture as it is seen at one place of the run."""

    image: EncodedImage
    conditioning: Conditioning
    placement: Placement
    loss_weight: float
    role: Role


@dataclass(frozen=True)
class EncodedDataset:
    """A dataset and what VAE and text encoder made of it."""

    dataset: ImageDataset
    images: Mapping[View, EncodedImage]
    """Every view that :func:`views` lists; may read each from disk when asked for it."""
    conditioning: Mapping[str, Conditioning]
    """Every caption that :func:`captions` lists; likewise. Or by :func:`own_key`, where a picture
    has a conditioning of its own, whatever its captions say."""

    def example(self, sample: int, resolution: int, seed: int, draw: Draw) -> Example:
        """What is drawn of a sample at a place of the run: crop, mirroring and caption."""
        chosen = self.dataset.samples[sample]
        view = View(sample, _draw_variant(chosen, resolution, seed, draw))
        caption = draw_caption(chosen, seed, draw)
        placement = placement_of(chosen, view.variant)
        image, conditioning = self.images[view], self.conditioning[self.key(chosen, caption)]
        return Example(image, conditioning, placement, chosen.loss_weight, chosen.role)

    def held_out_example(self, sample: int) -> Example:
        """A validation picture, which is always seen in the same way."""
        chosen = self.dataset.samples[sample]
        image = self.images[View(sample, HELD_OUT)]
        conditioning = self.conditioning[self.key(chosen, held_out_caption(chosen))]
        placement = placement_of(chosen, HELD_OUT)
        return Example(image, conditioning, placement, chosen.loss_weight, chosen.role)

    def key(self, sample: Sample, caption: str) -> str:
        """Under which the conditioning lies that a sample is seen with."""
        own = own_key(sample)
        return own if own in self.conditioning else caption


class Items(NamedTuple):
    """What an epoch is made of, as :class:`training.runs.batches.BatchPlan` wants it."""

    views: tuple[tuple[int, int], ...]
    """(index of the sample, index of its resolution)."""
    num_repeats: tuple[int, ...]
    buckets: tuple[tuple[int, int], ...]


def items(dataset: ImageDataset) -> Items:
    """Every sample that is trained on, at each of its resolutions.

    Raises:
        AtelierError: there is none.
    """
    require(
        len(dataset.with_role(Role.TRAIN)) > 0,
        f'dataset: "{dataset.name}" holds no pictures to train on, only some for regularisation '
        "or validation. Combine it with a dataset of role train.",
    )
    repeats = effective_repeats(dataset)
    found = [
        ((i, r), repeats[i], bucket_of(sample.image.size, sample.fit, resolution))
        for i, sample in enumerate(dataset.samples)
        if repeats[i] > 0
        for r, resolution in enumerate(sample.fit.resolutions)
    ]
    return Items(*(tuple(column) for column in zip(*found, strict=True)))


def effective_repeats(dataset: ImageDataset) -> list[int]:
    """How often each sample is seen in an epoch, at each of its resolutions.

    Regularisation pictures are taken in turn until as many of them are seen as training pictures,
    repeats and resolutions counted: first each as often as it asks, then each once more, round
    after round. Those left over are not seen (0), nor are those for validation.
    Source: kohya-ss/sd-scripts, ``library/train_util.py`` ``DreamBoothDataset.__init__``.
    """
    samples = dataset.samples
    repeats = [s.num_repeats if s.role is Role.TRAIN else 0 for s in samples]
    regularisation = [i for i, s in enumerate(samples) if s.role is Role.REGULARISATION]
    if not regularisation:
        return repeats
    wanted = dataset.images_per_epoch
    for i in regularisation:
        if wanted > 0:
            repeats[i] = samples[i].num_repeats
            wanted -= repeats[i] * len(samples[i].fit.resolutions)
    in_one_round = sum(len(samples[i].fit.resolutions) for i in regularisation)
    rounds, wanted = divmod(max(wanted, 0), in_one_round)
    for i in regularisation:
        repeats[i] += rounds + (wanted > 0)
        wanted -= len(samples[i].fit.resolutions)
    return repeats


def views(dataset: ImageDataset) -> list[View]:
    """Everything that may be seen of the pictures, each once: what training may draw, and of those
    for validation what is measured."""
    repeats = effective_repeats(dataset)
    found: list[View] = []
    for i, sample in enumerate(dataset.samples):
        if sample.role is Role.VALIDATION:
            found.append(View(i, HELD_OUT))
        elif repeats[i] > 0:
            ways = range(len(sample.fit.resolutions)), range(sample.fit.crops), _flips(sample)
            found += [View(i, Variant(*variant)) for variant in product(*ways)]
    return found


def captions(dataset: ImageDataset) -> list[str]:
    """Every text that may be read, each once; the empty one first, since dropout needs it."""
    found = [""]
    for sample, repeats in zip(dataset.samples, effective_repeats(dataset), strict=True):
        if sample.role is Role.VALIDATION:
            found.append(held_out_caption(sample))
        elif repeats > 0:
            found += _texts(sample)
    return list(dict.fromkeys(found))


def own_key(sample: Sample) -> str:
    """Of the conditioning that is a sample's own. All have one length, so that their order is that
    in which they were put (:func:`training.memory.estimate.longest_conditioning`)."""
    return OWN + digest_of(sample.name)


def held_out_caption(sample: Sample) -> str:
    """The first caption of a validation picture with its tags in order, and all of them."""
    options = replace(sample.caption_options, shuffle_caption=False, caption_tag_dropout_rate=0.0)
    return caption_variant(sample.captions, options, sample.name, 0)


def draw_caption(sample: Sample, seed: int, draw: Draw) -> str:
    """The text a sample is seen with at a place of the run; "" when dropout takes it."""
    options = sample.caption_options
    rng = generator(seed, "caption", draw.epoch, draw.position)
    dropped = float(torch.rand((), generator=rng)) < options.caption_dropout_rate
    every = options.caption_dropout_every_n_epochs
    if dropped or (every > 0 and (draw.epoch + 1) % every == 0):  # sd-scripts counts epochs from 1
        return ""
    count = count_variants(sample.captions, options)
    number = int(torch.randint(count, (1,), generator=rng))
    return caption_variant(sample.captions, options, sample.name, number)


def stacked_masks(images: list[EncodedImage]) -> Tensor | None:
    """[B, H, W] masks of a batch, all ones where a picture has none; None when none has one."""
    if all(image.mask is None for image in images):
        return None
    height, width = images[0].latent.shape[-2:]
    whole = torch.ones(height, width)
    return torch.stack([whole if image.mask is None else image.mask for image in images])


def placement_of(sample: Sample, variant: Variant) -> Placement:
    """How the pixels of a view are made."""
    return place(sample.image.size, sample.fit, variant, sample.name)


def _draw_variant(sample: Sample, resolution: int, seed: int, draw: Draw) -> Variant:
    rng = generator(seed, "view", draw.epoch, draw.position)
    crop = int(torch.randint(sample.fit.crops, (1,), generator=rng))
    flip = sample.fit.flip_aug and bool(torch.randint(2, (1,), generator=rng))
    return Variant(resolution, crop, flip)


def _flips(sample: Sample) -> tuple[bool, ...]:
    return (False, True) if sample.fit.flip_aug else (False,)


def _texts(sample: Sample) -> tuple[str, ...]:
    return caption_variants(sample.captions, sample.caption_options, sample.name)
