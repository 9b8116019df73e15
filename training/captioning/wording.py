"""What a model said becomes a caption: habits taken off, and put beside what was there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum

HABITS = (
    *("arafed", "araffe"),  # BLIP says them of anything
    *("a picture of", "an image of", "a photo of", "a photograph of", "a close up of"),
    *("the image shows", "the image features", "the image depicts", "the image is of"),
    *("the image is", "the image captures", "this image shows", "this image features"),
    *("this image depicts", "this image is", "in this image,", "in the image,"),
    *("this is", "there is", "there are"),
)
"""How captioners begin, which says nothing of the picture."""


class ExistingCaptions(str, Enum):
    """What becomes of the captions that are there."""

    REPLACE = "replace"
    APPEND = "append"
    PREPEND = "prepend"
    ONLY_EMPTY = "only_empty"


def phrases(text: str) -> tuple[str, ...]:
    """A phrase a line; the longest first, so that none hides a longer one."""
    lines = {" ".join(line.split()).casefold() for line in text.splitlines()}
    return tuple(sorted(lines - {""}, key=lambda phrase: (-len(phrase), phrase)))


def cleaned(answer: str, openings: Iterable[str]) -> str:
    """One line, without any of these openings, also where several stand one after another.

    An opening goes where whole words are left behind it, in capitals or not; a caption that is
    nothing but openings becomes empty.
    """
    text = " ".join(answer.split())
    pattern = "|".join(re.escape(opening) for opening in openings)
    if not pattern:
        return text
    return re.sub(rf"^(?:(?:{pattern})(?!\w)[\s,:;–-]*)+", "", text, flags=re.IGNORECASE)


def merged(old: tuple[str, ...], new: str, existing: ExistingCaptions) -> tuple[str, ...]:
    """The captions of a picture, each alternative with what the model said.

    Args:
        new: "" changes nothing, except that ``replace`` still takes the old ones away.
    """
    if existing is ExistingCaptions.REPLACE:
        return (new,)
    if existing is ExistingCaptions.APPEND:
        return tuple(joined(text, new) for text in old)
    if existing is ExistingCaptions.PREPEND:
        return tuple(joined(new, text) for text in old)
    return tuple(text if text.strip() else new for text in old)


def joined(first: str, second: str) -> str:
    """A sentence, and what follows it; between tags there is a comma."""
    first, second = first.strip(), second.strip()
    if not first or not second:
        return first or second
    return f"{first} {second}" if first[-1] in ".!?,;:" else f"{first}, {second}"
