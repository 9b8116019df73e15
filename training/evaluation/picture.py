"""An evaluation as one picture: the recommendation, the measures over the steps, the table, what
base and LoRA draw, and the copies beside the training pictures they come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from .plots import draw_plots, strength_colours
from .report import bands_text, headline, percent, verdict_text
from .rule import Fault, Judged, Recommendation
from .sheet import BAD, GOOD, GREY, RULE, Sheet
from .spec import evenly

WIDTH = 1280
MARGIN = 24
HEADING, LEGEND, PLOTS, BELOW_PLOTS = 70, 48, 200, 74
TABLE_HEAD, TABLE_LINE, MOST_ROWS = 30, 25, 30
SECTION, GAP, ACROSS = 40, 8, 8
MOST_FAULTS, MOST_PAIRS = 2, 4
LABEL = 104
"""px beside the pictures for what they are."""
COLUMNS = (
    ("LoRA", 0, "left"),
    ("strength", 280, "right"),
    ("loss", 355, "right"),
    ("loss by noise, %", 540, "right"),
    ("gain", 605, "right"),
    ("score", 675, "right"),
    ("prompts kept", 795, "right"),
    ("diversity", 880, "right"),
    ("copies", 965, "right"),
    ("verdict", 985, "left"),
)
"""Name of each, px from the left margin, and on which side of that it lies."""
GREEN, PALE = "#e4f2ec", "#f6f6f6"


def draw_evaluation(recommendation: Recommendation) -> Tensor:
    """The whole report.

    Returns:
        [H, 1280, 3] float32, 0..1.
    """
    rows = _shown(recommendation)
    pairs = _copies(recommendation)
    side = (WIDTH - 2 * MARGIN - LABEL - (ACROSS - 1) * GAP) / ACROSS
    height = HEADING + LEGEND + PLOTS + BELOW_PLOTS + TABLE_HEAD + len(rows) * TABLE_LINE
    height += SECTION + 2 * (side + GAP) + (SECTION + side + 24 if pairs else 0) + MARGIN
    sheet = Sheet(WIDTH, round(height))
    _head(sheet, recommendation)
    draw_plots(sheet, recommendation, HEADING + LEGEND, PLOTS)
    top = HEADING + LEGEND + PLOTS + BELOW_PLOTS
    _table(sheet, recommendation, rows, top)
    top += TABLE_HEAD + len(rows) * TABLE_LINE + SECTION
    _examples(sheet, recommendation, top, side)
    if pairs:
        _pairs(sheet, pairs, top + 2 * (side + GAP) + SECTION, side)
    return sheet.image()


def _shown(recommendation: Recommendation) -> list[Judged]:
    """The rows of the table: all, or some evenly chosen ones and the recommended one."""
    rows = recommendation.rows
    places = set(evenly(range(len(rows)), MOST_ROWS))
    return [row for i, row in enumerate(rows) if i in places or i == recommendation.best]


def _head(sheet: Sheet, recommendation: Recommendation) -> None:
    colour = BAD if recommendation.best is None else GOOD
    text = headline(recommendation)
    sheet.write(MARGIN, 34, text, 26, WIDTH - 2 * MARGIN, color=colour, weight="bold")
    x = MARGIN
    for strength, line in strength_colours(recommendation):
        text = f"strength {strength:g}"
        sheet.write(x, HEADING, "●", 14, color=line)
        sheet.write(x + 16, HEADING, text, 13, color=GREY)
        x += 44 + 8 * len(text)
    if recommendation.best is not None:
        sheet.write(x, HEADING, "★", 16, color=GOOD)
        sheet.write(x + 18, HEADING, "recommended", 13, color=GREY)


def _table(
    sheet: Sheet, recommendation: Recommendation, rows: Sequence[Judged], top: float
) -> None:
    for name, x, side in COLUMNS:
        sheet.write(MARGIN + x, top + TABLE_HEAD / 2, name, 13, ha=side, color=GREY)
    for number, judged in enumerate(rows):
        y = top + TABLE_HEAD + number * TABLE_LINE
        is_best = judged is recommendation.chosen
        if is_best or number % 2 == 0:
            ground = GREEN if is_best else PALE
            sheet.fill(MARGIN - 8, y, WIDTH - 2 * MARGIN + 16, TABLE_LINE, ground)
        _table_line(sheet, judged, recommendation, y + TABLE_LINE / 2)


def _table_line(
    sheet: Sheet, judged: Judged, recommendation: Recommendation, middle: float
) -> None:
    is_best = judged is recommendation.chosen
    row, faults = judged.row, judged.faults
    gain, score, kept = judged.gain, judged.score, row.kept
    cells = (
        (row.candidate.name, False),
        (f"{row.candidate.strength:g}", False),
        (f"{row.loss:.4f}", bool({Fault.OVERFITTED, Fault.WORSE_THAN_BASE} & set(faults))),
        (bands_text(judged, recommendation, "  ", digits=0), False),
        ("–" if gain is None else percent(gain.value), False),
        ("–" if score is None else percent(score.value), Fault.LITTLE_GAIN in faults),
        ("–" if kept is None else f"{kept.value:.2f}", Fault.PROMPTS_LOST in faults),
        (f"{row.diversity:.2f}", Fault.ALL_ALIKE in faults),
        (f"{len(row.copies)} of {len(row.pairs)}", Fault.MEMORISED in faults),
        (verdict_text(judged, is_best, MOST_FAULTS), bool(faults)),
    )
    rooms = {0: 205, len(cells) - 1: WIDTH - 2 * MARGIN - COLUMNS[-1][1]}
    for place, ((text, is_bad), (_, x, side)) in enumerate(zip(cells, COLUMNS, strict=True)):
        colour = GOOD if is_best else BAD if is_bad else "#222222"
        weight = "bold" if is_best else "normal"
        room = rooms.get(place, 0)
        sheet.write(MARGIN + x, middle, text, 14, room, ha=side, color=colour, weight=weight)


def _examples(sheet: Sheet, recommendation: Recommendation, top: float, side: float) -> None:
    """The same prompts and seeds without a LoRA and with the recommended one, or the last."""
    place = len(recommendation.rows) - 1 if recommendation.best is None else recommendation.best
    candidate = recommendation.rows[place].row.candidate
    drawn = candidate.pictures.seen
    _rule(sheet, top - SECTION / 2)
    shown = evenly(range(len(drawn)), ACROSS)
    for label, pictures, y in (
        ("base", recommendation.evaluation.base.seen, top),
        (f"{candidate.name}\nat {candidate.strength:g}", drawn, top + side + GAP),
    ):
        lines = label.split("\n")
        for i, line in enumerate(lines):
            middle = y + side / 2 + (i - (len(lines) - 1) / 2) * 20
            sheet.write(MARGIN, middle, line, 14, LABEL)
        for column, picture in enumerate(shown):
            left = MARGIN + LABEL + column * (side + GAP)
            sheet.put(left, y, side, pictures[picture].small)


def _copies(
    recommendation: Recommendation,
) -> list[tuple[Judged, np.ndarray, np.ndarray, str]]:
    """The clearest copies, each training picture once while there are others: row, picture,
    training picture and its name."""
    evaluation = recommendation.evaluation
    found = sorted(
        (pair.nearness, row, pair)
        for row, judged in enumerate(recommendation.rows)
        for pair in judged.row.copies
    )
    first = {pair.training: (row, pair) for _, row, pair in reversed(found)}
    chosen = sorted(first.values(), key=lambda one: one[1].nearness)
    chosen += [(row, pair) for _, row, pair in found if (row, pair) not in chosen]
    return [
        (
            recommendation.rows[row],
            recommendation.rows[row].row.candidate.pictures.seen[pair.picture].small,
            evaluation.training.seen[pair.training].small,
            evaluation.training_names[pair.training],
        )
        for row, pair in chosen[:MOST_PAIRS]
    ]


def _pairs(
    sheet: Sheet,
    pairs: Sequence[tuple[Judged, np.ndarray, np.ndarray, str]],
    top: float,
    side: float,
) -> None:
    _rule(sheet, top - SECTION / 2)
    sheet.write(MARGIN, top + side / 2 - 10, "copies", 14, LABEL, color=BAD)
    sheet.write(MARGIN, top + side / 2 + 10, "and originals", 14, color=GREY)
    for place, (judged, picture, original, name) in enumerate(pairs):
        left = MARGIN + LABEL + place * 2 * (side + GAP)
        sheet.put(left, top, side, picture, BAD)
        sheet.put(left + side + 2, top, side, original, GREY)
        candidate = judged.row.candidate
        label = f"{candidate.name} at {candidate.strength:g}"
        sheet.write(left, top + side + 12, label, 11, side, color=BAD)
        sheet.write(left + side + 2, top + side + 12, name, 11, side, color=GREY)


def _rule(sheet: Sheet, y: float) -> None:
    sheet.fill(MARGIN, y, WIDTH - 2 * MARGIN, 1, RULE)
