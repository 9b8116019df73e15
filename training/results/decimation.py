"""A history of any length as a bounded number of points that still shows every spike.

Steps are gathered in bins of equal size; a bin keeps the smallest, the mean and the largest value
of each series. When there are too many bins, neighbours are merged and the size doubles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_BINS = 2000


@dataclass
class _Spread:
    """The finite values of one series in one bin."""

    low: float
    high: float
    total: float
    count: int

    def add(self, other: _Spread) -> None:
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.total += other.total
        self.count += other.count


@dataclass
class _Bin:
    step: int
    """The last step in it."""
    steps: int = 0
    spreads: dict[str, _Spread] = field(default_factory=dict)

    def add(self, other: _Bin) -> None:
        self.step = other.step
        self.steps += other.steps
        for name, spread in other.spreads.items():
            if name in self.spreads:
                self.spreads[name].add(spread)
            else:
                self.spreads[name] = spread


class DecimatedHistory:
    """Values of named series by step; a series may begin late or miss steps."""

    def __init__(self, max_bins: int = MAX_BINS) -> None:
        self.max_bins = max_bins
        self.stride = 1
        """Steps in a full bin."""
        self.bins: list[_Bin] = []
        self.names: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self.bins)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of one step; what is not finite counts as missing."""
        self.names.update(dict.fromkeys(values))
        new = _Bin(step, 1, {k: _Spread(v, v, v, 1) for k, v in values.items() if math.isfinite(v)})
        if self.bins and self.bins[-1].steps < self.stride:
            self.bins[-1].add(new)
            return
        if len(self.bins) == self.max_bins:
            self._halve()
        if self.bins and self.bins[-1].steps < self.stride:
            self.bins[-1].add(new)  # an odd number of bins leaves a half-filled one
        else:
            self.bins.append(new)

    def columns(self, first: int = 0) -> dict[str, Any]:
        """The bins from number ``first`` on, made for JSON: six digits, None where there is none.

        Returns:
            ``{"step": [last step of each bin], name: {"min": […], "mean": […], "max": […]}, …}``
        """
        bins = self.bins[first:]
        columns: dict[str, Any] = {"step": [b.step for b in bins]}
        for name in self.names:
            spreads = [b.spreads.get(name) for b in bins]
            columns[name] = {
                "min": [s and rounded(s.low) for s in spreads],
                "mean": [s and rounded(s.total / s.count) for s in spreads],
                "max": [s and rounded(s.high) for s in spreads],
            }
        return columns

    def _halve(self) -> None:
        for left, right in zip(self.bins[::2], self.bins[1::2], strict=False):
            left.add(right)
        self.bins = self.bins[::2]
        self.stride *= 2


def rounded(value: float | None) -> float | None:
    """Six digits, and None for what JSON has no number for."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
