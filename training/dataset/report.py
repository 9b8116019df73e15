"""Everything the dataset report knows, as numbers; two other files say and draw it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median

from ..errors import require_number
from ..runs.batches import BatchPlan
from ..runs.examples import effective_repeats
from .analysis import Analysis, Measurements
from .buckets import Size
from .caption_counts import CaptionCounts, all_captions, count_captions, plain_captions
from .duplicates import Group, near_groups, same_files
from .fit import Placement, Variant, place
from .samples import ImageDataset, Problem, Role, Sample
from .spread import Spread
from .token_counts import EncoderTokens
from .variety import ENOUGH, GroupVariety, variety

BLURRED = 0.9
"""σ of the blur, px at the working size. Sharp photos and drawings have 0.4 to 0.8, pictures
blurred by 1 px 0.7 to 1.2, by 2 px 1.2 to 2."""

BLURRED_BESIDE_OTHERS = 1.5
"""Times the median of the set; a set that is soft as a whole is soft on purpose."""

TOLD = 0.1
"""Share of the captions that must name a pose (or angle …) for its variety to be judged."""

SOFT_SET = 1.2
"""Median σ, px, from which the whole set is called soft."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """One picture at one of its resolutions."""

    sample: int
    resolution: int
    """Px."""
    placement: Placement

    @property
    def upscale(self) -> float:
        """Factor by which the picture is scaled; over 1, pixels are made up."""
        return max(
            new / old
            for new, old in zip(self.placement.resized, self.placement.original, strict=True)
        )

    @property
    def cut(self) -> float:
        """Share of the scaled picture that is cut away, 0..1."""
        return 1 - math.prod(self.placement.size) / max(1, math.prod(self.placement.resized))


@dataclass(frozen=True)
class Bucket:
    """The pictures that train at one size."""

    size: Size
    pictures: int
    seen: int
    """Pictures an epoch, repeats counted."""
    batches: int
    """An epoch."""
    cut: float
    """Mean share that is cut away, 0..1."""


@dataclass(frozen=True)
class Epoch:
    """How an epoch is cut into steps."""

    pictures: int
    """Seen in an epoch."""
    batches: int
    train_batch_size: int
    gradient_accumulation_steps: int

    @property
    def steps(self) -> float:
        """Optimizer steps; a fraction where a step spans two epochs."""
        return self.batches / self.gradient_accumulation_steps

    @property
    def full_batches(self) -> int:
        """The batches there would be if none but the last were short."""
        return -(-self.pictures // self.train_batch_size)


@dataclass(frozen=True)
class DatasetReport:
    """What is to be said of a dataset; indices are places in ``samples``."""

    dataset: ImageDataset
    """As it came, with the broken pictures."""
    problems: tuple[Problem, ...]
    """Files that were left out, and pictures that turned out to be broken."""
    broken: int
    """How many of them are broken pictures of the dataset."""
    samples: tuple[Sample, ...]
    """The pictures that are sound."""
    measurements: tuple[Measurements, ...]
    fitted: tuple[Fitted, ...]
    buckets: tuple[Bucket, ...]
    """The fullest first."""
    epoch: Epoch | None
    """None when there is nothing to train on."""
    same: tuple[Group, ...]
    near: tuple[Group, ...]
    captions: CaptionCounts
    variety: dict[str, GroupVariety]
    tokens: tuple[EncoderTokens, ...] | None
    """Of :func:`distinct_captions`; None = no CLIP was there to count them."""
    spread: Spread | None
    """Of :func:`training_places`; None = no CLIP_VISION was there, or one picture only."""

    @cached_property
    def leaks(self) -> list[Group]:
        """Duplicates of which some are held out for validation and others are not."""
        return [
            group
            for group in (*self.same, *self.near)
            if 0 < sum(self.samples[i].role is Role.VALIDATION for i in group) < len(group)
        ]

    @cached_property
    def told_variety(self) -> dict[str, GroupVariety]:
        """The groups of which enough captions say something."""
        enough = max(ENOUGH, TOLD * self.captions.captioned)
        return {group: found for group, found in self.variety.items() if found.named >= enough}

    @cached_property
    def blank(self) -> list[int]:
        """Pictures of one colour."""
        return [i for i, found in enumerate(self.measurements) if found.blank]

    @cached_property
    def blur(self) -> float:
        """Median σ of the pictures that have edges, px at the working size; 0 if none has."""
        return median([found.blur for found in self.measurements if not found.blank] or [0.0])

    @cached_property
    def blurred_from(self) -> float:
        """σ from which a picture of this set is called blurred, px."""
        return max(BLURRED, BLURRED_BESIDE_OTHERS * self.blur)

    @cached_property
    def blurred(self) -> list[int]:
        """Pictures whose edges are soft, by themselves and beside the others; the softest first."""
        soft = [i for i, found in enumerate(self.measurements) if found.blur >= self.blurred_from]
        return sorted(soft, key=lambda i: -self.measurements[i].blur)

    @cached_property
    def too_small(self) -> list[Fitted]:
        """Pictures that are scaled up, the most first; each at its largest resolution."""
        small: dict[int, Fitted] = {}
        for fitted in self.fitted:
            known = small.get(fitted.sample)
            if fitted.upscale > 1 and (known is None or fitted.upscale > known.upscale):
                small[fitted.sample] = fitted
        return sorted(small.values(), key=lambda fitted: -fitted.upscale)

    @cached_property
    def too_narrow(self) -> list[int]:
        """Pictures without room for one step of a bucket, which cannot train."""
        return sorted({f.sample for f in self.fitted if min(f.placement.size) == 0})

    def most_cut(self, share: float) -> list[Fitted]:
        """Pictures of which at least ``share`` is cut away, the most first; each once."""
        cut: dict[int, Fitted] = {}
        for fitted in self.fitted:
            known = cut.get(fitted.sample)
            if fitted.cut >= share and (known is None or fitted.cut > known.cut):
                cut[fitted.sample] = fitted
        return sorted(cut.values(), key=lambda fitted: -fitted.cut)

    def without(self, field: str) -> list[str]:
        """Names of the pictures of which ``source`` or ``license`` is not known."""
        return [s.name for s in self.samples if not getattr(s, field).strip()]


def sound(dataset: ImageDataset, analysis: Analysis) -> tuple[Sample, ...]:
    """The samples that can be decoded."""
    pairs = zip(dataset.samples, analysis.measurements, strict=True)
    return tuple(sample for sample, found in pairs if found is not None)


def distinct_captions(samples: Sequence[Sample]) -> list[str]:
    """Every caption once, empty ones left out."""
    texts = dict.fromkeys(text for sample in samples for text in plain_captions(sample))
    return [text for text in texts if text.strip()]


def training_places(samples: Sequence[Sample]) -> list[int]:
    """Indices of the samples whose role is to train."""
    return [i for i, sample in enumerate(samples) if sample.role is Role.TRAIN]


def examine(
    dataset: ImageDataset,
    analysis: Analysis,
    train_batch_size: int,
    gradient_accumulation_steps: int,
    tokens: tuple[EncoderTokens, ...] | None = None,
    spread: Spread | None = None,
    tick: Callable[[], None] = lambda: None,
) -> DatasetReport:
    """Put the numbers together.

    Args:
        tokens: of :func:`distinct_captions` of the sound samples.
        spread: of the sound samples at :func:`training_places`.
        tick: called after each picture; may raise to cancel.
    """
    require_number("train_batch_size", train_batch_size, 1, 4096, "1 to 8 is usual.")
    require_number("gradient_accumulation_steps", gradient_accumulation_steps, 1, 4096, "1 = off.")
    samples = sound(dataset, analysis)
    pairs = list(zip(analysis.measurements, analysis.digests, strict=True))
    measurements = tuple(found for found, _ in pairs if found is not None)
    same = same_files([digest for found, digest in pairs if found is not None])
    again = {i for group in same for i in group[1:]}
    near = near_groups([None if i in again else m for i, m in enumerate(measurements)], tick)
    fitted = _fit(samples)
    buckets, epoch = _epoch(samples, fitted, train_batch_size, gradient_accumulation_steps)
    return DatasetReport(
        dataset,
        (*analysis.problems, *dataset.problems),
        len(analysis.problems),
        samples,
        measurements,
        fitted,
        buckets,
        epoch,
        tuple(same),
        tuple(near),
        count_captions(samples),
        variety(all_captions(samples[i]) for i in training_places(samples)),
        tokens,
        spread,
    )


def _fit(samples: Sequence[Sample]) -> tuple[Fitted, ...]:
    return tuple(
        Fitted(i, resolution, place(sample.image.size, sample.fit, Variant(r), sample.name))
        for i, sample in enumerate(samples)
        for r, resolution in enumerate(sample.fit.resolutions)
    )


def _epoch(
    samples: Sequence[Sample],
    fitted: Sequence[Fitted],
    train_batch_size: int,
    gradient_accumulation_steps: int,
) -> tuple[tuple[Bucket, ...], Epoch | None]:
    """As :func:`training.runs.examples.items` and the training loop have it; the seed changes the
    order alone."""
    if not training_places(samples):
        return (), None
    repeats = effective_repeats(ImageDataset(tuple(samples)))
    trained = [f for f in fitted if samples[f.sample].role is not Role.VALIDATION]
    sizes = tuple(f.placement.size for f in trained)
    plan = BatchPlan(tuple(repeats[f.sample] for f in trained), sizes, train_batch_size, seed=0)
    batches = [[draw.item for draw in plan.batch(i)] for i in range(plan.batches_per_epoch)]
    counts: dict[Size, list[int]] = defaultdict(lambda: [0, 0])
    for batch in batches:
        of_bucket = counts[sizes[batch[0]]]
        of_bucket[0] += len(batch)
        of_bucket[1] += 1
    members: dict[Size, list[Fitted]] = defaultdict(list)
    for f in trained:
        members[f.placement.size].append(f)
    buckets = [
        Bucket(size, len(found), *counts[size], fmean(f.cut for f in found))
        for size, found in members.items()
    ]
    pictures = sum(map(len, batches))
    epoch = Epoch(pictures, len(batches), train_batch_size, gradient_accumulation_steps)
    return tuple(sorted(buckets, key=lambda b: (-b.pictures, b.size))), epoch
