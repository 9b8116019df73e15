"""``selected_tags.csv``: what the numbers that a tagger gives stand for, a row each."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from ..errors import AtelierError, require

GENERAL, CHARACTER, RATING = 0, 4, 9
"""Categories as Danbooru numbers them; any other counts as general."""

COLUMNS = ("name", "category")
"""Those of ``tag_id,name,category,count`` that are needed."""


@dataclass(frozen=True)
class TagTable:
    """Tags in the order of the tagger's output."""

    names: tuple[str, ...]
    categories: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)


def read_tag_table(path: Path) -> TagTable:
    """The table of a tagger.

    Raises:
        AtelierError: no such file, or not of this kind; names the line.
    """
    wrong = f'"{path}" is not the tag table of a WD14-family tagger: '
    advice = "Get selected_tags.csv again from where the model comes from."
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
            require(
                not missing,
                f"{wrong}its first line names no column {' and '.join(missing)} "
                f"(tag_id,name,category,count is usual). {advice}",
            )
            tags = [_tag(row, f"{wrong}line {rows.line_num} ", advice) for row in rows]
    except (csv.Error, UnicodeDecodeError) as error:
        raise AtelierError(f"{wrong}{error}. {advice}") from error
    except OSError as error:
        raise AtelierError(f'"{path}" cannot be read: {error.strerror or error}.') from error
    require(bool(tags), f"{wrong}it has no rows. {advice}")
    names, categories = zip(*tags, strict=True)
    return TagTable(names, categories)


def _tag(row: dict[str, str | None], wrong: str, advice: str) -> tuple[str, int]:
    name, category = ((row[column] or "").strip() for column in COLUMNS)
    require(bool(name), f"{wrong}has no name. {advice}")
    require(category.isdecimal(), f'{wrong}has the category "{category}", not a number. {advice}')
    return name, int(category)
