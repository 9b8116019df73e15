"""One process at a time trains in a run's folder.

The operating system holds the lock and opens it when the process ends, however that ends. The file
stays and means nothing by itself, so a killed run leaves nothing to clear away, nor does a folder
that was copied from another machine.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import AtelierError, require
from ..files import write_whole

LOCK, HOLDER = "training.lock", "trained_by.json"
PATIENCE_SECONDS = 2.0
"""Whoever looks whether a run is trained holds its lock for a moment, and a killed process may take
one to end."""

log = logging.getLogger("lora_atelier")


@contextmanager
def training_alone(folder: Path, go_on: str) -> Iterator[None]:
    """A context in which nobody else trains in ``folder``.

    Where files cannot be locked (some network drives), the run goes on without, with a warning.

    Args:
        go_on: what a person does to have the run go on, ``queue again``.

    Raises:
        AtelierError: another process trains there.
    """
    lock = _taken(folder, go_on)
    told = {"process": os.getpid(), "computer": socket.gethostname()}
    try:
        with suppress(AtelierError):  # a full disk: it is only for reading
            write_whole(folder / HOLDER, json.dumps(told).encode())
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink()
        if lock is not None:
            lock.release()


def is_trained(folder: Path) -> bool:
    """Whether a process trains in ``folder`` at this moment, as far as locks reach: on this machine
    always, on a network drive if that passes them on."""
    if not (folder / LOCK).is_file():
        return False
    lock = _lock(folder)
    try:
        if not _acquired(lock, 0.0):
            return True
        lock.release()
    except (OSError, NotImplementedError):  # the folder may not be written, or not be locked
        pass
    return False


def _taken(folder: Path, go_on: str) -> Any:
    """The lock, held; None where there can be none."""
    lock = _lock(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_held = _acquired(lock, PATIENCE_SECONDS)
    except (OSError, NotImplementedError) as error:
        log.warning(
            "%s cannot be locked (%s). Do not train this run in two places at once.",
            folder.name,
            error,
        )
        return None
    require(
        is_held,
        f"This run is being trained already, by {_holder(folder)}, in {folder.name}. Two at once "
        "would replace each other's checkpoints. Wait for its end, or stop it there. Then "
        f"{go_on}: it goes on from the last checkpoint.",
    )
    return lock


def _lock(folder: Path) -> Any:
    from filelock import FileLock  # of torch's requirements; not at start-up

    return FileLock(str(folder / LOCK))


def _acquired(lock: Any, patience: float) -> bool:
    from filelock import Timeout

    try:
        lock.acquire(timeout=patience)
    except Timeout:
        return False
    return True


def _holder(folder: Path) -> str:
    """For people; who trains may not have been able to say so."""
    try:
        told = json.loads((folder / HOLDER).read_bytes())
        return f'process {told["process"]} on "{told["computer"]}"'
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
