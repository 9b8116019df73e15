"""A row of the tables of widgets, and what it is held to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from widget_runs import Bench, Settings, merged


class Row(NamedTuple):
    """One widget."""

    value: Any
    changes: str
    """What must differ: see :meth:`widget_runs.Outcome.part`."""
    needs: Mapping[str, Any] = {}
    """Other widgets of the same node."""
    elsewhere: Settings = {}
    """Widgets of other nodes."""
    model: str = "sd15"
    """A property of :class:`widget_runs.Bench`."""

    def settings(self, node_id: str, widget: str, besides: Settings) -> tuple[Settings, Settings]:
        """Those of the run without the widget's other value, and of the run with it.

        Args:
            besides: what all rows of the node need.
        """
        needed = merged(besides, self.elsewhere, {node_id: self.needs})
        return needed, merged(needed, {node_id: {widget: self.value}})


def check_row(bench: Bench, node_id: str, widget: str, row: Row, besides: Settings) -> None:
    """The widget alone changes what comes out of the graph."""
    without, changed = row.settings(node_id, widget, besides)
    before, after = bench.run(without, row.model), bench.run(changed, row.model)
    assert all(torch.tensor(after.losses).isfinite())
    assert differ(before.part(row.changes), after.part(row.changes))


def differ(one: Any, other: Any) -> bool:
    """True when two values differ by more than rounding."""
    if isinstance(one, Mapping):
        return one.keys() != other.keys() or any(differ(one[key], other[key]) for key in one)
    if isinstance(one, list | Tensor):
        one, other = torch.as_tensor(one), torch.as_tensor(other)
        same_shape = one.shape == other.shape
        return not same_shape or not torch.allclose(one, other, rtol=1e-5, atol=1e-8)
    return bool(one != other)
