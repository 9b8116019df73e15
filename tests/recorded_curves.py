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
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_atelier.training.results.loss_history import LossHistory
from lora_atelier.training.results.verdict import Verdict, judge

CURVES = Path(__file__).resolve().parent / "unit" / "curves.json.gz"
BEGINNING = 0.4
"""Share of a run that is taken as a run of its own."""
HARDLY, CLEARLY = 0.02, 0.4
"""Falls and rises (logarithms) that are none, and that nobody can overlook."""
OVERFITTED = 0.1
"""A rise of the loss of held-out pictures, while that of training pictures fell clearly."""
LITTLE_TO_COME, MORE_TO_COME = 0.1, 0.2
"""Falls still to come of a run that has converged at most, and of one that has not at least."""


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
        found.append(_curve(run, run["name"] + "-beginning", int(beginning[-1])))
    return [curve for curve in found if curve]


def _curve(run: dict[str, Any], name: str, steps: int) -> Curve | None:
    """The first ``steps`` of a run; None on a border between two classes."""
    measured, series = run["measured"], _series(run, steps)
    truth = _truth(run, series, steps)
    points = zip(measured["step"], measured["validation"], strict=True)
    validation = tuple((step, loss) for step, loss in points if step <= steps)
    history = LossHistory(**series, validation=validation)
    return None if truth is None else Curve(name, truth, history)


def _series(run: dict[str, Any], steps: int) -> dict[str, tuple[float, ...]]:
    """What was recorded of every step. A gradient that was no number has ended the run before its
    loss was noted down: the last one stands for it."""
    names = ("loss", "learning_rate", "grad_norm")
    longest = max(len(run[name]) for name in names) if steps == len(run["loss"]) else steps
    return {
        name: tuple((run[name] + [run[name][-1]] * (longest - len(run[name])))[:longest])
        for name in names
    }


def _truth(
    run: dict[str, Any], series: Mapping[str, Sequence[float]], steps: int
) -> Verdict | None:
    """From the two losses under fixed noise alone."""
    if not all(map(math.isfinite, (*series["loss"], *series["grad_norm"]))):
        return Verdict.NOT_FINITE
    train, held_out = (_measured(run, which, steps) for which in ("train", "held_out"))
    risen, risen_held_out = (math.log(m[-1] / min(m)) for m in (train, held_out))
    fallen = math.log(train[0] / train[-1])
    if risen > CLEARLY:
        return Verdict.DIVERGING if risen_held_out > CLEARLY else None
    if abs(fallen) < HARDLY:
        return Verdict.PLATEAU
    if risen_held_out > OVERFITTED and fallen > CLEARLY:
        return Verdict.OVERFITTING
    if risen_held_out > HARDLY or fallen < CLEARLY:
        return None
    return _how_far_it_got(run, steps, train)


def _how_far_it_got(run: dict[str, Any], steps: int, train: list[float]) -> Verdict | None:
    """Converged or still falling: by what came after the beginning of a run, or, where nothing
    more was measured, by what the last two fifths of it brought."""
    whole = _measured(run, "train", len(run["loss"]))
    if steps < len(run["loss"]):
        after = math.log(train[-1] / min(whole[: 2 * len(train)]))
    else:
        after = math.log(train[len(train) * 3 // 5] / train[-1])
    if after > MORE_TO_COME:
        return Verdict.STILL_FALLING
    return Verdict.CONVERGED if after < LITTLE_TO_COME else None


def _measured(run: dict[str, Any], which: str, steps: int) -> list[float]:
    measured = run["measured"]
    return [
        loss for step, loss in zip(measured["step"], measured[which], strict=True) if step <= steps
    ]


def confusion(curves: Iterable[Curve]) -> dict[Verdict, Counter[Verdict]]:
    """Truth -> how often it got which verdict."""
    table: dict[Verdict, Counter[Verdict]] = {}
    for curve in curves:
        table.setdefault(curve.truth, Counter())[judge(curve.history).verdict] += 1
    return table


def table_of(curves: Iterable[Curve]) -> str:
    """The confusion table in Markdown: a row a truth, a column a verdict."""
    table = confusion(curves)
    columns = [v for v in Verdict if any(v in row for row in table.values())]
    lines = [
        "| truth | " + " | ".join(v.value for v in columns) + " | right |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for truth in (v for v in Verdict if v in table):
        row, total = table[truth], sum(table[truth].values())
        counts = " | ".join(str(row[v]) if row[v] else "" for v in columns)
        lines.append(f"| {truth.value} | {counts} | {row[truth]} of {total} |")
    return "\n".join(lines)
