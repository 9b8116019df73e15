"""The measures over the steps, a line for each strength."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..results.chart_text import any_text, fitted_text
from .measures import CHANCE
from .report import SURE
from .rule import LEAST_KEPT, MOST_COPIES, Judged, Recommendation
from .sheet import GOOD, GREY, Sheet

LINES = ("#3d6fb4", "#d1495b", "#b7791f", "#6c4f93", "#2a9d8f", "#7a7a7a")
MARKER, LETTERS = 4, 8.0
MOST_NAMES, NAME_COLUMNS = 8, 12

Value = Callable[[Judged], tuple[float, float] | None]
"""A number of a row and its uncertainty."""


def draw_plots(sheet: Sheet, recommendation: Recommendation, top: float, height: float) -> None:
    """Four plots in a row across the sheet: loss, gain, prompts and diversity, copies."""
    evaluation = recommendation.evaluation
    kind = "held-out" if evaluation.are_held_out else "training"
    left, gap = 66.0, 72.0
    width = (sheet.width - left - 24 - 3 * gap) / 4
    plots = [sheet.axes(left + i * (width + gap), top, width, height) for i in range(4)]
    across = _Across(recommendation)
    across.draw(plots[0], f"loss ({kind} pictures)", _loss)
    _level(plots[0], evaluation.base_loss, "base")
    across.draw(plots[1], "gain of the pictures", _gain)
    _level(plots[1], 0.0, "base")
    across.draw(plots[2], "prompts kept", _kept)
    possible = CHANCE + LEAST_KEPT * (evaluation.base_kept - CHANCE)
    _level(plots[2], possible, "lost below")
    across.draw(plots[3], "copies of training pictures", _copies)
    _level(plots[3], MOST_COPIES, "memorised above")
    plots[3].set_ylim(-0.04, 1.04)
    plots[2].set_ylim(min(0.4, plots[2].get_ylim()[0]), 1.04)
    for plot in plots:
        plot.margins(x=0.08)


class _Across:
    """Where the rows stand from left to right."""

    def __init__(self, recommendation: Recommendation) -> None:
        self.rows = recommendation.rows
        self.chosen = recommendation.chosen
        candidates = [judged.row.candidate for judged in self.rows]
        self.strengths = sorted({candidate.strength for candidate in candidates})
        steps = {candidate.lora: candidate.step for candidate in candidates}
        of_one_run = len({candidate.run for candidate in candidates}) == 1
        self.by_step = of_one_run and len(set(steps.values())) == len(steps) > 1
        self.names = {candidate.lora: candidate.name for candidate in candidates}

    def place(self, judged: Judged) -> int:
        candidate = judged.row.candidate
        return candidate.step if self.by_step else candidate.lora

    def draw(self, axes: Any, title: str, value: Value) -> None:
        for strength, colour in zip(self.strengths, _colours(len(self.strengths)), strict=True):
            line = [j for j in self.rows if j.row.candidate.strength == strength]
            found = [(self.place(j), *value(j)) for j in line if value(j) is not None]
            if not found:
                continue
            at, values, errors = (np.array(column) for column in zip(*sorted(found), strict=True))
            if not self.by_step:
                axes.errorbar(at, values, errors, fmt="o", color=colour, markersize=MARKER)
                continue
            axes.plot(at, values, "o-", color=colour, linewidth=1.8, markersize=MARKER)
            axes.fill_between(
                at, values - errors, values + errors, color=colour, alpha=0.13, linewidth=0
            )
        self._mark(axes, value)
        self._tidy(axes, title)

    def _mark(self, axes: Any, value: Value) -> None:
        found = None if self.chosen is None else value(self.chosen)
        if found is not None:
            axes.plot(
                [self.place(self.chosen)],
                [found[0]],
                "*",
                color=GOOD,
                markersize=15,
                markeredgecolor="white",
                zorder=5,
            )

    def _tidy(self, axes: Any, title: str) -> None:
        axes.set_title(title, fontsize=LETTERS + 1, loc="left")
        axes.tick_params(labelsize=LETTERS)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if self.by_step:
            axes.set_xlabel("step", fontsize=LETTERS)
            axes.locator_params(axis="x", nbins=5, integer=True)
            return
        places = sorted(self.names)[:: -(-len(self.names) // MOST_NAMES)]
        names = [fitted_text(self.names[place], NAME_COLUMNS) for place in places]
        axes.set_xticks(places, names, rotation=25, ha="right", **any_text())
        axes.set_xlim(-0.5, max(self.names) + 0.5)


def strength_colours(recommendation: Recommendation) -> list[tuple[float, str]]:
    """Strengths and the colours of their lines, for the legend."""
    strengths = sorted({judged.row.candidate.strength for judged in recommendation.rows})
    return list(zip(strengths, _colours(len(strengths)), strict=True))


def _colours(count: int) -> list[str]:
    return [LINES[i % len(LINES)] for i in range(count)]


def _level(axes: Any, value: float, name: str) -> None:
    axes.axhline(value, color=GREY, linestyle=":", linewidth=1.2)
    axes.annotate(
        name,
        (1.0, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=LETTERS - 1,
        color=GREY,
        ha="right",
        va="bottom",
    )


def _loss(judged: Judged) -> tuple[float, float]:
    return judged.row.loss, 0.0


def _gain(judged: Judged) -> tuple[float, float] | None:
    gain = judged.gain
    if gain is None:
        return None
    return gain.value, SURE * gain.error if np.isfinite(gain.error) else 0.0


def _kept(judged: Judged) -> tuple[float, float] | None:
    kept = judged.row.kept
    return None if kept is None else (kept.value, SURE * kept.error)


def _copies(judged: Judged) -> tuple[float, float]:
    return len(judged.row.copies) / len(judged.row.pairs), 0.0
