"""Encoded datasets that lie in memory, for tests of what comes after the cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lora_atelier.training.dataset.fit import FitOptions, Placement, Variant
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.samples import ImageDataset, Sample
from lora_atelier.training.runs.examples import EncodedDataset, EncodedImage, View

FIT = FitOptions(resolutions=(64,))
PLACEMENT = Placement((64, 64), (64, 64), (0, 0), (64, 64))
"""A 64 px picture that is neither scaled nor cut."""


def encoded_dataset(
    latents: Sequence[Tensor], conditioning: Mapping[str, Any], **sample_fields: Sequence[Any]
) -> EncodedDataset:
    """One 64 px picture a latent, each under one of the captions in turn.

    Args:
        sample_fields: fields of `Sample` by name, one value a picture.
    """
    captions = list(conditioning)
    samples = [
        Sample(ImageFile(f"{i}.png", (64, 64)), f"{i}.png", (captions[i],), fit=FIT)
        for i in range(len(latents))
    ]
    for name, values in sample_fields.items():
        samples = [replace(s, **{name: v}) for s, v in zip(samples, values, strict=True)]
    dataset = ImageDataset(tuple(samples), name="shapes")
    images = {View(i, Variant(0)): EncodedImage(latent) for i, latent in enumerate(latents)}
    return EncodedDataset(dataset, images, conditioning)


def latent_of(data: EncodedDataset, sample: int) -> Tensor:
    """The latent of a picture that has one view only."""
    return data.images[View(sample, Variant(0))].latent
