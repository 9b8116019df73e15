"""A blank page on which a report is drawn from top to bottom, px from the upper left corner."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import needed_package
from ..results.chart_text import any_text, fitted_text

DPI = 128  # a power of two: sides that are divided by it are exact
PURPOSE = "The picture of an evaluation"
INK, GREY, RULE = "#222222", "#666666", "#d9d9d9"
GOOD, BAD = "#1b7f5c", "#c0392b"
LETTER = 0.6
"""Width of a letter, in the size of its font."""


class Sheet:
    """White, of a fixed size.

    Raises:
        AtelierError: matplotlib is missing.
    """

    def __init__(self, width: int, height: int) -> None:
        agg = needed_package("matplotlib.backends.backend_agg", PURPOSE)
        figures = needed_package("matplotlib.figure", PURPOSE)  # not pyplot: it keeps state
        self.width, self.height = width, height
        self.figure = figures.Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
        self.canvas = agg.FigureCanvasAgg(self.figure)

    def write(
        self, x: float, y: float, text: str, size: float = 14, room: float = 0, **look: Any
    ) -> None:
        """A line whose middle lies at ``y``.

        Args:
            size: of the letters, px.
            room: px; the middle of a longer text gives way. 0 = no limit.
        """
        if room:
            text = fitted_text(text, max(3, int(room / (size * LETTER))))
        style = {"fontsize": size * 72 / DPI, "va": "center", "color": INK, **any_text()}
        self.figure.text(x / self.width, 1 - y / self.height, text, **{**style, **look})

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """matplotlib's Axes in a part of the sheet."""
        place = (left, self.height - top - height, width, height)
        whole = (self.width, self.height, self.width, self.height)
        return self.figure.add_axes([px / side for px, side in zip(place, whole, strict=True)])

    def fill(self, left: float, top: float, width: float, height: float, colour: str) -> None:
        """A plain ground."""
        ground = self.axes(left, top, width, height)
        ground.set_axis_off()
        ground.add_patch(_patches().Rectangle((0, 0), 1, 1, color=colour, linewidth=0))

    def put(
        self, left: float, top: float, side: float, picture: np.ndarray, edge: str = ""
    ) -> None:
        """A picture [h, w, 3] in the middle of a square.

        Args:
            edge: colour of the frame around it; "" = none.
        """
        place = self.axes(left, top, side, side)
        place.imshow(picture, interpolation="lanczos", aspect="equal")
        place.set_xticks([])
        place.set_yticks([])
        for spine in place.spines.values():
            spine.set_visible(bool(edge))
            spine.set_color(edge or INK)
            spine.set_linewidth(2)

    def image(self) -> Tensor:
        """[H, W, 3] float32, 0..1."""
        self.canvas.draw()
        pixels = np.asarray(self.canvas.buffer_rgba(), dtype=np.float32)[..., :3] / 255
        return torch.from_numpy(pixels.copy())


def _patches() -> Any:
    return needed_package("matplotlib.patches", PURPOSE)
