"""Which tags a caption gets of the probabilities that a tagger gives."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

from ..dataset.samples import Sample
from ..dataset.tag_layout import TagLayout, tag_key
from ..dataset.tags import split_tags
from ..errors import require_number
from .tag_table import CHARACTER, RATING, TagTable

LEAST = 0.01
"""Probabilities below are not kept, so no threshold can be lower."""

PAIR_OF_CHARACTERS = re.compile(r"[^\W_]{2}")
"""Kaomoji (>_<, o_o, ||_||, 0_0) have none."""

Found = Sequence[tuple[int, float]]
"""(row of the table, probability) of a picture, those of at least ``LEAST``."""


class TagOrder(str, Enum):
    """How the tags of a caption are sorted."""

    SCORE = "score"
    ALPHABETICAL = "alphabetical"
    AS_IN_TABLE = "as_in_table"


class ExistingCaptions(str, Enum):
    """What becomes of the captions that are there."""

    APPEND = "append"
    """The tags that they lack, behind them."""
    PREPEND = "prepend"
    """The tags, in front of them."""
    REPLACE = "replace"
    ONLY_EMPTY = "only_empty"
    """They stay; only empty ones are filled."""


@dataclass(frozen=True)
class TagOptions:
    """Chosen in Auto-Tag Images."""

    general_threshold: float = 0.35
    """Least probability of a tag."""
    character_threshold: float = 0.85
    """The same of a character's name."""
    max_tags: int = 0
    """Most found tags of a picture, the most probable ones; 0 = all."""
    exclude_tags: str = ""
    """Separated by commas or lines; * stands for anything."""
    always_include: str = ""
    """Tags that stand in front of every caption."""
    replace_underscores: bool = True
    """Write spaces, but not in kaomoji."""
    add_rating: bool = False
    """Add the most probable rating, last."""
    order: TagOrder = TagOrder.SCORE
    existing_captions: ExistingCaptions = ExistingCaptions.APPEND
    _excluded: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name, usual in (("general_threshold", "0.35"), ("character_threshold", "0.85")):
            advice = f"{usual} is usual; lower finds more, and more that is wrong."
            require_number(name, getattr(self, name), LEAST, 1, advice)
        require_number("max_tags", self.max_tags, 0, 10_000, "0 = all.")
        object.__setattr__(self, "_excluded", _pattern(_listed(self.exclude_tags)))

    def tags(self, found: Found, table: TagTable) -> list[str]:
        """The tags of one picture as they are written, without those always included."""
        ratings, chosen = [], []
        for row, probability in found:
            category = table.categories[row]
            if category == RATING:
                ratings.append((row, probability))
            elif probability >= self._threshold(category) and not self._is_excluded(row, table):
                chosen.append((row, probability))
        chosen.sort(key=lambda tag: (-tag[1], tag[0]))
        if self.max_tags > 0:
            chosen = chosen[: self.max_tags]
        rows = self._ordered([row for row, _ in chosen], table)
        if self.add_rating and ratings:
            likeliest = max(ratings, key=lambda tag: tag[1])[0]
            rows += [] if self._is_excluded(likeliest, table) else [likeliest]
        return [self.written(table.names[row]) for row in rows]

    @property
    def included(self) -> list[str]:
        """``always_include``, a tag each."""
        return _listed(self.always_include)

    def concerns(self, sample: Sample) -> bool:
        """Whether the sample may get any tags."""
        if self.existing_captions is not ExistingCaptions.ONLY_EMPTY:
            return True
        return not all(map(str.strip, sample.captions))

    def captions(self, sample: Sample, tags: Sequence[str]) -> tuple[str, ...]:
        """The captions of a sample with these tags; every alternative gets them."""
        layout = TagLayout.of(sample.caption_options)
        alone = self._with_included(layout, _joined(layout, tags))
        kind = self.existing_captions
        if kind is ExistingCaptions.REPLACE:
            return (alone,)
        if kind is ExistingCaptions.ONLY_EMPTY:
            return tuple(text if text.strip() else alone for text in sample.captions)
        return tuple(self._merged(layout, text, tags) or alone for text in sample.captions)

    def _merged(self, layout: TagLayout, text: str, tags: Sequence[str]) -> str:
        """A caption and the tags it lacks, whichever way underscores are written; "" of none."""
        if not text.strip():
            return ""
        there = {_plain(tag) for tag in layout.tags(text)}
        lacking = [tag for tag in tags if _plain(tag) not in there]
        if self.existing_captions is ExistingCaptions.PREPEND:
            return self._with_included(layout, layout.with_first(text, lacking))
        return self._with_included(layout, layout.with_added(text, lacking))

    def _with_included(self, layout: TagLayout, text: str) -> str:
        if not self.included:
            return text
        return layout.with_first(text, self.included) if text else _joined(layout, self.included)

    def _threshold(self, category: int) -> float:
        return self.character_threshold if category == CHARACTER else self.general_threshold

    def _is_excluded(self, row: int, table: TagTable) -> bool:
        return self._excluded.fullmatch(_plain(table.names[row])) is not None

    def _ordered(self, rows: list[int], table: TagTable) -> list[int]:
        if self.order is TagOrder.AS_IN_TABLE:
            return sorted(rows)
        if self.order is TagOrder.ALPHABETICAL:
            return sorted(rows, key=lambda row: _plain(table.names[row]))
        return rows

    def written(self, name: str) -> str:
        """A tag of the table as it stands in a caption."""
        return without_underscores(name) if self.replace_underscores else name


def without_underscores(name: str) -> str:
    """``long hair`` of ``long_hair``; a kaomoji stays as it is."""
    is_kaomoji = "_" in name and PAIR_OF_CHARACTERS.search(name) is None
    return name if is_kaomoji else name.replace("_", " ")


def _joined(layout: TagLayout, tags: Iterable[str]) -> str:
    return layout.with_first("", list(tags)) if tags else ""


def _plain(tag: str) -> str:
    """What the spellings of a tag have in common."""
    return tag_key(without_underscores(tag))


def _listed(text: str) -> list[str]:
    """What stands between commas and line ends."""
    return [tag for line in text.splitlines() for tag in split_tags(line)]


def _pattern(tags: Iterable[str]) -> re.Pattern[str]:
    """Of plain tags, each of which may have *; of none, what matches nothing."""
    patterns = (".*".join(map(re.escape, _plain(tag).split("*"))) for tag in tags)
    return re.compile("|".join(patterns) or r"(?!)")
