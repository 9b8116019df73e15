"""What is evaluated: which pictures every LoRA draws in every strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from ..dataset.samples import ImageDataset, Role
from ..errors import require, require_number
from ..results.grid_spec import Variant, parse_strengths
from ..results.preview_spec import SEED_LIMIT, PreviewSpec, parse_prompts
from ..runs.examples import held_out_caption

IMAGES = (2, 64)
"""Pictures of a LoRA in one strength."""
STRENGTHS = (0.0, 4.0)
MOST_PICTURES = 1000
MOST_LOOKED_AT = 48
"""Pictures on which the loss is measured."""

MOST_REPAINTED = 64
"""Training pictures that go through the VAE, to compare styles with."""

T = TypeVar("T")


class Asked(NamedTuple):
    """One picture that is drawn by all."""

    prompt: int
    """Index into the prompts."""
    seed: int


class Prompts(NamedTuple):
    """What is asked for."""

    texts: tuple[str, ...]
    source: str
    """Where they come from, in words."""
    are_trained: bool
    """They are captions of the pictures that trained: what is drawn may be those by right."""


@dataclass(frozen=True)
class EvaluationSpec:
    """Every LoRA in every strength, and the base, draw the same pictures."""

    preview: PreviewSpec
    """Size, sampler, negative prompt and seeds; its prompts have no part."""
    loras: tuple[str, ...]
    """What to call them."""
    prompts: Prompts
    strengths: tuple[float, ...] = (1.0,)
    images_per_checkpoint: int = 8

    def __post_init__(self) -> None:
        require(
            bool(self.loras),
            "There is no LoRA to evaluate: the state is at step 0, and its run has saved none. "
            "Train first, or write the names of files into lora_files.",
        )
        require_images(self.images_per_checkpoint)
        total = (1 + len(self.loras) * len(self.strengths)) * self.images_per_checkpoint
        require(
            total <= MOST_PICTURES,
            f"This would draw {total} pictures: {self.images_per_checkpoint} × (the base + "
            f"{len(self.loras)} LoRAs × {len(self.strengths)} strengths). At most {MOST_PICTURES} "
            "are possible; 50 to 200 are usual. Take fewer of one of them.",
        )

    @property
    def variants(self) -> list[Variant | None]:
        """In the order in which they are measured; None is the base."""
        count = range(len(self.strengths))
        return [None, *(Variant(i, k) for i in range(len(self.loras)) for k in count)]

    @property
    def asked(self) -> list[Asked]:
        """As many pictures as wanted: each prompt once, or evenly chosen ones; then each again with
        the next seed. When the seeds are used up, they are counted on from the last."""
        count, seeds = self.images_per_checkpoint, self.preview.seeds
        chosen = evenly(range(len(self.prompts.texts)), count)
        found = []
        for number in range(count):
            rounds, place = divmod(number, len(chosen))
            beyond = rounds - (len(seeds) - 1)
            seed = seeds[rounds] if beyond <= 0 else (seeds[-1] + beyond) % (SEED_LIMIT + 1)
            found.append(Asked(chosen[place], seed))
        return found


def require_images(images_per_checkpoint: int) -> None:
    """Refuse a number of pictures of which nothing can be said, or that nobody waits for.

    Raises:
        AtelierError: names the range.
    """
    advice = "8 is usual, 16 or more where checkpoints are close."
    require_number("images_per_checkpoint", images_per_checkpoint, *IMAGES, advice)


def parse_evaluated_strengths(text: str) -> tuple[float, ...]:
    """``0.6, 1`` -> (0.6, 1.0), each once.

    Raises:
        AtelierError: as :func:`parse_strengths`; or one is negative or very large.
    """
    strengths = parse_strengths(text)
    for strength in strengths:
        require_number("strengths", strength, *STRENGTHS, "0.6 to 1 is usual.")
    return strengths


def chosen_prompts(text: str, dataset: ImageDataset) -> Prompts:
    """What is asked for: the written prompts, else the captions of the validation pictures, else
    those of the training pictures; each once.

    Raises:
        AtelierError: neither has a word.
    """
    written = parse_prompts(text)
    if written:
        return Prompts(tuple(dict.fromkeys(written)), "prompts as written", False)
    for role, source in (
        (Role.VALIDATION, "captions of the validation pictures"),
        (Role.TRAIN, "captions of the training pictures"),
    ):
        captions = [held_out_caption(sample) for sample in dataset.with_role(role)]
        found = tuple(dict.fromkeys(filter(str.strip, captions)))
        if found:
            return Prompts(found, source, role is Role.TRAIN)
    raise_silent = "prompts is empty, and the dataset has no captions. Write prompts, one a line."
    require(False, raise_silent)
    raise AssertionError  # not reached


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
