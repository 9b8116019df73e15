"""Every picture of a dataset fitted in the same way, and how they spread over the buckets."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from PIL import ImageColor

from ..errors import AtelierError, require
from .buckets import Size
from .fit import FitOptions, bucket_of, fits
from .samples import ImageDataset, Problem, Sample


def fit_options(
    resolution: str, bucket_reso_steps: str, background: str, **others: Any
) -> FitOptions:
    """The options as people write them.

    Args:
        resolution: ``512``, or several with commas: ``512, 768``; px.
        bucket_reso_steps: one of ``BUCKET_RESO_STEPS``, px.
        background: a colour by name or number: ``white``, ``#ffffff``.
        others: the other fields of :class:`FitOptions`.

    Raises:
        AtelierError: naming the widget, the value and what to write instead.
    """
    words = [word for word in re.split(r"[,;\s]+", resolution) if word]
    for word in words:
        require(
            word.isdecimal() and len(word) < 10,
            f'resolution is "{resolution}": write the side in px, such as 512, or several with '
            "commas between them: 512, 768.",
        )
    steps = int(bucket_reso_steps) if bucket_reso_steps.isdecimal() else bucket_reso_steps
    return FitOptions(
        tuple(map(int, words)), bucket_reso_steps=steps, background=_colour(background), **others
    )


def fit_dataset(dataset: ImageDataset, options: FitOptions) -> ImageDataset:
    """The dataset with these options on every sample.

    A picture without room for a single step (see :func:`fit.fits`) is left out and named when it
    may be skipped.

    Raises:
        AtelierError: it may not be skipped, or none is left.
    """
    kept, problems = [], list(dataset.problems)
    for sample in dataset.samples:
        if fits(sample.image.size, options):
            kept.append(replace(sample, fit=options))
            continue
        reason = _too_narrow(sample, options)
        require(sample.may_be_skipped, reason)
        problems.append(Problem(sample.name, reason))
    if not kept:
        raise AtelierError(f"None of the pictures fits. {problems[-1].reason}")
    return replace(dataset, samples=tuple(kept), problems=tuple(problems))


def bucket_counts(dataset: ImageDataset) -> Counter[Size]:
    """(width, height) px -> how many pictures train at it, repeats not counted."""
    return Counter(
        bucket_of(sample.image.size, sample.fit, resolution)
        for sample in dataset.samples
        for resolution in sample.fit.resolutions
    )


def bucket_summary(dataset: ImageDataset, most: int = 8) -> str:
    """``3 buckets: 512×512: 12, 448×576: 20, 576×448: 1``, the fullest first."""
    counts = bucket_counts(dataset)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{width}×{height}: {n}" for (width, height), n in ordered[:most])
    rest = len(counts) - most
    more = f" and {rest} more" if rest > 0 else ""
    return f"{len(counts)} bucket{'s' if len(counts) > 1 else ''}: {shown}{more}"


def _colour(text: str) -> tuple[int, int, int]:
    try:
        colour = ImageColor.getcolor(text.strip(), "RGB")
    except ValueError as error:
        raise AtelierError(
            f'background is "{text}": write a colour such as white, grey or #ffffff.'
        ) from error
    return colour[:3]


def _too_narrow(sample: Sample, options: FitOptions) -> str:
    width, height = sample.image.size
    return (
        f'"{sample.name}" ({width}×{height} px) is too small or too narrow for '
        f"bucket_reso_steps {options.bucket_reso_steps} when nothing may be scaled up. Turn "
        "bucket_no_upscale off, choose smaller steps, or take the picture out."
    )
