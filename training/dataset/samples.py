"""The dataset value: which pictures, with which captions, how often, at which size. No latents."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from ..errors import AtelierError, require, require_number
from .caption_options import CaptionOptions
from .fit import FitOptions
from .pictures import Picture


class Role(str, Enum):
    """What a picture is for."""

    TRAIN = "train"
    REGULARISATION = "regularisation"
    """Pictures of the class in general, that keep the model from forgetting it."""
    VALIDATION = "validation"
    """Never trained on; the held-out loss is measured on them."""


class Mask(str, Enum):
    """A mask that lies in the picture itself."""

    ALPHA = "alpha"


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture, what it shows and how it is used; all that is said of it stays together."""

    image: Picture
    name: str
    """Path within its folder, with forward slashes; unique in a dataset, the same on every
    machine. Messages name it, and the validation split and random crops are keyed by it."""
    captions: tuple[str, ...] = ("",)
    """At least one; several are alternatives, of which training draws one each time."""
    num_repeats: int = 1
    """How often it is seen in one epoch."""
    role: Role = Role.TRAIN
    loss_weight: float = 1.0
    """Factor on its loss."""
    mask: Picture | Mask | None = None
    """Where to look: white (255) counts in the loss, black does not."""
    source: str = ""
    """Where it comes from; travels into the LoRA's metadata."""
    license: str = ""
    """Its licence; travels into the LoRA's metadata."""
    fit: FitOptions = FitOptions()
    caption_options: CaptionOptions = CaptionOptions()
    may_be_skipped: bool = False
    """A picture that turns out to be broken is left out, and named, instead of ending the run."""
    class_tokens: str = ""
    """The trigger word that was put into its captions; travels into the LoRA's metadata."""

    @property
    def caption(self) -> str:
        """The first caption."""
        return self.captions[0]


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that is not in the dataset although it lies in its folder."""

    name: str
    reason: str
    """A sentence that names the file and says what to do."""


@dataclass(frozen=True)
class ImageDataset:
    """Samples with distinct names; never changed after it was made."""

    samples: tuple[Sample, ...]
    name: str = "dataset"
    problems: tuple[Problem, ...] = ()
    """Files that were left out, and why."""

    def __post_init__(self) -> None:
        why = f" {self.problems[0].reason}" if self.problems else ""
        require(len(self.samples) > 0, f"The dataset holds no pictures.{why}")
        names = Counter(sample.name for sample in self.samples)
        twice = [name for name, count in names.items() if count > 1]
        require(not twice, f"The dataset holds two pictures of one name: {shorten(twice)}.")

    def with_role(self, *roles: Role) -> tuple[Sample, ...]:
        """The samples of these roles, in their order."""
        return tuple(sample for sample in self.samples if sample.role in roles)

    @property
    def images_per_epoch(self) -> int:
        """Training pictures seen in one epoch: repeats and resolutions counted."""
        return sum(s.num_repeats * len(s.fit.resolutions) for s in self.with_role(Role.TRAIN))

    @property
    def sources(self) -> str:
        """Where the pictures come from, most frequent first: ``my photos (12), museum (3)``."""
        return tally(sample.source for sample in self.samples)

    @property
    def licenses(self) -> str:
        """Licences of the pictures, most frequent first: ``CC0 (12), MIT (3)``."""
        return tally(sample.license for sample in self.samples)

    @property
    def trigger_phrase(self) -> str:
        """The trigger word of the most training pictures; "" = none has one."""
        words = Counter(filter(None, (s.class_tokens for s in self.with_role(Role.TRAIN))))
        return max(words, key=words.__getitem__, default="")

    def changed(self, samples: Iterable[Sample]) -> ImageDataset:
        """The same dataset with other samples."""
        return replace(self, samples=tuple(samples))


def require_sample_numbers(num_repeats: int, loss_weight: float) -> None:
    """Judge the widgets that every node with samples of its own has.

    Raises:
        AtelierError: out of range.
    """
    advice = "1 is usual; more balances a small folder against a large one."
    require_number("num_repeats", num_repeats, 1, 10_000, advice)
    require_number("loss_weight", loss_weight, 0, 100, "1 is usual.")


def split_validation(samples: Iterable[Sample], fraction: float) -> tuple[Sample, ...]:
    """Set about ``fraction`` of the training samples aside for validation, at least one.

    Whether a sample is chosen depends on its own name alone, so new pictures do not move the old
    ones from one side to the other. Only where the fraction takes none of a few, the one nearest to
    it stands in, until pictures come that it does take.

    Raises:
        AtelierError: nothing would be left to train on.
    """
    require_number("validation_fraction", fraction, 0, 0.9, "0 = off, 0.1 is usual.")
    samples = tuple(samples)
    if fraction == 0:
        return samples
    places = {s.name: _place(s.name) for s in samples if s.role is Role.TRAIN}
    if not places:
        return samples
    chosen = {name for name, place in places.items() if place < fraction}
    chosen = chosen or {min(places, key=places.__getitem__)}
    if len(chosen) == len(places):
        raise AtelierError(
            f"validation_fraction {fraction:g} would take every training picture ({len(places)}) "
            "and leave none to train on. Set it to 0, or add pictures."
        )
    return tuple(replace(s, role=Role.VALIDATION) if s.name in chosen else s for s in samples)


def tally(values: Iterable[str]) -> str:
    """``CC0 (12), MIT (3)``; one value alone goes without its count, empty ones are left out."""
    counts = Counter(value for value in values if value).most_common()
    if len(counts) == 1:
        return counts[0][0]
    return ", ".join(f"{value} ({count})" for value, count in counts)


def shorten(names: list[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _place(name: str) -> float:
    """A number in [0, 1) that looks random and depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
