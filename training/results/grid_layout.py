"""Where everything lies on a sheet of a grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..errors import AtelierError
from .chart_text import wrapped_text
from .grid_spec import GridLayout, GridSpec

MOST_SIDE = 8192
"""px; larger pictures are shown by few programs."""
MOST_PIXELS = 64 << 20
"""Of all sheets together: 0.8 GB as IMAGE."""
SMALLEST_PICTURE = 48
"""Longer side, px."""
SMALLEST_LABEL = 11.0
"""px"""
HEADING_LINES, NAME_LINES = 3, 3
CHARACTER = 0.6
"""Width of a column of text, in the size of its font."""
DIGIT = 0.66
"""Width of the widest letters of a row's label, likewise."""
LINE = 1.35
"""Height of a line, likewise."""
HEADING, DETAILS = 1.3, 0.85
"""Size of the prompt, and of what stands below it, likewise."""


@dataclass(frozen=True)
class SheetLayout:
    """px from the upper left corner; the same for all sheets of a grid.

    Args:
        longer: side of a picture.
    """

    spec: GridSpec
    longer: int

    @property
    def cell(self) -> tuple[int, int]:
        """Width and height of a picture."""
        width, height = self.spec.preview.width, self.spec.preview.height
        scale = self.longer / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    @cached_property
    def font(self) -> float:
        """Size of the labels: to be read beside a picture, and when all of the sheet is looked at;
        a name still has some letters above a narrow column."""
        width, _ = self.cell
        _, columns = self.spec.shape
        size = min(max(self.longer / 18, width * columns / 110), width / 5)
        return max(SMALLEST_LABEL, size) * self.spec.label_size

    @property
    def gap(self) -> int:
        """Between pictures; twice as much between what belongs together."""
        return max(4, round(self.font * 0.35))

    @property
    def margin(self) -> int:
        """Around everything."""
        return max(8, round(self.font * 0.9))

    @cached_property
    def left(self) -> int:
        """Where the first column begins."""
        labels = [line for label in self.row_labels() for line in label.split("\n")]
        letters = max(map(len, labels))
        return self.margin + round(letters * DIGIT * self.font) + self.margin

    @cached_property
    def top(self) -> int:
        """Where the first row begins."""
        strengths = self.spec.layout is GridLayout.STRENGTHS_ACROSS
        lines = self.name_lines() + (1 if strengths else 0)
        return self.names_top + round(lines * LINE * self.font) + self.gap

    @cached_property
    def names_top(self) -> int:
        """Where the labels of the columns begin."""
        heading = self.heading_lines() * HEADING + DETAILS + 0.6
        return self.margin + round(heading * LINE * self.font)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a sheet."""
        rows, columns = self.spec.shape
        width, height = self.cell
        left, top = self.corner(rows - 1, columns - 1)
        return left + width + self.margin, top + height + self.margin

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Of a picture."""
        width, height = self.cell
        strengths = len(self.spec.strengths)
        across = self.spec.layout is GridLayout.STRENGTHS_ACROSS
        groups = ((column - 1) // strengths if across else 0) + 1 if column > 0 else 0
        left = self.left + column * (width + self.gap) + groups * self.gap * 2
        seeds = 0 if across else row // strengths
        return left, self.top + row * (height + self.gap) + seeds * self.gap * 2

    def room(self, lora: int | None) -> tuple[int, int]:
        """Left edge and width of the columns of a LoRA, or of the base."""
        width, _ = self.cell
        if lora is None:
            return self.left, width
        across = self.spec.layout is GridLayout.STRENGTHS_ACROSS
        each = len(self.spec.strengths) if across else 1
        first, _ = self.corner(0, 1 + lora * each)
        last, _ = self.corner(0, lora * each + each)
        return first, last + width - first

    def row_labels(self) -> list[str]:
        """Beside each row."""
        seeds = [wrapped_text(f"seed {seed}", 12, 3) for seed in self.spec.preview.seeds]
        if self.spec.layout is GridLayout.STRENGTHS_ACROSS:
            return seeds
        return [f"{seed}\n{strength_label(k)}" for seed in seeds for k in self.spec.strengths]

    def name_lines(self) -> int:
        """Lines that the longest name of a LoRA takes."""
        rooms = [self.room_in_letters(self._name_room(i)) for i in range(len(self.spec.loras))]
        lines = (
            wrapped_text(name, letters, NAME_LINES).count("\n") + 1
            for name, letters in zip(self.spec.loras, rooms, strict=True)
        )
        return max(lines)

    def heading_lines(self) -> int:
        """Lines that the longest prompt takes."""
        width, _ = self.cell
        _, columns = self.spec.shape
        letters = self.room_in_letters(columns * (width + self.gap), HEADING)
        prompts = self.spec.preview.prompts
        return max(wrapped_text(p, letters, HEADING_LINES).count("\n") + 1 for p in prompts)

    def room_in_letters(self, width: float, scale: float = 1.0) -> int:
        """Columns of text that as a rule fit into so many px."""
        return max(3, int(width / (self.font * scale * CHARACTER)))

    def _name_room(self, lora: int) -> int:
        width, _ = self.cell
        across = self.spec.layout is GridLayout.STRENGTHS_ACROSS
        each = len(self.spec.strengths) if across else 1
        return each * (width + self.gap) - self.gap


def sheet_layout(spec: GridSpec) -> SheetLayout:
    """With pictures of the size that is asked for, or as much smaller as the sheets demand.

    Raises:
        AtelierError: nothing would be seen of so many.
    """
    wanted = spec.picture_size or max(spec.preview.width, spec.preview.height)
    longer = wanted
    while longer >= SMALLEST_PICTURE:
        layout = SheetLayout(spec, longer)
        width, height = layout.size
        sheets = len(spec.preview.prompts)
        if max(width, height) <= MOST_SIDE and sheets * width * height <= MOST_PIXELS:
            return layout
        longer = int(longer * 0.97)
    rows, columns = spec.shape
    raise AtelierError(
        f"{rows} × {columns} pictures for each of {len(spec.preview.prompts)} prompts do not fit "
        f"on sheets of {MOST_SIDE} px. Compare fewer at a time, or set label_size lower."
    )


def strength_label(strength: float) -> str:
    """``strength 0.75``"""
    return f"strength {strength:g}"
