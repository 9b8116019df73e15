"""What is known of a finished run, step by step, and how it goes over the wire as a LOSS_MAP.

ComfyUI's LOSS_MAP is ``{"loss": [one a step]}``. Train LoRA adds further lists under further keys;
maps of other nodes lack them, and everything here does without.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import require
from ..runs.run import StepRecord
from ..runs.validation import BAND_NAMES, ValidationPoint

Points = tuple[tuple[int, float], ...]
"""(step, loss), steps rising."""


@dataclass(frozen=True)
class LossHistory:
    """The series of a run; those that were not recorded are empty."""

    loss: tuple[float, ...]
    """One a step."""
    learning_rate: tuple[float, ...] = ()
    grad_norm: tuple[float, ...] = ()
    """Before clipping."""
    skipped: tuple[bool, ...] = ()
    """fp16 only: the step overflowed and changed nothing."""
    validation: Points = ()
    """Loss of held-out pictures, always under the same noise."""
    validation_bands: Mapping[str, Points] = field(default_factory=dict)
    """The same by range of timesteps."""
    base: float = math.nan
    """Validation loss without the LoRA."""

    @property
    def steps(self) -> int:
        return len(self.loss)

    @property
    def taken(self) -> tuple[float, ...]:
        """Losses of the steps that were not skipped."""
        if not self.skipped:
            return self.loss
        return tuple(x for x, gone in zip(self.loss, self.skipped, strict=True) if not gone)


def loss_map(
    history: Iterable[StepRecord], validations: Iterable[ValidationPoint] = ()
) -> dict[str, Any]:
    """The LOSS_MAP of a run; ``loss`` comes first, as in core.

    ``validation`` holds [step, loss, loss of the base model], ``validation_bands`` [step, loss] by
    the band's name; both are missing where nothing was validated.
    """
    records, points = list(history), list(validations)
    names = ("loss", "learning_rate", "grad_norm", "skipped")
    found: dict[str, Any] = {name: [getattr(r, name) for r in records] for name in names}
    if points:
        found["validation"] = [[p.step, p.loss, p.base_loss] for p in points]
        found["validation_bands"] = {
            name: [[p.step, p.bands[band]] for p in points] for band, name in enumerate(BAND_NAMES)
        }
    return found


def read_loss_map(loss_map: Mapping[str, Any]) -> LossHistory:
    """The series of a LOSS_MAP; lists that do not go with the losses in length are left out.

    Raises:
        AtelierError: it holds no losses.
    """
    losses = tuple(float(value) for value in loss_map.get("loss", ()))
    require(len(losses) > 0, "loss_map: there are no steps to draw.")

    def series(name: str, kind: type) -> tuple:
        values = loss_map.get(name) or ()
        return tuple(map(kind, values)) if len(values) == len(losses) else ()

    validation = loss_map.get("validation") or ()
    return LossHistory(
        losses,
        series("learning_rate", float),
        series("grad_norm", float),
        series("skipped", bool),
        _points(validation),
        {name: _points(p) for name, p in (loss_map.get("validation_bands") or {}).items()},
        float(validation[-1][2]) if validation and len(validation[-1]) > 2 else math.nan,
    )


def _points(rows: Iterable[Sequence[float]]) -> Points:
    return tuple((int(step), float(loss)) for step, loss, *_ in rows)


def finite(points: Points) -> Points:
    """Those that can be drawn and reckoned with."""
    return tuple((step, loss) for step, loss in points if math.isfinite(loss) and loss > 0)
