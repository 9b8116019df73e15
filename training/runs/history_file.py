"""What a run leaves behind to read: ``history.jsonl`` with a line a step, ``run.json`` with its
settings, and, where wanted, scalars for TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

import torch

from ..errors import AtelierError, needed_package
from ..files import write_whole
from .run import StepRecord, TrainingState
from .spec_json import to_json
from .validation import ValidationPoint

HISTORY, RUN = "history.jsonl", "run.json"
VALIDATION_FIELDS = ("loss", "base_loss")

log = logging.getLogger("lora_atelier")


class _Scalars(Protocol):
    def add_scalar(self, tag: str, value: float, step: int) -> None: ...

    def close(self) -> None: ...


class RunLog:
    """A context in which every step and every validation becomes a line.

    A run that is resumed begins with the lines of the state it goes on from, whatever was written
    after that state before the process was killed.

    Args:
        folder: the run's own.
        tensorboard: also write events into ``folder``/tensorboard.

    Raises:
        AtelierError: tensorboard is wanted and tensorboardX is not installed.
    """

    def __init__(self, folder: Path, state: TrainingState, tensorboard: bool = False) -> None:
        self.folder = folder
        self._scalars: _Scalars | None = None
        if tensorboard:
            package = needed_package("tensorboardX", "tensorboard on Training Checkpoints")
            self._scalars = package.SummaryWriter(
                str(folder / "tensorboard"), purge_step=state.step + 1
            )
        self._file: TextIO | None = None
        self.rewind(state)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
        if self._scalars is not None:
            self._scalars.close()

    def rewind(self, state: TrainingState) -> None:
        """Keep the lines up to ``state``, and go on from there."""
        points = {point.step: point for point in state.validations}
        lines = []
        for step in range(state.step + 1):
            if step > 0:
                lines.append(_line(asdict(state.history[step - 1])))
            if step in points:
                lines.append(_line(_as_line(points[step])))
        try:
            if self._file is not None:
                self._file.close()
            write_whole(self.folder / RUN, json.dumps(_description(state), indent=2).encode())
            write_whole(self.folder / HISTORY, "".join(lines).encode())
            self._file = (self.folder / HISTORY).open("a", encoding="utf-8", buffering=1)
        except (OSError, AtelierError) as error:
            self._give_up(error)

    def step(self, record: StepRecord) -> None:
        """After an optimizer step."""
        self._write(asdict(record))
        self._add("train", record.step, {n: getattr(record, n) for n in _numbers(record)})

    def validation(self, point: ValidationPoint) -> None:
        """After a measurement on the validation pictures."""
        self._write(_as_line(point))
        self._add("validation", point.step, {n: getattr(point, n) for n in VALIDATION_FIELDS})

    def _write(self, values: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(_line(values))
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """The lines are for reading only: without them the run goes on."""
        log.warning("%s is no longer written: %s", HISTORY, error)
        self._file = None

    def _add(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if self._scalars is not None:
            for name, value in values.items():
                self._scalars.add_scalar(f"{group}/{name}", value, step)


def _numbers(record: StepRecord) -> list[str]:
    return [name for name, value in asdict(record).items() if type(value) is float]


def _as_line(point: ValidationPoint) -> dict[str, Any]:
    return {"step": point.step, "validation": {n: getattr(point, n) for n in VALIDATION_FIELDS}}


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(_finite(values)) + "\n"


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _description(state: TrainingState) -> dict[str, Any]:
    run = state.run
    return {
        "identity": run.identity,
        "dataset": run.dataset.name,
        "pictures": len(run.dataset.samples),
        "ingredients": asdict(run.ingredients),
        "settings": to_json(run.spec),
        "mixed_precision": run.mixed_precision.value,
        "versions": {
            "python": platform.python_version(),
            "platform": sys.platform,
            "torch": torch.__version__,
        },
    }
