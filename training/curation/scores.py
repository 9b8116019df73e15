"""What is known of every picture when the good ones are chosen: scores, duplicates, outliers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from torch import Tensor
from torch.nn import functional

from ..cache import TensorCache
from ..dataset.analysis import Analysis, Measurements, Tick, measure_dataset
from ..dataset.digests import ContentDigests
from ..dataset.duplicates import near_groups, same_files
from ..dataset.pictures import Picture
from ..dataset.samples import ImageDataset, Problem, Role, Sample
from .reference import Likeness, common_side, features_of, likeness

MODIFIED_Z = 3.5
FEWEST_COMPARED = 5
"""Pictures from which on one can stand out."""


class Score(str, Enum):
    """What pictures are ordered by; of all of them, higher is better."""

    NONE = "none"
    """The order of the dataset."""
    SHARPNESS = "sharpness"
    REFERENCE = "reference_similarity"
    """Colours, edges and texture like those of reference pictures."""
    CLIP = "clip_similarity"
    """Like reference pictures, or the rest of the set, in the eyes of an image encoder."""


@dataclass(frozen=True)
class DatasetScores:
    """One entry a sample, in the order of the dataset."""

    digests: tuple[str | None, ...]
    """Of the content; None where the file cannot be read."""
    values: Mapping[Score, tuple[float | None, ...]]
    """Only scores that could be computed; None for a broken picture."""
    groups: tuple[int | None, ...]
    """Number of the group of near duplicates; None = alone."""
    outliers: tuple[bool, ...]
    """Far less like the references, or the rest, than the others of the same role are."""
    problems: tuple[Problem, ...]
    """The broken pictures."""


def score_dataset(
    dataset: ImageDataset,
    digests: ContentDigests,
    cache: TensorCache,
    tick: Tick,
    reference: Sequence[Picture] = (),
    embed: Callable[[Sequence[Sample]], Tensor] | None = None,
) -> DatasetScores:
    """Score every picture; what was measured before is read from the cache.

    Args:
        tick: called once a picture of the dataset, and with references once more a picture and
            once a reference; may raise to cancel, then what is done stays in the cache.
        reference: pictures of the wanted look.
        embed: gives [N, D] vectors of samples in the eyes of an image encoder.

    Raises:
        AtelierError: a reference is broken.
    """
    analysis = measure_dataset(dataset, digests, cache, tick)
    whole = [found is not None for found in analysis.measurements]
    values = {Score.SHARPNESS: tuple(map(_sharpness, analysis.measurements))}
    pictures = [
        sample.image if ok else None for sample, ok in zip(dataset.samples, whole, strict=True)
    ]
    compared: Sequence[float | None] = [None] * len(pictures)
    if reference:
        alike = _likeness(reference, pictures, digests, cache, tick)
        values[Score.REFERENCE] = tuple(None if a is None else a.similarity for a in alike)
        compared = [None if a is None else -a.distance for a in alike]
    if embed is not None:
        compared = _clip_similarities(dataset, whole, reference, embed)
        values[Score.CLIP] = tuple(compared)
    return DatasetScores(
        analysis.digests,
        values,
        _groups(dataset, analysis),
        _outliers(dataset, compared),
        analysis.problems,
    )


def _likeness(
    reference: Sequence[Picture],
    pictures: Sequence[Picture | None],
    digests: ContentDigests,
    cache: TensorCache,
    tick: Tick,
) -> list[Likeness | None]:
    side = common_side(reference, [picture for picture in pictures if picture is not None])
    wanted = features_of(reference, side, digests, cache, tick)
    found = features_of(pictures, side, digests, cache, tick)
    return likeness([features for features in wanted if features is not None], found)


def outliers_of(similarities: Sequence[float | None]) -> tuple[bool, ...]:
    """Which are far below the middle: modified z-score under -3.5 (Iglewicz & Hoaglin 1993, How to
    Detect and Handle Outliers), 0.6745 · (x - median) / MAD."""
    known = np.array([x for x in similarities if x is not None])
    if known.size < FEWEST_COMPARED:
        return (False,) * len(similarities)
    middle = float(np.median(known))
    spread = float(np.median(np.abs(known - middle)))
    least = middle - MODIFIED_Z * spread / 0.6745
    return tuple(x is not None and spread > 0 and x < least for x in similarities)


def _outliers(dataset: ImageDataset, similarities: Sequence[float | None]) -> tuple[bool, ...]:
    """Within a role: regularisation pictures are meant to be unlike those that are trained on."""
    found = [False] * len(similarities)
    for role in Role:
        places = [i for i, sample in enumerate(dataset.samples) if sample.role is role]
        for place, outlier in zip(
            places, outliers_of([similarities[i] for i in places]), strict=True
        ):
            found[place] = outlier
    return tuple(found)


def _sharpness(measured: Measurements | None) -> float | None:
    """1/σ of the blur over the edges, 1/px; 0 for a blank picture."""
    if measured is None:
        return None
    return 1 / measured.blur if measured.blur > 0 else 0.0


def _groups(dataset: ImageDataset, analysis: Analysis) -> tuple[int | None, ...]:
    """Near duplicates within a role, so that a validation picture does not drop one that is trained
    on; blank pictures, whose hashes are chance, only if they are the same file."""
    groups: list[int | None] = [None] * len(dataset.samples)
    number = 0
    for role in Role:
        places = [i for i, sample in enumerate(dataset.samples) if sample.role is role]
        measured = [analysis.measurements[i] for i in places]
        blank = [
            analysis.digests[i] if found is not None and found.blank else None
            for i, found in zip(places, measured, strict=True)
        ]
        for group in [*near_groups(measured), *same_files(blank)]:
            for place in group:
                groups[places[place]] = number
            number += 1
    return tuple(groups)


def _clip_similarities(
    dataset: ImageDataset,
    whole: Sequence[bool],
    reference: Sequence[Picture],
    embed: Callable[[Sequence[Sample]], Tensor],
) -> list[float | None]:
    """Cosine to the mean direction of the references, else of the set: its median, which a few
    strangers do not pull away."""
    samples = [sample for sample, ok in zip(dataset.samples, whole, strict=True) if ok]
    if not samples:
        return [None] * len(whole)
    vectors = functional.normalize(embed(samples).double(), dim=1)
    if reference:
        wanted = [Sample(picture, f"reference {i}") for i, picture in enumerate(reference)]
        centre = functional.normalize(embed(wanted).double(), dim=1).mean(dim=0)
    else:
        centre = vectors.median(dim=0).values
    found = iter((vectors @ functional.normalize(centre, dim=0)).tolist())
    return [next(found) if ok else None for ok in whole]
