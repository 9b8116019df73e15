"""How often each tag was given, as a picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import needed_package
from ..results.chart_text import any_text, fitted_text
from .auto_tag import TagReport
from .tag_table import CHARACTER, GENERAL, RATING

WIDTH, LEAST_HEIGHT, ROW = 1000, 420, 30
"""Px; a row a tag."""

DPI = 120
MOST_BARS = 40
COLOURS = {GENERAL: "#3d6a9e", CHARACTER: "#d1495b", RATING: "#e3a857"}
LABELS = {GENERAL: "general", CHARACTER: "character", RATING: "rating"}
GREY = "#6b7280"


def draw_tags(report: TagReport) -> Tensor:
    """The most frequent tags as bars, coloured by their kind.

    Returns:
        [H, 1000, 3] float32, 0..1, RGB.
    """
    agg = needed_package("matplotlib.backends.backend_agg", "The picture of the tags")
    canvas = agg.FigureCanvasAgg(tag_figure(report))
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba(), dtype=np.float32)[..., :3] / 255
    return torch.from_numpy(pixels.copy())


def tag_figure(report: TagReport) -> Any:
    """The matplotlib figure, laid out but not drawn."""
    figures = needed_package("matplotlib.figure", "The picture of the tags")
    rows = report.counts.most_common(MOST_BARS)
    height = max(LEAST_HEIGHT, 150 + ROW * len(rows))
    figure = figures.Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(_title(report), fontsize=10, loc="left", fontweight="bold", **any_text())
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("pictures", fontsize=8, color=GREY)
    axes.tick_params(labelsize=8)
    if not rows:
        axes.text(0.5, 0.5, "no tags", ha="center", color=GREY, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return figure
    tags, counts = zip(*rows, strict=True)
    kinds = np.array([_kind(report, tag) for tag in tags])
    for kind in (kind for kind in COLOURS if (kinds == kind).any()):
        places = np.flatnonzero(kinds == kind)
        lengths = [counts[place] for place in places]
        bars = axes.barh(places, lengths, color=COLOURS[kind], height=0.72, label=LABELS[kind])
        axes.bar_label(bars, padding=3, fontsize=8, color=GREY)
    labels = [fitted_text(tag, 32) for tag in tags]
    axes.set_yticks(range(len(rows)), labels=labels, fontsize=8, **any_text())
    axes.set(ylim=(max(len(rows), 8) - 0.4, -0.6), xlim=(0, max(counts) * 1.12))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(framealpha=0.8, edgecolor="none", fontsize=8, loc="lower right")
    return figure


def _title(report: TagReport) -> str:
    shown = min(len(report.counts), MOST_BARS)
    which = f"{shown} most frequent of {len(report.counts)}" if shown == MOST_BARS else f"{shown}"
    title = f"{report.tagger}: {which} tags in {report.pictures} of {report.of} pictures"
    return fitted_text(title, 90)


def _kind(report: TagReport, tag: str) -> int:
    kind = report.kinds[tag]
    return kind if kind in COLOURS else GENERAL
