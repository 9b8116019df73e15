"""The history of a run that another process trains, line by line as it comes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from ..runs.history_file import HISTORY, VALIDATION_FIELDS
from ..runs.run import StepRecord
from ..runs.validation import ValidationPoint

NUMBERS = tuple(f.name for f in fields(StepRecord))


class News(NamedTuple):
    """What was written since the last look."""

    records: list[StepRecord]
    validations: list[ValidationPoint]
    """Without their bands, which the file does not hold."""
    is_new: bool
    """The file was written anew: what was read before may no longer hold."""


class HistoryTail:
    """Reads ``history.jsonl`` of a run's folder on from where it was.

    The file grows by lines, and is replaced as a whole where a run is taken up or goes back.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / HISTORY
        self._file = (0, 0)
        """Device and number of the file that was read."""
        self._place = 0

    def changed(self) -> float | None:
        """When it was last written to, as :func:`time.time`; None: there is none."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return None

    def news(self) -> News:
        """The whole lines that are new."""
        try:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())  # of this file: another may take its place
                is_new = self._file != (stat.st_dev, stat.st_ino) or stat.st_size < self._place
                place = 0 if is_new else self._place
                file.seek(place)
                content = file.read()
        except OSError:
            return News([], [], False)
        whole = content[: content.rfind(b"\n") + 1]
        self._file, self._place = (stat.st_dev, stat.st_ino), place + len(whole)
        lines = [_parsed(line) for line in whole.splitlines()]
        records = [_record(line) for line in lines if all(name in line for name in NUMBERS)]
        points = [_point(line) for line in lines if isinstance(line.get("validation"), Mapping)]
        return News(records, points, is_new)


def _parsed(line: bytes) -> Mapping[str, Any]:
    """Nothing, where the line is not as it was written."""
    try:
        data = json.loads(line)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _record(line: Mapping[str, Any]) -> StepRecord:
    return StepRecord(**{name: _number(line[name]) for name in NUMBERS})


def _point(line: Mapping[str, Any]) -> ValidationPoint:
    losses = {name: _number(line["validation"].get(name)) for name in VALIDATION_FIELDS}
    return ValidationPoint(line["step"], **losses, bands=(), base_bands=())


def _number(value: Any) -> Any:
    """The file holds null for what is no finite number."""
    return math.nan if value is None else value
