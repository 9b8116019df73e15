"""The lines of a ``metadata.jsonl`` as it is written: one JSON object for each picture."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import AtelierError

LINE_ENDS = re.compile("[\x85\u2028\u2029]")
"""JSON leaves these as they are, and some readers take them for the end of a line."""


def json_line(values: Mapping[str, Any]) -> str:
    """Without the end of the line."""
    line = json.dumps(values, ensure_ascii=False)
    return LINE_ENDS.sub(lambda end: f"\\u{ord(end[0]):04x}", line)


def one_line(caption: str) -> str:
    """As a caption file can hold it: lines are alternatives, NUL and U+FEFF are for encodings."""
    text = caption.replace("\0", " ").replace("\ufeff", "")
    return " ".join(line.strip() for line in text.splitlines()).strip()


def as_lines(lines: Iterable[str]) -> bytes:
    """The content of the file."""
    # A lone surrogate, which JSON can carry, has no UTF-8.
    return "".join(f"{line}\n" for line in lines).encode(errors="replace")


def metadata_lines(metadata: Path, may_be_torn: bool = False) -> dict[str, str]:
    """Name of a picture -> the line that speaks of it.

    Args:
        may_be_torn: who wrote it may have been killed: a last line without its end does not count.

    Raises:
        AtelierError: a line is something else.
    """
    content = metadata.read_bytes()
    if may_be_torn and _is_torn(last := content.rpartition(b"\n")[2]):
        content = content.removesuffix(last)
    try:
        lines = content.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
        return {str(json.loads(line)["file_name"]): line for line in filter(str.strip, lines)}
    except (ValueError, TypeError, KeyError) as error:
        raise AtelierError(
            f'"{metadata}" holds something else than one JSON object with a file_name a line '
            f"({error}), so it cannot be replaced without loss. Mend it or move it away."
        ) from error


def _is_torn(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return True
    return False
