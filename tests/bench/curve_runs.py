"""The training runs whose loss curves `record_curves.py` keeps: what each is made of.

Every kind of run is meant to end in one verdict, but what it ended in is measured, not assumed
(`tests/recorded_curves.py`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RUNS_OF_A_KIND = {
    "_enough": 46,
    "_four_pictures": 46,
    "_low_rate": 24,
    "_high_rate": 24,
    "_absurd_rate": 24,
}
"""More of the kinds that often end on a border between two verdicts."""
STYLES = ("flat_swapped", "noto_grey", "ink_inverted")
"""Looks that the demo's base model does not know: see `record_curves.pictures`."""


@dataclass(frozen=True)
class CurveRun:
    """Settings of one run on the demo's base model, with a batch of 1."""

    kind: str
    number: int
    style: str
    side: int
    """Of the pictures, px."""
    pictures: int
    steps: int
    measured_every: int
    unet_lr: float
    rank: int
    min_snr_gamma: float
    scheduler: str = "constant"
    warmup: float = 0.0
    """Share of the steps."""

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.number:02}"


def curve_runs() -> list[CurveRun]:
    """All of them, the kinds in turn, so that a recording that is cut short has some of each."""
    kinds = (_enough, _four_pictures, _low_rate, _high_rate, _absurd_rate)
    return [
        _choose(kind, number)
        for number in range(max(RUNS_OF_A_KIND.values()))
        for kind in kinds
        if number < RUNS_OF_A_KIND[kind.__name__]
    ]


def _choose(kind: Callable[[random.Random], dict[str, Any]], number: int) -> CurveRun:
    rng = random.Random(f"{kind.__name__}/{number}")
    return CurveRun(
        number=number,
        style=STYLES[number % len(STYLES)],
        side=(64, 32, 32, 32)[number % 4],
        min_snr_gamma=rng.choice((0.0, 0.0, 5.0)),
        **kind(rng),
    )


def _enough(rng: random.Random) -> dict[str, Any]:
    """A sound rate on a sound number of pictures; its beginning is a run that was too short."""
    return {
        "kind": "enough",
        "pictures": 36,
        "steps": 300,
        "measured_every": 25,
        "unet_lr": rng.choice((1e-3, 1.5e-3, 2e-3)),
        "rank": rng.choice((1, 2)),
        "scheduler": rng.choice(("constant", "constant", "cosine")),
        "warmup": rng.choice((0.0, 0.05)),
    }


def _four_pictures(rng: random.Random) -> dict[str, Any]:
    """Far too long on four pictures."""
    return {
        "kind": "four_pictures",
        "pictures": 4,
        "steps": 240,
        "measured_every": 20,
        "unet_lr": rng.choice((2e-3, 3e-3, 4e-3)),
        "rank": rng.choice((8, 16)),
    }


def _low_rate(rng: random.Random) -> dict[str, Any]:
    """A rate at which nothing moves."""
    return {
        "kind": "low_rate",
        "pictures": rng.choice((8, 16, 36)),
        "steps": rng.choice((120, 160, 200)),
        "measured_every": 40,
        "unet_lr": rng.choice((1e-7, 3e-7, 1e-6)),
        "rank": rng.choice((4, 8, 16)),
    }


def _high_rate(rng: random.Random) -> dict[str, Any]:
    """A rate that breaks the model, after some useful steps or at once."""
    return {
        "kind": "high_rate",
        "pictures": rng.choice((8, 16, 36)),
        "steps": rng.choice((80, 100, 120)),
        "measured_every": 20,
        "unet_lr": rng.choice((3e-2, 6e-2, 1e-1, 3e-1)),
        "rank": rng.choice((4, 8, 16)),
        "warmup": rng.choice((0.0, 0.3, 0.6)),
    }


def _absurd_rate(rng: random.Random) -> dict[str, Any]:
    """A rate that ends in numbers that are none."""
    return {
        "kind": "absurd_rate",
        "pictures": rng.choice((4, 16)),
        "steps": 200,
        "measured_every": 40,
        "unet_lr": rng.choice((1e3, 1e4, 1e5)),
        "rank": rng.choice((4, 8, 16)),
        "warmup": rng.choice((0.0, 0.1, 0.3)),
    }
