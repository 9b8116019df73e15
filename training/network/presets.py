"""Sizes that people use for a purpose; web/presets.js shows the same numbers in the widgets."""

from __future__ import annotations

from enum import Enum


class Preset(str, Enum):
    """What the LoRA is to hold."""

    CUSTOM = "custom"
    ANIME_STYLE = "anime_style"
    COMPLEX_STYLE = "complex_style"
    LIGHT = "light"


SIZES: dict[Preset, tuple[int, float]] = {
    Preset.ANIME_STYLE: (32, 16.0),
    Preset.COMPLEX_STYLE: (128, 64.0),
    Preset.LIGHT: (16, 8.0),
}
"""(network_dim, network_alpha) of every preset but custom."""
