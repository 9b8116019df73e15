"""LoRA files that a graph names: those LoraLoader lists, and what the pack itself has written.

A graph can come from anyone. So names are compared with those of files that are there, and never
put together to a path.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import folder_paths
from safetensors import SafetensorError, safe_open

from ...training.errors import AtelierError, require
from ...training.results.lora_reading import PLAIN_FORMATS
from ..graph.outputs import output_folder

OURS = "output/atelier"
NO_LORAS = {"cache", "state", "saved", "jobs"}
"""Folders below it with other files."""
LORAS = "models/loras"
MOST_FILES = 200
NO_FILE = "none"


class LoraFile(NamedTuple):
    """A file that is there."""

    name: str
    """As LoraLoader lists it, or ``output/atelier/…``."""
    path: Path


def named_files(text: str) -> list[LoraFile]:
    """The files that are meant, each once; those of one line in the order of their names.

    Args:
        text: a name a line, with or without its extension; ``*`` and ``?`` stand for any letters.
            A full path below one of the folders, as Save LoRA gives it, is a name too.

    Raises:
        AtelierError: nothing has such a name.
    """
    lines = [line.strip().strip('"') for line in text.splitlines()]
    there = list(_there()) if any(lines) else []
    found: dict[str, LoraFile] = {}
    for line in filter(None, lines):
        meant = _pattern(_relative(line))
        files = [file for file in there if meant.fullmatch(file.name)]
        if not files:
            raise AtelierError(_missing(line, there))
        found |= {str(file.path): file for file in sorted(files, key=_in_order)}
    require(
        len(found) <= MOST_FILES,
        f"lora_files means {len(found)} files: at most {MOST_FILES} can be compared. Say which.",
    )
    return list(found.values())


def fingerprint_of(text: str) -> str:
    """Of the files that :func:`named_files` finds: another one when a file was written anew, or one
    more fits a pattern."""
    try:
        files = [(file.name, file.path.stat()) for file in named_files(text)]
    except (AtelierError, OSError) as error:  # which the node itself will tell
        return str(error)
    seen = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def offered_files() -> list[str]:
    """Names to choose one from: models/loras in LoraLoader's order, then the pack's own."""
    plain = [file for file in _there() if file.path.suffix.lower() in PLAIN_FORMATS]
    ours = [file for file in plain if file.name.startswith(f"{OURS}/")]
    others = [file.name for file in plain if file not in ours]
    return [*others, *(file.name for file in sorted(ours, key=_in_order))]


def chosen_file(name: str) -> LoraFile:
    """The one file of that name.

    Raises:
        AtelierError: there is none, or it is in a format that can hold a program.
    """
    require(
        name.strip() not in ("", NO_FILE),
        f"lora_file is none: choose a LoRA of {LORAS} or {OURS}. Press R to refresh the list.",
    )
    wanted = _relative(name.strip())
    ending = os.path.splitext(wanted)[1].lower()
    require(
        ending in PLAIN_FORMATS,
        f'lora_file: "{wanted}" is not read: only .safetensors files are. Files of other kinds '
        "(.pt, .ckpt, .bin) can hold a program that would run on loading; get the LoRA as "
        ".safetensors.",
    )
    found = next((file for file in _there() if file.name == wanted), None)
    if found is None:
        raise AtelierError(
            f'lora_file: there is no LoRA "{wanted}" in {LORAS} or below {OURS}. Press R to '
            "refresh the list."
        )
    return found


def require_readable(file: LoraFile) -> None:
    """Refuse a file that is damaged, before anything is drawn.

    Raises:
        AtelierError: it cannot be opened or holds no tensors.
    """
    if file.path.suffix != ".safetensors":
        return  # other formats are not read before their turn comes
    try:
        with safe_open(file.path, framework="pt") as tensors:
            keys = list(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise AtelierError(
            f'lora_files: "{file.name}" cannot be read: {error}. It is damaged, or not whole yet.'
        ) from error
    require(bool(keys), f'lora_files: "{file.name}" is empty.')


def _there() -> Iterator[LoraFile]:
    for name in folder_paths.get_filename_list("loras"):
        path = folder_paths.get_full_path("loras", name)
        if path is not None:
            yield LoraFile(name.replace("\\", "/"), Path(path))
    output = Path(os.path.abspath(output_folder()))
    root = os.path.realpath(output / "atelier")
    for folder, inside, names in os.walk(output / "atelier"):  # follows no links
        inside[:] = [name for name in inside if name not in NO_LORAS]
        for name in names:
            path = Path(folder, name)
            is_ours = Path(os.path.realpath(path)).is_relative_to(root)
            if name.endswith(".safetensors") and not name.startswith(".") and is_ours:
                yield LoraFile(f"output/{path.relative_to(output).as_posix()}", path)


def _relative(line: str) -> str:
    """A full path as a name; other names as they are, but for ``models/loras/``."""
    line = line.replace("\\", "/") if os.name == "nt" else line
    if os.path.isabs(line):
        path = Path(os.path.abspath(line))
        output = Path(os.path.abspath(output_folder()))
        if path.is_relative_to(output):
            return f"output/{path.relative_to(output).as_posix()}"
        for folder in folder_paths.get_folder_paths("loras"):
            if path.is_relative_to(os.path.abspath(folder)):
                return path.relative_to(os.path.abspath(folder)).as_posix()
    return line.removeprefix(f"{LORAS}/")


def _pattern(name: str) -> re.Pattern[str]:
    """``*`` goes through no folder."""
    letters = {"*": "[^/]*", "?": "[^/]"}
    body = "".join(letters.get(letter, re.escape(letter)) for letter in name)
    return re.compile(rf"{body}(\.[a-z]+)?")


def _in_order(file: LoraFile) -> list[tuple[int, str]]:
    """Numbers in names by their value: step 900 before step 1000."""
    parts = re.split(r"(\d+)", file.name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _missing(line: str, there: list[LoraFile]) -> str:
    text = (
        f'lora_files: there is no file "{line}" in models/loras or below {OURS}. Write names as '
        f"LoraLoader lists them, or {OURS}/runs/<run>/lora/*; a * stands for any letters."
    )
    if there:
        text += f" There is, for example: {', '.join(file.name for file in there[:5])}."
    return text


def metadata_of(path: Path) -> dict[str, str]:
    """What a LoRA file says of itself; only safetensors files say anything."""
    if path.suffix not in (".safetensors", ".sft"):
        return {}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}
