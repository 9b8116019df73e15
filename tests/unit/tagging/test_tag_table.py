"""selected_tags.csv, as it is and as it should not be."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.tagging.tag_table import TagTable, read_tag_table


def table(path: Path, text: str | bytes) -> TagTable:
    file = path / "selected_tags.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_tag_table(file)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_names_and_categories_in_order(tmp_path: Path, end: str, mark: str) -> None:
    rows = ["tag_id,name,category,count", "9999999,general,9,8", "4,1girl,0,7", '5,"a_""b"",c",4,1']
    found = table(tmp_path, mark + end.join(rows) + end)
    assert found.names == ("general", "1girl", 'a_"b",c') and found.categories == (9, 0, 4)
    assert len(found) == 3


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "names no column name and category"),
        ("id,tag\n1,fox\n", "names no column name and category"),
        ("tag_id,name,count\n1,fox,0\n", "names no column category "),
        ("tag_id,name,category,count\n", "it has no rows"),
        ("tag_id,name,category,count\n1,fox,0,5\n2,red,blue,5\n", 'line 3 has the category "blue"'),
        ("tag_id,name,category,count\n1,fox,0,5\n2\n", "line 3 has no name"),
        ("tag_id,name,category,count\n1,,0,5\n", "line 2 has no name"),
        ('tag_id,name,category,count\n1,"fox,0,5\n', "unexpected end of data"),
        ("name,category\nfüchse,0\n".encode("utf-16"), "not the tag table"),
        (b"\0\1\2binary", "not the tag table"),
    ],
)
def test_a_malformed_table_is_refused(tmp_path: Path, text: str | bytes, match: str) -> None:
    with pytest.raises(AtelierError, match=match) as refusal:
        table(tmp_path, text)
    assert "selected_tags.csv again from where the model comes from" in str(refusal.value)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match='selected_tags.csv" cannot be read: No such file'):
        read_tag_table(tmp_path / "selected_tags.csv")
