"""The picture of the report: whole, readable, and the same size for every set."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.report import DatasetReport
from lora_atelier.training.dataset.report_picture import draw_report, report_figure
from lora_atelier.training.dataset.samples import Role
from lora_atelier.training.dataset.token_counts import EncoderTokens
from reported import blurred, report_on, sample, tiles

LONG = "a_very_long_name_without_any_space_in_it_" * 4
ODD = (
    "少女站在雪中看着镜头微笑",
    "🦊🐻",
    "$x_1$ cost 5$",
    "a\tb",
    "\\frac{",
    "a" * 300,
    "%s {} \\n",
)


def usual() -> DatasetReport:
    captions = [f"sks, from {'front' if i % 6 else 'side'}, thing {i}" for i in range(24)]
    sizes = [(256, 256), (300, 200), (120, 700), (90, 90)]
    samples = [sample(i, caption, sizes[i % 4]) for i, caption in enumerate(captions)]
    tokens = (EncoderTokens("l", 75, False, tuple(range(60, 84)), ((23, "the rest"),)),)
    return report_on(*samples, tokens=tokens)


def odd() -> DatasetReport:
    samples = [
        replace(sample(i, f"{LONG}{i}, {ODD[i % 7]}", (40 + 60 * i, 200)), name=f"{ODD[i % 7]}{i}")
        for i in range(14)
    ]
    return report_on(*samples, name=f"{ODD[0]} {ODD[2]} {LONG}", train_batch_size=3)


def broken() -> DatasetReport:
    return report_on(replace(sample(0), image=ImageFile("/nowhere/x.png", (64, 64))))


REPORTS = {
    "usual": usual,
    "odd": odd,
    "one": lambda: report_on(sample(0)),
    "no captions": lambda: report_on(sample(0, ""), sample(1, "")),
    "all the same": lambda: report_on(*[replace(sample(0), name=str(i)) for i in range(9)]),
    "validation": lambda: report_on(sample(0, role=Role.VALIDATION)),
    "broken": broken,
}


@pytest.mark.parametrize("name", REPORTS)
def test_the_layout_holds(name: str) -> None:
    """Nothing is drawn outside, no label lies on another, panels keep their size, and every
    character is in one of the fonts."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = report_figure(REPORTS[name]())
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    texts = [text for text in drawn_texts(figure) if text.get_text().strip()]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    whole = figure.bbox
    for text, box in zip(texts, boxes, strict=True):
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1, text.get_text()
        assert whole.y0 <= box.y0 and box.y1 <= whole.y1, text.get_text()
    clashes = [
        (a.get_text(), b.get_text())
        for i, (a, box_a) in enumerate(zip(texts, boxes, strict=True))
        for b, box_b in zip(texts[i + 1 :], boxes[i + 1 :], strict=True)
        if overlap(box_a, box_b) > 4
    ]
    assert clashes == []
    panels = [axes for axes in figure.axes if axes.axison and axes.get_title(loc="left")]
    assert len(panels) == 6
    assert all(panel.bbox.width > 300 and panel.bbox.height > 200 for panel in panels)


def drawn_texts(figure: Figure) -> Iterator[Text]:
    """Of a figure that has been drawn; ticks outside the limits are there, but not drawn."""
    yield from figure.texts
    for axes in figure.axes:
        yield from (axes.title, axes._left_title, *axes.texts)
        if axes.axison:
            yield from (axes.xaxis.label, axes.yaxis.label)
            yield from axes.get_legend().get_texts() if axes.get_legend() else ()
            for axis, limits, place in (
                (axes.xaxis, axes.get_xlim(), 0),
                (axes.yaxis, axes.get_ylim(), 1),
            ):
                for label in axis.get_ticklabels():
                    if min(limits) <= label.get_position()[place] <= max(limits):
                        yield label


def overlap(a, b) -> float:
    """px²."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(0.0, width) * max(0.0, height)


@pytest.mark.parametrize("name", ["usual", "one", "broken"])
def test_the_picture_has_its_size_and_something_on_it(name: str) -> None:
    picture = draw_report(REPORTS[name]())
    assert picture.shape == (1200, 1600, 3)
    assert picture.dtype == torch.float32
    assert picture.min() >= 0
    assert picture.max() == 1
    dark = (picture.amin(dim=2) < 0.6).float().mean()
    assert dark > 0.01


def red_bars(report: DatasetReport, title: str) -> int:
    (axes,) = [a for a in report_figure(report).axes if a.get_title(loc="left").startswith(title)]
    red = [patch for patch in axes.patches if to_hex(patch.get_facecolor()) == "#d1495b"]
    return len([patch for patch in red if patch.get_width() * patch.get_height() > 0])


@pytest.mark.parametrize(
    ("title", "fine", "bad"),
    [
        ("Buckets", [sample(0)], [sample(0, size=(900, 130))]),
        ("Share that the crop", [sample(0)], [sample(0, size=(900, 130))]),
        (
            "Blur",
            [sample(0)],
            [sample(0), sample(1), replace(sample(2), image=blurred(tiles(2), 3))],
        ),
        ("Most frequent tags", [sample(0), sample(1, "cat")], [sample(0), sample(1)]),
    ],
)
def test_what_to_look_at_is_red(title: str, fine: list, bad: list) -> None:
    assert red_bars(report_on(*fine), title) == 0
    assert red_bars(report_on(*bad), title) == 1


def test_captions_over_the_limit_are_red_and_those_that_just_fit_are_not() -> None:
    def with_tokens(*counts: int) -> DatasetReport:
        tokens = (EncoderTokens("l", 75, False, counts, ()),)
        return report_on(sample(0, "a"), sample(1, "b"), tokens=tokens)

    assert red_bars(with_tokens(70, 75), "Length of the captions (l)") == 0
    assert red_bars(with_tokens(75, 76), "Length of the captions (l)") == 1


def test_pictures_that_the_findings_speak_of_are_shown() -> None:
    report = report_on(sample(0), sample(1, size=(100, 100)), sample(2))
    titles = [axes.get_title() for axes in report_figure(report).axes]
    assert "scaled up 2.6×\n1.png" in titles
    assert {"0.png", "2.png"} <= set(titles)
