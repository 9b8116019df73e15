"""A dataset as JSON: all that is said of its pictures, without the pictures themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..dataset.caption_options import CaptionOptions
from ..dataset.fit import FitOptions
from ..dataset.pictures import ImageFile
from ..dataset.samples import ImageDataset, Mask, Problem, Role, Sample
from ..runs.spec_json import from_json, to_json

PICTURES = ("image", "mask")
"""Fields of a sample of which no more is kept than training from latents asks for."""


def dataset_to_json(dataset: ImageDataset) -> dict[str, Any]:
    """Samples in their order; of each picture its size stays, and of a mask that there is one."""
    return {
        "name": dataset.name,
        "samples": [_sample_to_json(sample) for sample in dataset.samples],
        "problems": [to_json(problem) for problem in dataset.problems],
    }


def dataset_from_json(data: Mapping[str, Any]) -> ImageDataset:
    """The dataset that :func:`dataset_to_json` was given. Its pictures cannot be opened: in place
    of a path each has the name of its sample, since no path of another machine is of use.

    Raises:
        AtelierError: it holds a setting that this version does not know.
    """
    return ImageDataset(
        tuple(_sample_from_json(sample) for sample in data["samples"]),
        data["name"],
        tuple(from_json(Problem, problem) for problem in data["problems"]),
    )


def _sample_to_json(sample: Sample) -> dict[str, Any]:
    said = {f.name: getattr(sample, f.name) for f in fields(sample) if f.name not in PICTURES}
    mask: Any = sample.mask
    if mask is not None and not isinstance(mask, Mask):
        mask = list(mask.size)
    return {
        **{name: to_json(value) for name, value in said.items()},
        "size": list(sample.image.size),
        "mask": to_json(mask),
    }


def _sample_from_json(data: Mapping[str, Any]) -> Sample:
    kept = dict(data)
    name, mask = kept["name"], kept.pop("mask")
    if mask is not None:
        mask = Mask(mask) if isinstance(mask, str) else ImageFile(name, (mask[0], mask[1]))
    width, height = kept.pop("size")
    return Sample(
        **kept
        | {
            "image": ImageFile(name, (width, height)),
            "mask": mask,
            "captions": tuple(kept["captions"]),
            "role": Role(kept["role"]),
            "fit": from_json(FitOptions, kept["fit"]),
            "caption_options": from_json(CaptionOptions, kept["caption_options"]),
        }
    )
