"""What the host has to say of a LoRA it only logs, and goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def host_complaints() -> Iterator[list[str]]:
    """Lend a list to which the warnings of this thread are added."""
    heard, root = _Listener(), logging.getLogger()
    level = root.level
    root.addHandler(heard)
    root.setLevel(min(level, logging.WARNING))  # ComfyUI can be told to be silent (--verbose)
    try:
        yield heard.messages
    finally:
        root.setLevel(level)
        root.removeHandler(heard)


class _Listener(logging.Handler):
    """Keeps the warnings of this thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self.thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self.messages.append(record.getMessage())
