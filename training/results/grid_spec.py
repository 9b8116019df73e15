"""What a grid compares: the base and LoRAs in several strengths, on prompts and seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ..errors import AtelierError, require, require_number
from .preview_spec import PreviewSpec

MOST_PICTURES = 400
STRENGTHS = (-100.0, 100.0)
"""As LoraLoader's."""
PICTURE_SIZES = (64, 4096)
"""px; 0 = as they are drawn."""
LABEL_SIZES = (0.5, 4.0)


class GridLayout(str, Enum):
    """Where the strengths stand."""

    STRENGTHS_ACROSS = "strengths_across"
    STRENGTHS_DOWN = "strengths_down"


class Variant(NamedTuple):
    """A LoRA in one strength, both by their index."""

    lora: int
    strength: int


@dataclass(frozen=True)
class GridSpec:
    """Every variant and the base, on every prompt with every seed; a sheet for each prompt."""

    preview: PreviewSpec
    loras: tuple[str, ...]
    """What to call them on the sheet."""
    strengths: tuple[float, ...] = (1.0,)
    layout: GridLayout = GridLayout.STRENGTHS_ACROSS
    picture_size: int = 384
    """Longer side of a picture on the sheet, px; 0 = as it is drawn."""
    label_size: float = 1.0
    """Factor of the size that suits the sheet."""

    def __post_init__(self) -> None:
        require(
            bool(self.loras),
            "There is no LoRA to compare. Write the names of files into lora_files, or connect "
            "lora or state.",
        )
        _require_strengths(self.strengths)
        require_picture_size(self.picture_size)
        require_number("label_size", self.label_size, *LABEL_SIZES, "1 suits most sheets.")
        require(
            self.pictures <= MOST_PICTURES,
            f"This grid has {self.pictures} pictures: {len(self.preview.prompts)} prompts × "
            f"{len(self.preview.seeds)} seeds × (the base + {len(self.loras)} LoRAs × "
            f"{len(self.strengths)} strengths). At most {MOST_PICTURES} are possible; 10 to 60 are "
            "usual. Take fewer of one of them.",
        )

    @property
    def variants(self) -> list[Variant | None]:
        """In the order in which they are drawn; None is the base."""
        count = range(len(self.strengths))
        return [None, *(Variant(i, k) for i in range(len(self.loras)) for k in count)]

    @property
    def pictures(self) -> int:
        """How many are drawn."""
        return len(self.variants) * len(self.preview.columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a sheet."""
        seeds, loras, strengths = len(self.preview.seeds), len(self.loras), len(self.strengths)
        if self.layout is GridLayout.STRENGTHS_ACROSS:
            return seeds, 1 + loras * strengths
        return seeds * strengths, 1 + loras

    def places(self, variant: Variant | None, seed: int) -> list[tuple[int, int]]:
        """(row, column) of a picture: one, but for the base, which each row begins with.

        Args:
            seed: its index.
        """
        strengths = len(self.strengths)
        if self.layout is GridLayout.STRENGTHS_ACROSS:
            column = 0 if variant is None else 1 + variant.lora * strengths + variant.strength
            return [(seed, column)]
        if variant is None:
            return [(seed * strengths + k, 0) for k in range(strengths)]
        return [(seed * strengths + variant.strength, 1 + variant.lora)]


def require_picture_size(size: int) -> None:
    """Refuse a ``picture_size`` that is neither 0 nor one at which something can be seen.

    Raises:
        AtelierError: names the range.
    """
    if size != 0:
        advice = "256 to 512 is usual; 0 = as large as they are drawn."
        require_number("picture_size", size, *PICTURE_SIZES, advice)


def parse_strengths(text: str) -> tuple[float, ...]:
    """``0.5, 1`` -> (0.5, 1.0), each once.

    Raises:
        AtelierError: a part is no number, or none that a LoRA can have here.
    """
    parts = [part for part in re.split(r"[\s,;，、；]+", text) if part]
    strengths = tuple(dict.fromkeys(_number(part) for part in parts))
    _require_strengths(strengths)
    return strengths


def lora_labels(names: Sequence[str]) -> tuple[str, ...]:
    """File names as short as they can be told apart: without folders, and checkpoints of one run by
    their step alone.

    Args:
        names: ``runs/foxes-1a2b/lora/foxes-1a2b-step00000200.safetensors``.
    """
    paths = [re.sub(r"\.(safetensors|pt|pth|ckpt|bin|sft)$", "", name).split("/") for name in names]
    longest = max((len(path) for path in paths), default=1)
    for depth in range(1, longest + 1):
        short = ["/".join(path[-depth:]) for path in paths]
        if len(set(short)) == len(short):
            break
    steps = [re.fullmatch(r"(.*?)[-_]step0*(\d+)", name) for name in short]
    if steps and all(steps) and len({step[1] for step in steps}) == 1:
        return tuple(f"step {step[2]}" for step in steps)
    return tuple(short)


def _require_strengths(strengths: Sequence[float]) -> None:
    require(bool(strengths), 'strengths is empty: write at least one number, such as "1".')
    for strength in strengths:
        require_number("strengths", strength, *STRENGTHS, "0.5 to 1 is usual.")
        require(
            strength != 0,
            "strengths: 0 is the base, which is drawn beside them anyway. Leave it out "
            '(and write a point in decimal numbers: "0.5", not "0,5").',
        )


def _number(part: str) -> float:
    try:
        number = float(part)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise AtelierError(
            f'strengths: "{part}" is no number. Write numbers with commas between them, such as '
            '"0.5, 0.75, 1".'
        )
    return number
