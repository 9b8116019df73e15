"""What is drawn along the way, and when."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from ..errors import AtelierError, require, require_number

MAX_PICTURES = 64
"""In a row; the contact sheet has a column for each."""
SEED_LIMIT = 0xFFFFFFFFFFFFFFFF
STEP_LIMIT = 10_000_000


@dataclass(frozen=True)
class PreviewSpec:
    """Every prompt with every seed, through the host's own sampler.

    Nothing of it has a part in what is learned.
    """

    prompts: tuple[str, ...]
    negative: str = ""
    seeds: tuple[int, ...] = (1,)
    width: int = 512
    """Of the picture, px."""
    height: int = 512
    steps: int = 20
    """Of the sampler."""
    cfg: float = 7.0
    sampler_name: str = "euler"
    scheduler: str = "normal"
    every_n_steps: int = 200
    """Optimizer steps; 0 = not by steps."""
    every_n_epochs: int = 0
    """0 = not by epochs."""
    base_row: bool = True
    """Draw once without the adapter, too."""
    guidance: float = 0.0
    """An input of guidance-distilled models (Flux dev); 0 = the model's own."""

    def __post_init__(self) -> None:
        require(
            any(prompt.strip() for prompt in self.prompts),
            "prompts is empty: write at least one, one a line, with the trigger word of your "
            "captions.",
        )
        require(bool(self.seeds), 'seeds is empty: write at least one number, such as "1".')
        for seed in self.seeds:
            require(
                0 <= seed <= SEED_LIMIT, f"seeds: {seed} must be a whole number from 0 to 2^64 - 1."
            )
        pictures = len(self.prompts) * len(self.seeds)
        require(
            pictures <= MAX_PICTURES,
            f"prompts and seeds make {pictures} pictures each time: at most {MAX_PICTURES} are "
            "possible. 2 to 8 are usual; drawing them takes time from training.",
        )
        self._require_numbers()

    def _require_numbers(self) -> None:
        for name, side in (("width", self.width), ("height", self.height)):
            require_number(name, side, 64, 16384, "Take the size that you train at.")
            require(
                side % 8 == 0,
                f"{name} is {side}: it must be a multiple of 8. Take {side // 8 * 8}.",
            )
        require_number("steps", self.steps, 1, 10_000, "20 is usual.")
        require_number("cfg", self.cfg, 0, 100, "7 is usual, 1 for Flux.")
        require_number("guidance", self.guidance, 0, 100, "3.5 for Flux dev, 0 = the model's own.")
        advice = "0 = not so; 100 to 500 is usual."
        require_number("every_n_steps", self.every_n_steps, 0, STEP_LIMIT, advice)
        require_number("every_n_epochs", self.every_n_epochs, 0, STEP_LIMIT, "0 = not so.")
        require(
            self.every_n_steps > 0 or self.every_n_epochs > 0,
            "every_n_steps and every_n_epochs are both 0, so nothing would be drawn. Set one of "
            "them, for example every_n_steps 200.",
        )

    @property
    def columns(self) -> list[tuple[int, int]]:
        """(index of the prompt, seed) of the pictures of a row, in their order."""
        return [(i, seed) for i in range(len(self.prompts)) for seed in self.seeds]


def due(spec: PreviewSpec, step: int, batches_per_epoch: int, accumulation: int) -> int:
    """The first optimizer step after ``step`` that is to be followed by previews.

    An epoch is over with the step that takes in its last batch: the ``k``-th one at
    ``⌈k · batches_per_epoch / accumulation⌉``.

    Args:
        batches_per_epoch: micro-batches, :attr:`BatchPlan.batches_per_epoch`.
        accumulation: micro-batches a step.
    """
    found = []
    if spec.every_n_steps > 0:
        found.append((step // spec.every_n_steps + 1) * spec.every_n_steps)
    if spec.every_n_epochs > 0:
        period = Fraction(spec.every_n_epochs * batches_per_epoch, accumulation)
        found.append(ceil((step // period + 1) * period))
    return min(found)


def parse_prompts(text: str) -> tuple[str, ...]:
    """One a line; empty lines are left out."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def parse_seeds(text: str) -> tuple[int, ...]:
    """``1, 2`` -> (1, 2); a seed that is given twice would draw the same picture twice.

    Raises:
        AtelierError: a part is no whole number.
    """
    parts = [part for part in re.split(r"[\s,;，、；]+", text) if part]
    wrong = [part for part in parts if not re.fullmatch(r"[0-9]{1,20}", part)]
    if wrong:
        raise AtelierError(
            f'seeds: "{wrong[0]}" is no whole number from 0 to 2^64 - 1. Write numbers with commas '
            'between them, such as "1, 2".'
        )
    return tuple(dict.fromkeys(int(part) for part in parts))
