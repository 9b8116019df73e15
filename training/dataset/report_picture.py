"""The dataset report as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import needed_package
from ..results.chart_text import any_text, drawable, fitted_text
from .analysis import LONGEST_SIDE
from .fit import Placement
from .pictures import fitted_pixels, open_picture
from .report import DatasetReport
from .report_findings import CUT_MUCH, findings
from .report_text import NOTHING, heading
from .token_counts import CLIP_TOKENS

SIZE = (1600, 1200)
"""Width and height, px."""

DPI = 120
BLUE, PALE, RED, GREY = "#3d6a9e", "#9db7d5", "#d1495b", "#6b7280"

MOST_BARS = 12
MOST_LINES = 13
THUMBNAILS = 12
"""In two rows."""
THUMBNAIL = 128
"""Longest side, px."""


def draw_report(report: DatasetReport) -> Tensor:
    """Sizes, buckets, sharpness, tags, caption lengths, variety, and pictures to look at.

    Returns:
        [1200, 1600, 3] float32, 0..1, RGB.
    """
    agg = needed_package("matplotlib.backends.backend_agg", "The report picture")
    figure = report_figure(report)
    canvas = agg.FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba(), dtype=np.float32)[..., :3] / 255
    return torch.from_numpy(pixels.copy())


def report_figure(report: DatasetReport) -> Any:
    """The matplotlib figure, laid out but not drawn."""
    figures = needed_package("matplotlib.figure", "The report picture")  # not pyplot: it has state
    inches = (SIZE[0] / DPI, SIZE[1] / DPI)
    figure = figures.Figure(figsize=inches, dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.02, hspace=0.03)
    figure.suptitle(fitted_text(heading(report), 110), x=0.02, ha="left", fontsize=13, **any_text())
    rows = figure.add_gridspec(3, 1, height_ratios=(1, 1, 0.8))
    last = _variety if report.told_variety else _cut
    panels = (_sizes, _buckets, _sharpness, _tags, _lengths, last)
    upper, lower = rows[0].subgridspec(1, 3), rows[1].subgridspec(1, 3)
    places = [grid[column] for grid in (upper, lower) for column in range(3)]
    for panel, place in zip(panels, places, strict=True):
        panel(figure.add_subplot(place), report)
    bottom = rows[2].subgridspec(1, 2, width_ratios=(1, 2))
    _mend(figure.add_subplot(bottom[0]), report)
    _thumbnails(figure, bottom[1], report)
    return figure


def _sizes(axes: Any, report: DatasetReport) -> None:
    _style(axes, "Sizes of the pictures, px", "width", "height")
    if not report.samples:
        return _nothing(axes, "no sound picture")
    small = {fitted.sample for fitted in report.too_small}
    sizes = np.array([sample.image.size for sample in report.samples], dtype=float)
    is_small = np.array([i in small for i in range(len(sizes))])
    for chosen, colour, label in (
        (~is_small, BLUE, "large enough"),
        (is_small, RED, "smaller than it trains at"),
    ):
        if chosen.any():
            of_size, counts = np.unique(sizes[chosen], axis=0, return_counts=True)
            dots = np.clip(12 * counts**0.5, 12, 150)
            axes.scatter(*of_size.T, s=dots, color=colour, alpha=0.5, linewidths=0, label=label)
    if report.buckets:
        buckets = np.array([bucket.size for bucket in report.buckets])
        axes.scatter(
            *buckets.T, s=45, marker="s", facecolors="none", edgecolors=GREY, label="bucket"
        )
    axes.set(xscale="log", yscale="log")
    every = np.concatenate([sizes, *([buckets] if report.buckets else [])])
    _round_ticks(axes, every.clip(min=1))
    axes.legend(framealpha=0.8, edgecolor="none", fontsize=8, loc="best")


def _buckets(axes: Any, report: DatasetReport) -> None:
    _style(axes, "Buckets: pictures · cut away", "pictures")
    rows = [
        (f"{b.size[0]}×{b.size[1]}", b.pictures, f"{b.pictures} · {b.cut:.0%}", b.cut >= CUT_MUCH)
        for b in report.buckets[:MOST_BARS]
    ]
    rest = report.buckets[MOST_BARS:]
    if rest:
        pictures = sum(bucket.pictures for bucket in rest)
        rows.append((f"{len(rest)} more", pictures, str(pictures), False))
    _bars(axes, rows, "nothing to train on")


def _sharpness(axes: Any, report: DatasetReport) -> None:
    _style(axes, f"Blur of the edges, px of {LONGEST_SIDE}", "sharp  ←  σ  →  soft", "pictures")
    blur = [found.blur for found in report.measurements if not found.blank]
    if not blur:
        return _nothing(axes, "no picture with edges")
    limit = report.blurred_from
    _histogram(axes, blur, (0, max(1.5, *blur, limit * 1.1)), limit, f"look above {limit:.1f}")


def _tags(axes: Any, report: DatasetReport) -> None:
    captions = report.captions
    unit = "words" if captions.prose else "tags"
    _style(axes, f"Most frequent {unit} (red: in every caption)", "pictures")
    every = set(captions.in_all)
    rows = [
        (fitted_text(tag, 22), count, str(count), tag in every)
        for tag, count in captions.counts.most_common(MOST_BARS + 1)
    ]
    _bars(axes, rows, "no captions")


def _lengths(axes: Any, report: DatasetReport) -> None:
    encoders = sorted(report.tokens or (), key=lambda tokens: tokens.limit or 10**9)
    if encoders:
        lengths, limit = list(encoders[0].counts), encoders[0].limit
        _style(axes, f"Length of the captions ({encoders[0].encoder})", "tokens", "captions")
    else:
        texts = (text for sample in report.samples for text in sample.captions if text.strip())
        lengths, limit = [len(text.split()) for text in texts], None
        _style(axes, "Length of the captions", "words (connect clip for tokens)", "captions")
    if not lengths:
        return _nothing(axes, "no captions")
    high = max(10, *lengths, 1.1 * limit if limit and max(lengths) > 0.6 * limit else 0)
    label = f"{limit} tokens" if limit == CLIP_TOKENS else "one pass"
    _histogram(axes, lengths, (0, high), limit + 0.5 if limit and limit < high else None, label)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _cut(axes: Any, report: DatasetReport) -> None:
    _style(axes, "Share that the crop cuts away, %", "of the scaled picture", "pictures")
    cut = [100 * fitted.cut for fitted in report.fitted]
    if not cut:
        return _nothing(axes, "no sound picture")
    limit = 100 * CUT_MUCH
    _histogram(axes, cut, (0, max(25, *cut)), limit, f"look above {limit:.0f} %")


def _variety(axes: Any, report: DatasetReport) -> None:
    """One bar a group, cut into its kinds by their share."""
    _style(axes, "What the captions name, %", "share of what is named")
    shades = ("#3d6a9e", "#6f94c0", "#9db7d5", "#c3d2e5", "#dfe7f1")
    groups = list(report.told_variety.items())
    for row, (_, found) in enumerate(groups):
        left, total = 0.0, sum(found.counts.values())
        for place, (kind, count) in enumerate(found.counts.items()):
            share = 100 * count / total
            colour = RED if kind == found.one_sided else shades[min(place, len(shades) - 1)]
            axes.barh(row, share, left=left, color=colour, edgecolor="white", height=0.62)
            if share >= 14:
                ink = "white" if place < 2 else "black"
                label = f"{kind}\n{count}"
                axes.text(left + share / 2, row, label, ha="center", va="center", size=7, color=ink)
            left += share
    labels = [f"{group}\n{found.named} pictures" for group, found in groups]
    axes.set_yticks(range(len(groups)), labels=labels, fontsize=8)
    axes.set(xlim=(0, 100), ylim=(len(groups) - 0.4, -0.6))


def _mend(axes: Any, report: DatasetReport) -> None:
    """What to mend, a line or two each."""
    axes.set_axis_off()
    axes.set_title("What to mend", fontsize=10, loc="left", fontweight="bold")
    lines: list[str] = []
    for i, found in enumerate(findings(report), start=1):
        lines += wrap(drawable(f"{i}. {found.what}"), 56, subsequent_indent="    ")
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], "…"]
    text = "\n".join(lines or [NOTHING])
    axes.text(
        0, 1, text, va="top", size=8.5, linespacing=1.4, transform=axes.transAxes, **any_text()
    )


def _thumbnails(figure: Any, space: Any, report: DatasetReport) -> None:
    cells = space.subgridspec(2, THUMBNAILS // 2)
    for place, (index, why) in enumerate(_worth_a_look(report)[:THUMBNAILS]):
        axes = figure.add_subplot(cells[divmod(place, THUMBNAILS // 2)])
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_color("#e5e7eb")
        axes.imshow(_thumbnail(report, index))
        name = fitted_text(_label(report.samples[index].name, 20), 20)
        title = f"{why}\n{name}" if why else name
        axes.set_title(title, fontsize=7.5, pad=3, color=RED if why else GREY, **any_text())


def _worth_a_look(report: DatasetReport) -> list[tuple[int, str]]:
    """Pictures that the findings speak of, some of each kind, and why; then any others."""
    kinds: Sequence[Sequence[tuple[int, str]]] = (
        [(i, f"near copy {n}") for n, group in enumerate(report.near[:2], 1) for i in group[:2]],
        [(i, "one colour") for i in report.blank[:1]],
        [(i, f"blur {report.measurements[i].blur:.1f} px") for i in report.blurred[:3]],
        [(f.sample, f"{f.cut:.0%} cut") for f in report.most_cut(CUT_MUCH)[:2]],
        [(f.sample, f"scaled up {f.upscale:.1f}×") for f in report.too_small[:2]],
    )
    found: dict[int, str] = {}
    for index, why in (pair for kind in kinds for pair in kind):
        found.setdefault(index, why)
    for index in range(0, len(report.samples), max(1, len(report.samples) // THUMBNAILS)):
        found.setdefault(index, "")
    return list(found.items())


def _thumbnail(report: DatasetReport, index: int) -> np.ndarray:
    """[THUMBNAIL, THUMBNAIL, 3]: the picture in the middle of a white square."""
    sample = report.samples[index]
    image = open_picture(sample.image)
    scale = THUMBNAIL / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    placement = Placement(image.size, (width, height), (0, 0), (width, height))
    square = np.ones((THUMBNAIL, THUMBNAIL, 3), np.float32)
    top, left = (THUMBNAIL - height) // 2, (THUMBNAIL - width) // 2
    pixels = fitted_pixels(image, placement, sample.fit.background)
    square[top : top + height, left : left + width] = pixels.numpy()
    return square


def _bars(axes: Any, rows: Sequence[tuple[str, int, str, bool]], nothing: str) -> None:
    """Horizontal bars from the top: label, length, text at the end, red or not."""
    if not rows:
        return _nothing(axes, nothing)
    labels, lengths, texts, red = zip(*rows, strict=True)
    colours = [RED if is_red else PALE for is_red in red]
    bars = axes.barh(range(len(rows)), lengths, color=colours, height=0.72)
    axes.bar_label(bars, labels=texts, padding=3, fontsize=8, color=GREY)
    axes.set_yticks(range(len(rows)), labels=labels, fontsize=8, **any_text())
    room = max(len(rows), 4)  # a single bar would fill the panel
    axes.set(ylim=(room - 0.4, -0.6), xlim=(0, max(lengths) * 1.22))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(visible=False, axis="y")


def _histogram(
    axes: Any,
    values: Sequence[float],
    limits: tuple[float, float],
    line: float | None,
    label: str,
) -> None:
    """Bars, red from the line on."""
    if all(isinstance(value, int) for value in values):
        step = max(1, round(limits[1] / 30))
        edges = np.arange(0, limits[1] + 1 + step, step) - 0.5
    else:
        edges = np.linspace(*limits, 31)
    if line is not None:  # no bar lies on both sides of it
        edges = np.unique(np.append(edges, line))
    counts, _ = np.histogram(values, edges)
    colours = [RED if line is not None and left >= line else PALE for left in edges[:-1]]
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, max(counts) * 1.18))
    axes.yaxis.get_major_locator().set_params(integer=True)
    if line is not None:
        axes.axvline(line, color=RED, linewidth=1, linestyle="--")
        right = line > 0.6 * limits[1]  # of the line there is no room for the label
        align, text = ("right", f"{label} ") if right else ("left", f" {label}")
        axes.text(line, max(counts) * 1.08, text, ha=align, size=8, color=RED)


def _round_ticks(axes: Any, sizes: np.ndarray) -> None:
    """Powers of two on both axes, around what is there."""
    ticker = needed_package("matplotlib.ticker", "The report picture")
    for axis, set_limits, values in (
        (axes.xaxis, axes.set_xlim, sizes[:, 0]),
        (axes.yaxis, axes.set_ylim, sizes[:, 1]),
    ):
        low, high = values.min() / 1.4, values.max() * 1.4
        powers = [2**n for n in range(16) if low <= 2**n <= high]
        axis.set_major_locator(ticker.FixedLocator(powers))
        axis.set_major_formatter(ticker.FixedFormatter([str(power) for power in powers]))
        axis.set_minor_locator(ticker.NullLocator())
        set_limits(low, high)


def _style(axes: Any, title: str, xlabel: str = "", ylabel: str = "") -> None:
    axes.set_title(title, fontsize=10, loc="left", fontweight="bold")
    axes.set_xlabel(xlabel, fontsize=8, color=GREY)
    axes.set_ylabel(ylabel, fontsize=8, color=GREY)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _nothing(axes: Any, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])


def _label(name: str, most: int) -> str:
    """The name of a sample, without its folders if they take too much room."""
    return name if len(name) <= most else name.rpartition("/")[2]
