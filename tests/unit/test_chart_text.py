"""Text of unknown content in charts."""

from __future__ import annotations

import warnings

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lora_atelier.training.results.chart_text import any_text, drawable, fitted_text, wrapped_text

TEXTS = (
    "plain",
    "少女，站立",
    "🦊🐻",
    "$x_1$",
    "$\\frac{$",
    "नमस्ते",
    "a\u200db\u0301",
    "한국어",
    "\U0010ffff",
)


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_can_be_drawn_and_leaves_no_box(text: str) -> None:
    figure = Figure()
    figure.text(0.1, 0.5, drawable(text), **any_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Glyph missing from font(s)"
        FigureCanvasAgg(figure).draw()


def test_what_no_font_has_is_told_by_its_number() -> None:
    assert drawable("fox \U0010ffff!") == "fox [10FFFF]!"


def test_what_only_joins_other_characters_is_dropped() -> None:
    assert drawable("a\U000e0020b\x07c") == "abc"


def test_usual_letters_stay() -> None:
    assert drawable("fox, naïve – “Größe” 3×4 σ") == "fox, naïve – “Größe” 3×4 σ"


def test_a_wide_text_gives_way_in_the_middle() -> None:
    assert fitted_text("abcdefghij", 10) == "abcdefghij"
    assert fitted_text("abcdefghijk", 10) == "abcdef…ijk"
    assert fitted_text("short\nabcdefghijklm", 7) == "short\nabcd…lm"


def test_chinese_characters_are_two_columns_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_atelier.training.results import chart_text

    monkeypatch.setattr(chart_text, "_characters", lambda: frozenset(range(0x10000)))
    assert fitted_text("一二三四五", 10) == "一二三四五"
    assert fitted_text("一二三四五六", 10) == "一二三…六"


def test_a_long_text_is_broken_at_spaces_and_ends_in_dots() -> None:
    assert wrapped_text("a red  fox\nin snow", 9, 3) == "a red fox\nin snow"
    assert wrapped_text("a red fox in snow", 7, 3) == "a red\nfox in\nsnow"
    assert wrapped_text("a red fox in snow", 7, 2) == "a red\nfox in…"
    assert wrapped_text("abcdefghij", 4, 3) == "abcd\nefgh\nij"
    assert wrapped_text("", 4, 3) == ""


def test_chinese_is_broken_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_atelier.training.results import chart_text

    monkeypatch.setattr(chart_text, "_characters", lambda: frozenset(range(0x10000)))
    assert wrapped_text("一二三四五六", 5, 2) == "一二\n三四…"
