"""What Merge and Resize LoRA says of its work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from .lora_algebra import ResizedLayer

SHOWN = 5
"""Layers on the node; the text that goes out has all of them."""


def merge_summary(
    layers: Sequence[ResizedLayer], before: Sequence[Mapping[str, Tensor]], after: Mapping
) -> list[str]:
    """A few lines for the node.

    Args:
        before: the LoRAs that went in.
        after: the one that came out.
    """
    energy = sum(layer.energy for layer in layers)
    lost = sum(layer.lost for layer in layers)
    kept = math.sqrt(max(0.0, 1 - lost / energy)) if energy > 0 else 1.0
    ranks = sorted(layer.rank for layer in layers if layer.rank)
    dims = f"rank {_span(ranks)}" if ranks else "no ranks"
    count = "1 layer" if len(layers) == 1 else f"{len(layers)} layers"
    lines = [
        f"{count} · {dims} · {_megabytes(after)} MB in fp16, of "
        f"{' + '.join(_megabytes(lora) for lora in before)} MB"
    ]
    cut = sorted((layer for layer in layers if layer.lost > 0), key=lambda layer: layer.kept)
    if not cut:
        return [*lines, "exact: nothing was cut off"]
    lines.append(f"{kept:.1%} of the change is left; the layers that lost most:")
    return lines + [layer_line(layer) for layer in cut[:SHOWN]]


def layer_line(layer: ResizedLayer) -> str:
    """Rank, and share of ‖ΔW‖ that is left."""
    if layer.rank:
        ranks = f"rank {layer.rank_before} → {layer.rank}"
    else:
        ranks = "full" if layer.rank_before else "bias or norm"
    return f"{layer.stem}: {ranks}, {layer.kept:.1%} kept"


def _span(ranks: Sequence[int]) -> str:
    low, high = ranks[0], ranks[-1]
    return f"{low}" if low == high else f"{low}-{high}, {sum(ranks) / len(ranks):.1f} on average"


def _megabytes(lora: Mapping[str, Tensor]) -> str:
    return f"{sum(value.numel() for value in lora.values()) * 2 / 1e6:.2f}"
