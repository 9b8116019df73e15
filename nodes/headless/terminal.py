"""How a run goes, in one line of a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from ..live.monitor import EVENT
from ..live.progress import duration
from ..live.run_monitor import ENDED

SECONDS_BETWEEN_LINES = 10.0
"""In a file, where a line cannot be written over."""
WIDTH = 79


class Terminal:
    """Hears what nodes would tell browsers.

    Args:
        titles: of the nodes, by their ids.
    """

    def __init__(self, stream: TextIO = sys.stdout, titles: Mapping[str, str] | None = None):
        self.stream, self.titles = stream, titles or {}
        self._is_open = False
        """The cursor stands behind a line that the next one is to cover."""
        self._written = float("-inf")

    def hear(self, event: Any, data: Any) -> None:
        """An event of the server."""
        if event == EVENT and data["last_step"]:
            self._show(run_line(data), data["status"] in [s.value for s in ENDED])
        elif event == "progress" and data["node"] is not None:
            node = str(data["node"])
            title = self.titles.get(node, f"node {node}")
            self._show(f"{title}: {data['value']:g}/{data['max']:g}", data["value"] >= data["max"])

    def say(self, text: str) -> None:
        """Something that stays."""
        self._end_line()
        self.stream.write(f"{text}\n")
        self.stream.flush()

    def _show(self, text: str, is_last: bool) -> None:
        if self.stream.isatty():
            self.stream.write(f"\r{text[:WIDTH]:<{WIDTH}}")
            self._is_open = True
            if is_last:
                self._end_line()
        elif text and (is_last or time.monotonic() - self._written > SECONDS_BETWEEN_LINES):
            self._written = time.monotonic()
            self.stream.write(f"{text}\n")
        self.stream.flush()

    def _end_line(self) -> None:
        if self._is_open:
            self.stream.write("\n")
        self._is_open = False


def run_line(report: Mapping[str, Any]) -> str:
    """Of what :meth:`nodes.live.run_monitor.RunMonitor.report` gives."""
    parts = [f"{report['status']}: step {report['step']}/{report['last_step']}"]
    loss, each = report["latest"].get("smoothed"), report["seconds_per_step"]
    if loss is not None:
        parts.append(f"loss {loss:.4f}")
    if each:
        parts.append(f"{1 / each:.2f} it/s" if each < 1 else f"{each:.2f} s/it")
        parts.append(f"{duration(report['seconds_left'] or 0.0)} left")
    return " · ".join(parts)
