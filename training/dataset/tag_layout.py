"""A caption as tags, and how to change some of them and leave the rest as it is written.

``|||`` cuts a caption into sections (front, middle, end), a separator cuts a section into pieces. A
piece keeps the white space around its tag, so that a sentence with commas (``1,000 foxes, asleep``)
is put together again as it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from .caption_options import CaptionOptions

BRACES = r"\{\{|\}\}|\{[^}]+\}"
"""Escaped braces and whole wildcards."""

Sections = list[list[str]]
"""Pieces by section."""


def tag_key(tag: str) -> str:
    """What spellings of one tag have in common: case and white space do not matter."""
    return " ".join(tag.casefold().split())


@dataclass(frozen=True)
class TagLayout:
    """How a caption is cut."""

    separator: str = ","
    """Between two tags."""
    mark: str = "|||"
    """Between two sections; "" = there is only one."""
    wildcards: bool = False
    """A wildcard is one piece, whatever stands in its braces: ``{red, large|small}``."""

    @classmethod
    def of(cls, options: CaptionOptions) -> TagLayout:
        """As training cuts it."""
        separator, mark = options.caption_separator, options.keep_tokens_separator
        return cls(separator, mark, options.enable_wildcard)

    def tags(self, text: str) -> list[str]:
        """All tags, in their order."""
        return [tag for section in _tags(self._sections(text)) for tag in section]

    def marked(self, text: str) -> bool:
        """The caption says itself which tags stay in front."""
        return len(self._sections(text)) > 1

    def without(self, text: str, unwanted: Collection[str]) -> str:
        """The caption without the tags of these keys (see :func:`tag_key`)."""
        return self._edited(text, lambda sections: _without(sections, unwanted))

    def deduplicated(self, text: str) -> str:
        """The caption with only the first of equal tags."""
        seen: set[str] = set()

        def unseen(piece: str) -> bool:
            key = tag_key(piece)
            fresh = key not in seen
            seen.add(key)
            return fresh

        return self._edited(text, lambda sections: [list(filter(unseen, s)) for s in sections])

    def ordered(self, text: str, key: Callable[[str], int | str]) -> str:
        """The caption with its tags sorted by ``key`` of their keys; front and end stay."""

        def sort_middle(sections: Sections) -> Sections:
            middle = [piece for piece in _middle(sections) if piece.strip()]
            middle.sort(key=lambda piece: key(tag_key(piece)))
            return _with_middle(sections, self._spaced(middle))

        return self._edited(text, sort_middle)

    def with_added(self, text: str, added: Sequence[str]) -> str:
        """The caption with those tags that it lacks, behind the others but before the end."""
        there = set(map(tag_key, self.tags(text)))
        missing = self._spaced(tag for tag in added if tag_key(tag) not in there)

        def append(sections: Sections) -> Sections:
            *others, last = _middle(sections)
            return _with_middle(sections, [*others, last.rstrip(), *missing])

        return self._edited(text, append)

    def with_first(self, text: str, first: Sequence[str]) -> str:
        """The caption with these tags in front of all others, and nowhere else."""

        def prepend(sections: Sections) -> Sections:
            front, *others = _without(sections, set(map(tag_key, first)))
            return [[*self._spaced([*first, *front[:1]]), *front[1:]], *others]

        return self._edited(text, prepend)

    def without_gaps(self, text: str) -> str:
        """The caption without separators that have nothing between them."""
        sections = self._sections(text)
        gaps = any(not piece.strip() for pieces in sections for piece in pieces)
        return self._joined(sections) if gaps else text

    def _edited(self, text: str, change: Callable[[Sections], Sections]) -> str:
        sections = self._sections(text)
        changed = change(sections)
        return text if _tags(changed) == _tags(sections) else self._joined(changed)

    def _joined(self, sections: Sections) -> str:
        texts = (self.separator.join(filter(str.strip, pieces)).strip() for pieces in sections)
        return f" {self.mark} ".join(texts).strip()

    def _spaced(self, tags: Iterable[str]) -> list[str]:
        space = "" if self.separator[-1].isspace() else " "
        return [space + tag.strip() for tag in tags]

    def _sections(self, text: str) -> Sections:
        sections = self._cut(text, self.mark) if self.mark else [text]
        return [self._cut(section, self.separator) for section in sections]

    def _cut(self, text: str, at: str) -> list[str]:
        """``text.split(at)``, but not inside a wildcard."""
        if not (self.wildcards and "{" in text):
            return text.split(at)
        parts, begin = [], 0
        for found in re.finditer(f"{BRACES}|({re.escape(at)})", text):
            if found[1] is not None:
                parts.append(text[begin : found.start()])
                begin = found.end()
        return [*parts, text[begin:]]


def _tags(sections: Sections) -> Sections:
    return [[piece.strip() for piece in pieces if piece.strip()] for pieces in sections]


def _without(sections: Sections, unwanted: Collection[str]) -> Sections:
    return [[piece for piece in s if tag_key(piece) not in unwanted] for s in sections]


def _middle(sections: Sections) -> list[str]:
    """Of a caption without front and end, all of it."""
    return sections[1] if len(sections) > 1 else sections[0]


def _with_middle(sections: Sections, pieces: list[str]) -> Sections:
    return [pieces] if len(sections) == 1 else [sections[0], pieces, *sections[2:]]
