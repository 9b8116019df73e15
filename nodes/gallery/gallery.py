"""A gallery: the pictures of a dataset that a person may choose from, while the queue waits.

The node's thread opens it and waits; the server's thread reads it and passes the choice on.
"""

from __future__ import annotations

import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ...training.curation.choice import Choice, parse_choice
from ...training.curation.reasons import Reason
from ...training.dataset.buckets import Size
from ...training.dataset.pictures import ImagePixels, Picture
from ...training.errors import AtelierError
from ..live.browsers import Newest, RunningNode

EVENT = "atelier.gallery"
MAX_GALLERIES = 8
LOOK_FOR_CANCEL_SECONDS = 0.1


class Status(str, Enum):
    WAITING = "waiting"
    DONE = "done"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    """Nobody chose: the time was up, or no browser was there."""


class NotWaiting(AtelierError):
    """The gallery is closed: no choice changes anything any more."""


@dataclass(frozen=True)
class GalleryPicture:
    """What the browser is told of one picture."""

    name: str
    digest: str | None
    """SHA-256 of the content; None where the file cannot be read."""
    size: Size
    """(width, height) px, upright."""
    captions: tuple[str, ...]
    role: str
    keep: bool
    """As it stands without a word from the person."""
    reason: Reason | None
    scores: Mapping[str, float | None]
    group: int | None
    """Number of the group of near duplicates."""
    outlier: bool
    find: Callable[[], Picture | None]
    """The picture itself; None when it lived in memory and is gone."""

    def report(self) -> dict[str, Any]:
        width, height = self.size
        return {
            "digest": self.digest,
            "name": self.name,
            "width": width,
            "height": height,
            "captions": list(self.captions),
            "role": self.role,
            "keep": self.keep,
            "reason": None if self.reason is None else self.reason.report(),
            "scores": dict(self.scores),
            "group": self.group,
            "outlier": self.outlier,
        }


def held_loosely(picture: Picture) -> Callable[[], Picture | None]:
    """So that a gallery that is looked at later keeps no pictures in memory."""
    return weakref.ref(picture) if isinstance(picture, ImagePixels) else lambda: picture


class Gallery:
    """One dataset to choose from.

    Args:
        mode: of the node.
        judge: raises AtelierError when a choice cannot be taken; None where none is waited for.
        send: gets every event; called by both threads.
    """

    def __init__(
        self,
        name: str,
        mode: str,
        pictures: Sequence[GalleryPicture],
        judge: Callable[[Choice], Any] | None,
        send: Callable[[dict[str, Any]], None],
        status: Status = Status.WAITING,
        place: RunningNode | None = None,
    ) -> None:
        self.id = secrets.token_hex(16)
        self.name, self.mode = name, mode
        self.pictures = {str(number): picture for number, picture in enumerate(pictures)}
        self.place = place or RunningNode()
        self.started = time.time()
        self.status = status
        self._judge = judge
        """None once it is closed, since it may hold all pictures in memory."""
        self._send = send
        self._lock = threading.RLock()
        self._chosen = threading.Event()
        self._choice: Choice | None = None
        self._deadline: float | None = None

    # The node's thread

    def open(self) -> None:
        """Let the browser know."""
        GALLERIES.add(self)
        self._publish()

    def wait(
        self,
        seconds: float,
        there: Callable[[], bool],
        notice: Callable[[float | None], None],
    ) -> Choice | None:
        """The person's choice; None when the time was up or nobody was there to make one.

        Args:
            seconds: at most; 0 = as long as it takes.
            there: whether somebody could choose.
            notice: called ten times a second with the seconds left (None: no limit); may raise to
                cancel.
        """
        self._deadline = time.monotonic() + seconds if seconds else None
        self.open()
        with self._cancelled_on_error():
            while not self._chosen.is_set():
                left = self.seconds_left
                notice(left)
                if left == 0 or not there():
                    break
                self._chosen.wait(LOOK_FOR_CANCEL_SECONDS)
            self._close(Status.TIMED_OUT)  # unless it was done
        return self._choice

    @property
    def seconds_left(self) -> float | None:
        """None where nothing ends the wait but the person, or it has ended."""
        if self._deadline is None or self.status is not Status.WAITING:
            return None
        return max(0.0, self._deadline - time.monotonic())

    # The server's thread

    def finish(self, text: str) -> None:
        """Take the person's choice and let the queue go on.

        Raises:
            NotWaiting: it is too late.
            AtelierError: the text is no choice, or leaves nothing.
        """
        judge = self._judge
        if judge is not None:
            choice = parse_choice(text)
            judge(choice)
            if self._close(Status.DONE, choice):  # another may have come first in the meantime
                return
        raise NotWaiting("This gallery is closed. Queue the graph again to choose anew.")

    def summary(self) -> dict[str, Any]:
        """One line of the list of galleries, and what an event says."""
        with self._lock:
            left = self.seconds_left
            return {
                "id": self.id,
                **self.place._asdict(),
                "name": self.name,
                "status": self.status.value,
                "started": self.started,
                "seconds_left": None if left is None else round(left, 1),
            }

    def report(self) -> dict[str, Any]:
        """All of it, for JSON."""
        pictures = list(self.pictures.items())
        return {
            **self.summary(),
            "mode": self.mode,
            "images": [{"id": number, **picture.report()} for number, picture in pictures],
            "scores": list(pictures[0][1].scores) if pictures else [],
        }

    # Parts of the above

    def _close(self, status: Status, choice: Choice | None = None) -> bool:
        """False: it was closed already."""
        with self._lock:
            if self.status is not Status.WAITING:
                return False
            self.status, self._choice, self._judge = status, choice, None
            self._chosen.set()
        self._publish()
        return True

    @contextmanager
    def _cancelled_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._close(Status.CANCELLED)
            raise

    def _publish(self) -> None:
        with self._lock:  # held while sending: events must not overtake each other
            self._send(self.summary())


GALLERIES: Newest[Gallery] = Newest(MAX_GALLERIES)
