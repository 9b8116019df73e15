"""What lies beside the pictures: caption files and ``metadata.jsonl``."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import AtelierError, require
from .listing import Entry, inside
from .samples import Mask, Problem, Role

CAPTION_SUFFIXES = (".txt", ".caption")
"""In lower case; the first that lies beside a picture is read."""

METADATA = "metadata.jsonl"

LONGEST_CAPTION = 1_000_000
"""Bytes; a larger text file is something else than captions."""

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Facts:
    """What a line of ``metadata.jsonl`` says of a picture; None where it says nothing."""

    captions: tuple[str, ...] | None = None
    num_repeats: int | None = None
    role: Role | None = None
    loss_weight: float | None = None
    source: str | None = None
    license: str | None = None
    mask: str | Mask | None = None
    """Name of the mask file below the dataset folder, or that the mask is in the picture itself."""
    class_tokens: str | None = None
    """The trigger word that the captions have already."""


NOTHING = Facts()


def read_text(entry: Entry, most: float = math.inf) -> str:
    """The text of a file.

    Args:
        most: bytes it may have.

    Raises:
        AtelierError: it is larger, cannot be read or is in an encoding that cannot be told.
    """
    require(
        entry.size <= most,
        f'"{entry.name}" has {entry.size // 1_000_000} MB, too much for captions. Remove it.',
    )
    try:
        with open(entry.path, "rb") as file:
            return decode_text(file.read(), entry.name)
    except OSError as error:
        raise AtelierError(f'"{entry.name}" cannot be read: {error.strerror}.') from error


def decode_text(content: bytes, name: str) -> str:
    """UTF-8, or UTF-16 that says so by its byte-order mark.

    Raises:
        AtelierError: it is neither.
    """
    encoding = next((e for mark, e in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise AtelierError(f'"{name}" is not UTF-8 text. Save it as UTF-8.') from error
    # UTF-16 without its mark passes for UTF-8, but has a zero byte beside every letter.
    require("\0" not in text, f'"{name}" is not UTF-8 text. Save it as UTF-8.')
    return text


def caption_lines(text: str) -> tuple[str, ...]:
    """The lines that hold something, stripped."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def read_metadata(text: str, entry: Entry) -> tuple[dict[str, Facts | AtelierError], list[Problem]]:
    """What is said of each picture, by its name below the dataset folder; where a line says
    something impossible, the error. Lines that name no picture are problems.

    The layout is that of Hugging Face's imagefolder: one JSON object a line with ``file_name``,
    relative to the folder the file lies in, and ``text``, here also a list of alternatives.
    """
    folder = entry.name.rpartition("/")[0]
    facts: dict[str, Facts | AtelierError] = {}
    problems: list[Problem] = []
    # Not splitlines(): JSON may hold some of the ends of a line that it knows.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f'"{entry.name}" line {number}'
        try:
            name, record = _record(line, folder)
        except AtelierError as error:
            problems.append(Problem(entry.name, f"{where}{error}"))
            continue
        try:
            facts[name] = _facts(record, folder)
        except AtelierError as error:
            facts[name] = AtelierError(f"{where}: {error}")
    return facts, problems


def _record(line: str, folder: str) -> tuple[str, dict[str, Any]]:
    """(name of the picture below the dataset folder, what the line says)."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AtelierError(f" is no JSON: {error}.") from error
    require(isinstance(record, dict), " is no JSON object with a file_name.")
    name = record.get("file_name")
    require(isinstance(name, str), " has no file_name.")
    try:
        return inside(folder, name), record
    except AtelierError as error:
        raise AtelierError(f": {error}") from error


def _facts(record: dict[str, Any], folder: str) -> Facts:
    mask = _field(record, "mask", str, "a file name, or alpha")
    return Facts(
        captions=_captions(record.get("text")),
        num_repeats=_field(
            record, "num_repeats", int, "a whole number from 1 to 10000", lambda n: 1 <= n <= 10_000
        ),
        role=_role(record.get("role")),
        loss_weight=_field(
            record, "loss_weight", (int, float), "a number from 0 to 100", lambda n: 0 <= n <= 100
        ),
        source=_field(record, "source", str, "a text"),
        license=_field(record, "license", str, "a text"),
        mask=_mask(mask, folder),
        class_tokens=_field(record, "class_tokens", str, "a text"),
    )


def _mask(mask: str | None, folder: str) -> str | Mask | None:
    if mask is None:
        return None
    return Mask.ALPHA if mask == Mask.ALPHA.value else inside(folder, mask)


def _captions(text: Any) -> tuple[str, ...] | None:
    if text is None:
        return None
    lines = [text] if isinstance(text, str) else text
    right = isinstance(lines, list) and all(isinstance(line, str) for line in lines)
    require(right, f"text is {text!r}: it must be a text or a list of texts.")
    return tuple(part for line in lines for part in caption_lines(line))


def _role(value: Any) -> Role | None:
    if value is None:
        return None
    known = [role.value for role in Role]
    require(value in known, f"role is {value!r}: it must be one of {', '.join(known)}.")
    return Role(value)


def _field(
    record: dict[str, Any],
    name: str,
    kind: type | tuple[type, ...],
    meant: str,
    allowed: Callable[[Any], bool] = lambda value: True,
) -> Any:
    value = record.get(name)
    if value is None:
        return None
    right = isinstance(value, kind) and not isinstance(value, bool) and allowed(value)
    require(right, f"{name} is {value!r}: it must be {meant}.")
    return value
