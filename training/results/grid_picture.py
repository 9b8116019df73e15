"""The sheets of a grid, one for each prompt: pictures go in one by one, and labels at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import needed_package
from .chart_text import any_text, fitted_text, wrapped_text
from .grid_layout import (
    CHARACTER,
    DETAILS,
    HEADING,
    LINE,
    NAME_LINES,
    SheetLayout,
    sheet_layout,
    strength_label,
)
from .grid_spec import GridLayout, GridSpec, Variant

DPI = 128  # a power of two: sides that are divided by it are exact
PAPER = 243
"""Grey enough to set white pictures apart."""
GREY = "#666666"
LEAST_LETTERS = 3
DESCENT = 0.25
"""Of letters below their line, in the size of the font."""
PURPOSE = "The labels of a grid"


class GridPicture:
    """All sheets; of the pictures that went in, only what is to be seen there is kept.

    Raises:
        AtelierError: nothing would be seen of so many pictures; or matplotlib is missing.
    """

    def __init__(self, spec: GridSpec) -> None:
        self.spec = spec
        self.layout = sheet_layout(spec)
        width, height = self.layout.size
        self._labels = _left_labels(self.layout)  # before anything is drawn: this may fail
        sheets = len(spec.preview.prompts)
        self._pixels = np.full((sheets, height, width, 3), PAPER, np.uint8)

    def put(self, variant: Variant | None, prompt: int, seed: int, picture: Image.Image) -> None:
        """Place one picture; the base appears wherever a row begins.

        Args:
            prompt, seed: their indices.
        """
        if picture.size != self.layout.cell:
            picture = picture.resize(self.layout.cell, Image.Resampling.LANCZOS)
        pixels = np.asarray(picture.convert("RGB"))
        for place in self.spec.places(variant, seed):
            left, top = self.layout.corner(*place)
            height, width = pixels.shape[:2]
            self._pixels[prompt, top : top + height, left : left + width] = pixels

    def images(self) -> Tensor:
        """[prompts, H, W, 3] float32, 0..1, with all labels."""
        _, height, width, _ = self._pixels.shape
        images = torch.empty(len(self._pixels), height, width, 3)
        for prompt, (image, pixels) in enumerate(zip(images, self._pixels, strict=True)):
            header = _header(self.layout, prompt)
            pixels[: len(header)] = header
            pixels[len(header) :, : self._labels.shape[1]] = self._labels
            image.copy_(torch.from_numpy(pixels)).div_(255.0)
        return images


class _Strip:
    """An empty part of the sheet, to be written on."""

    def __init__(self, width: int, height: int, font: float) -> None:
        agg = needed_package("matplotlib.backends.backend_agg", PURPOSE)
        figures = needed_package("matplotlib.figure", PURPOSE)
        self.width, self.height, self.font = width, height, font
        self.figure = figures.Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        self.figure.set_facecolor((PAPER / 255,) * 3)
        self.canvas = agg.FigureCanvasAgg(self.figure)

    def write(
        self,
        corner: tuple[float, float],
        text: str,
        room: float,
        lines: int,
        scale: float = 1.0,
        **look: Any,
    ) -> int:
        """As much of the text as fits in so many px and lines: its middle gives way.

        Returns:
            How many lines it takes.
        """
        most = max(LEAST_LETTERS, int(room / (self.font * scale * CHARACTER)))
        for letters in range(most, LEAST_LETTERS - 1, -1):
            label = wrapped_text(fitted_text(text, letters * lines), letters, lines)
            written = self.write_as_is(corner, label, scale, **look)
            if written.get_window_extent(self.canvas.get_renderer()).width <= room:
                break
            if letters > LEAST_LETTERS:
                written.remove()
        return label.count("\n") + 1

    def write_as_is(
        self, corner: tuple[float, float], text: str, scale: float = 1.0, **look: Any
    ) -> Any:
        """All of the text, in its own lines; matplotlib's Text."""
        place = (corner[0] / self.width, 1 - corner[1] / self.height)
        style = {"fontsize": self.font * scale * 72 / DPI, "linespacing": 1.2, **any_text()}
        return self.figure.text(*place, text, **style, **look)

    def pixels(self) -> np.ndarray:
        """[H, W, 3] uint8."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3]


def _header(layout: SheetLayout, prompt: int) -> np.ndarray:
    """The prompt, how it was drawn, and what the columns are."""
    spec, font = layout.spec, layout.font
    width, _ = layout.size
    strip = _Strip(width, layout.top, font)
    room, lines = width - layout.left - layout.margin, layout.heading_lines()
    text = spec.preview.prompts[prompt]
    lines = strip.write((layout.left, layout.margin), text, room, lines, HEADING, va="top")
    below = layout.margin + lines * HEADING * LINE * font
    strip.write((layout.left, below), _details(spec), room, 1, DETAILS, va="top", color=GREY)
    across = spec.layout is GridLayout.STRENGTHS_ACROSS
    bottom = layout.top - layout.gap - DESCENT * font - (LINE * font if across else 0)
    for lora, name in ((None, "base"), *enumerate(spec.loras)):
        left, room = layout.room(lora)
        at = (left + room / 2, bottom)
        strip.write(at, name, room, NAME_LINES, va="baseline", ha="center")
    if across:
        _write_strengths(strip, layout)
    return strip.pixels()


def _write_strengths(strip: _Strip, layout: SheetLayout) -> None:
    cell, _ = layout.cell
    for variant in layout.spec.variants[1:]:
        _, column = layout.spec.places(variant, 0)[0]
        left, _ = layout.corner(0, column)
        strength = layout.spec.strengths[variant.strength]
        # Without the word where the columns are narrow: a number must not be cut.
        wide = layout.room_in_letters(cell) >= len(strength_label(strength)) + 1
        label = strength_label(strength) if wide else f"{strength:g}"
        at = (left + cell / 2, layout.top - layout.gap - DESCENT * layout.font)
        strip.write(at, label, cell, 1, va="baseline", ha="center", color=GREY)


def _left_labels(layout: SheetLayout) -> np.ndarray:
    """What the rows are."""
    _, height = layout.size
    strip = _Strip(layout.left, height - layout.top, layout.font)
    right = layout.left - layout.margin
    for row, label in enumerate(layout.row_labels()):
        _, top = layout.corner(row, 0)
        middle = top - layout.top + layout.cell[1] / 2
        strip.write_as_is((right, middle), label, va="center", ha="right", color=GREY)
    return strip.pixels()


def _details(spec: GridSpec) -> str:
    preview = spec.preview
    parts = [
        f"{preview.width} × {preview.height}",
        f"{preview.steps} steps",
        f"cfg {preview.cfg:g}",
        f"{preview.sampler_name} {preview.scheduler}",
    ]
    if preview.guidance:
        parts.append(f"guidance {preview.guidance:g}")
    if preview.negative.strip():
        parts.append(f"not: {preview.negative.strip()}")
    return " · ".join(parts)
