"""Why a picture stays or goes: the cause and its values, and the sentence for a report.

The gallery says the same in the language of its reader, by cause and values
(``web/gallery_texts.js``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Cause(str, Enum):
    BROKEN = "broken"
    OUTLIER = "outlier"
    DUPLICATE = "duplicate"
    RANK = "rank"
    SCORE_RANK = "score_rank"
    KEPT_BY_HAND = "kept_by_hand"
    DROPPED_BY_HAND = "dropped_by_hand"


SENTENCES: Mapping[Cause, str] = {
    Cause.BROKEN: "broken: {why}",
    Cause.OUTLIER: "unlike the others",
    Cause.DUPLICATE: "near duplicate of {name}",
    Cause.RANK: "rank {rank} of {count}",
    Cause.SCORE_RANK: "rank {rank} of {count} by {score}",
    Cause.KEPT_BY_HAND: "kept in the gallery",
    Cause.DROPPED_BY_HAND: "dropped in the gallery",
}
GROUPS: Mapping[Cause, str] = {
    **SENTENCES,
    Cause.BROKEN: "broken",
    Cause.DUPLICATE: "near duplicate",
    Cause.RANK: "beyond keep_best",
    Cause.SCORE_RANK: "beyond keep_best",
}
"""What the dropped pictures of one cause are called when they are counted."""


@dataclass(frozen=True)
class Reason:
    """``Reason(Cause.DUPLICATE, {"name": "3.png"})``; as text, ``near duplicate of 3.png``."""

    cause: Cause
    values: Mapping[str, str | int] = field(default_factory=dict)
    """What the sentence of the cause has places for."""

    def __str__(self) -> str:
        return SENTENCES[self.cause].format_map(self.values)

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return {"cause": self.cause.value, "values": dict(self.values)}
