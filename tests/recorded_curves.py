"""The recorded loss curves, and what is true of each, from how it was made and measured.

The truth rests on two losses that the verdict never sees, taken under fixed noise while the run
went on: of its training pictures, and of held-out pictures other than those of its validation
loss. A run gives a second curve where its beginning, taken alone, is a run that was too short: how
far the loss fell afterwards was measured. Curves on the border between two classes are left out.
"""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_atelier.training.loss_history import LossHistory
from lora_atelier.training.verdict import Verdict

CURVES = Path(__file__).resolve().parent / "unit" / "curves.json.gz"
BEGINNING = 0.4
"""Share of a run that is taken as a run of its own."""


@dataclass(frozen=True)
class Curve:
    """A curve and the verdict that is due to it."""

    name: str
    truth: Verdict
    history: LossHistory
    """With the validation loss."""

    @property
    def held_back_for_tuning(self) -> bool:
        """Half of the runs; both curves of a run are in the same half."""
        return int(self.name.split("-")[1][:2]) % 2 == 0


def recorded_runs() -> list[dict[str, Any]]:
    return json.loads(gzip.decompress(CURVES.read_bytes()))


def recorded_curves() -> list[Curve]:
    """All that are clearly of one class."""
    return [curve for run in recorded_runs() for curve in _curves(run)]


def _curves(run: dict[str, Any]) -> list[Curve]:
    measured, steps = run["measured"], len(run["loss"])
    found = [_curve(run, run["name"], steps)]
    beginning = [step for step in measured["step"] if step <= BEGINNING * steps]
    if run["run"]["kind"] == "enough" and run["run"]["scheduler"] == "constant":
        found.append(_curve(run, run["name"] + "-beginning", beginning[-1]))
    return [curve for curve in found if curve]
