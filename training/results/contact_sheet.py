"""All previews of a run in one picture: a row for each step, a column for each prompt and seed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import needed_package
from .chart_text import any_text, wrapped_text
from .preview_files import BASE, NO_TEXTS, PreviewFile, header
from .preview_spec import PreviewSpec

CELL = 256
"""Longer side of a picture on the sheet, px; less where there are many columns."""
SMALLEST_CELL = 64
MAX_WIDTH, MAX_HEIGHT = 4096, 8192
GAP, BETWEEN_PROMPTS = 8, 16
LEFT, TOP = 112, 92
PROMPT_LINES = 3
DPI = 128  # a power of two: sides that are divided by it are exact
CHARACTER = 7.5
"""Width of a column of text, px."""


@dataclass(frozen=True)
class _Layout:
    """Where everything lies, px from the upper left corner."""

    spec: PreviewSpec
    steps: Sequence[int]

    @property
    def cell(self) -> tuple[int, int]:
        """Width and height of a picture."""
        room = (MAX_WIDTH - LEFT) // len(self.spec.columns) - GAP - BETWEEN_PROMPTS
        longer = max(SMALLEST_CELL, min(CELL, room))
        scale = longer / max(self.spec.width, self.spec.height)
        return max(1, round(self.spec.width * scale)), max(1, round(self.spec.height * scale))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        right, bottom = self.corner(len(self.steps), len(self.spec.columns))
        return right - BETWEEN_PROMPTS, bottom

    def corner(self, row: int, column: int) -> tuple[int, int]:
        width, height = self.cell
        left = LEFT + column * (width + GAP) + column // len(self.spec.seeds) * BETWEEN_PROMPTS
        return left, TOP + row * (height + GAP)


class ContactSheet:
    """Draws the sheet of a run again and again; small copies of its pictures are kept."""

    def __init__(self, spec: PreviewSpec) -> None:
        self.spec = spec
        self._kept: dict[tuple[Path, int, tuple[int, int]], np.ndarray] = {}

    def draw(
        self, files: Sequence[tuple[PreviewFile, Path]], graph: Mapping[str, str] = NO_TEXTS
    ) -> bytes:
        """The sheet as a PNG; where there is no picture, it stays empty.

        Args:
            graph: texts by which ComfyUI restores the graph that made it.
        """
        there = {(file.step, file.prompt, file.seed): path for file, path in files}
        steps = sorted({file.step for file, _ in files})  # BASE comes first
        layout = _Layout(self.spec, shown_steps(steps, _most_rows(self.spec)))
        width, height = layout.size
        pixels = np.full((height, width, 3), 255, np.uint8)
        kept = {}
        for row, step in enumerate(layout.steps):
            for column, (prompt, seed) in enumerate(self.spec.columns):
                if (path := there.get((step, prompt, seed))) is not None:
                    key = (path, path.stat().st_mtime_ns, layout.cell)
                    kept[key] = picture = self._kept.get(key)
                    if picture is None:
                        kept[key] = picture = _small(path, layout.cell)
                    left, top = layout.corner(row, column)
                    pixels[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        self._kept = kept
        content = io.BytesIO()
        sheet = Image.fromarray(_labelled(pixels, layout))
        sheet.save(content, "PNG", pnginfo=header(graph), compress_level=4)
        return content.getvalue()


def shown_steps(steps: Sequence[int], most: int) -> list[int]:
    """The first and the last step and, where there are too many, evenly chosen ones between."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _most_rows(spec: PreviewSpec) -> int:
    _, height = _Layout(spec, ()).cell
    return max(2, (MAX_HEIGHT - TOP) // (height + GAP))


def _small(path: Path, size: tuple[int, int]) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def _labelled(pixels: np.ndarray, layout: _Layout) -> np.ndarray:
    """Steps beside the rows, prompts and seeds above the columns."""
    agg = needed_package("matplotlib.backends.backend_agg", "The contact sheet of the previews")
    figures = needed_package("matplotlib.figure", "The contact sheet of the previews")
    height, width = pixels.shape[:2]
    figure = figures.Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    canvas = agg.FigureCanvasAgg(figure)
    figure.figimage(pixels, origin="upper")

    def write(x: float, y: float, text: str, **look: Any) -> None:
        figure.text(x / width, 1 - y / height, text, **{"fontsize": 7, **look}, **any_text())

    cell_width, cell_height = layout.cell
    spec, seeds = layout.spec, len(layout.spec.seeds)
    for index, prompt in enumerate(spec.prompts):
        x, y = layout.corner(0, index * seeds)
        characters = int((seeds * (cell_width + GAP) - GAP) / CHARACTER)
        lines = wrapped_text(prompt, characters, PROMPT_LINES)
        write(x, y - 26, lines, va="bottom", linespacing=1.3)
    for column, (_, seed) in enumerate(spec.columns):
        x, y = layout.corner(0, column)
        label = wrapped_text(f"seed {seed}", int(cell_width / CHARACTER), 1)
        write(x, y - 6, label, va="bottom", color="#666666")
    for row, step in enumerate(layout.steps):
        _, y = layout.corner(row, 0)
        label = "base" if step == BASE else f"step {step}"
        write(LEFT - 12, y + cell_height / 2, label, fontsize=8, ha="right", va="center")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
