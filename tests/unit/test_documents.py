"""What the documents name exists: files, tests, nodes, widgets, and the messages they quote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = {"en": ROOT / "README.md", "zh": ROOT / "README.zh.md"}
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
CHINESE = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))
CODE = "".join(
    path.read_text("utf-8")
    for folder in ("nodes", "training")
    for path in sorted((ROOT / folder).rglob("*.py"))
)


def headings(text: str) -> set[str]:
    """What links into a page may say behind the #, as web hosts make it of headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text("utf-8")
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, part = unquote(link).partition("#")
        if file.startswith(("http:", "https:")):
            continue
        target = path.parent / file if file else path
        if not target.exists() or (part and part not in headings(target.read_text("utf-8"))):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_that_are_named_exist(path: Path) -> None:
    named = re.findall(
        r"`((?:tests|training|nodes|web|dev|docs|locales|workflows)/[\w./-]+)`",
        path.read_text("utf-8"),
    )
    menu = "training/atelier"
    assert [name for name in named if name != menu and not (ROOT / name).exists()] == []


def display_names() -> dict[str, str]:
    """Node id -> its name in the menu."""
    pair = r'node_id="(Atelier\w+)",\s*display_name="([^"]+)"'
    return dict(re.findall(pair, CODE))


@pytest.mark.parametrize("language", READMES)
def test_every_node_is_introduced_by_its_name(language: str) -> None:
    text = READMES[language].read_text("utf-8")
    english = display_names()
    assert set(english) == set(CHINESE)
    names = english.values()
    if language == "zh":  # the English name in brackets behind it
        names = [f"{CHINESE[node]['display_name']}（{name}）" for node, name in english.items()]
    table = [line for line in text.splitlines() if line.startswith("| ")]
    lost = [name for name in names if not any(name in row.split(" | ")[0] for row in table)]
    assert lost == []


def emphasised(text: str) -> set[str]:
    return set(re.findall(r"(?<![*\w])\*([^*\n]+)\*(?!\*)", text))


def of_chinese_nodes(key: str) -> set[str]:
    found: set[str] = set()
    for node in CHINESE.values():
        found |= {part[key] for part in node["inputs"].values()}
    return found


def test_widgets_are_called_as_on_the_nodes() -> None:
    known = {name for node in CHINESE.values() for name in node["inputs"]}
    others = {"LoRA Atelier", "flatart", "scale_by", "Finish now", "Pause"}
    assert emphasised(READMES["en"].read_text("utf-8")) - known == others


def test_widgets_are_called_as_on_the_chinese_nodes() -> None:
    others = {"LoRA Atelier", "flatart", "立即完成", "暂停"}
    text = READMES["zh"].read_text("utf-8")
    assert emphasised(text) - of_chinese_nodes("name") == others


def plain_messages() -> str:
    """The texts of the code with … for what is filled in."""
    joined: Any = re.sub(r'"\s*\n\s*f?r?"', "", CODE)  # a message that goes over several lines
    return re.sub(r"\{[^{}]*\}", "…", joined.replace('\\"', '"'))


@pytest.mark.parametrize("language", READMES)
def test_messages_that_are_quoted_are_those_of_the_code(language: str) -> None:
    code, unknown = plain_messages(), []
    of_the_host = {"lora-atelier", "lora key not loaded", "output/atelier/cache"}
    rows = re.findall(r"^\| ([^|]+) \|", READMES[language].read_text("utf-8"), re.MULTILINE)
    quoted = {message for row in rows for message in re.findall(r"`([^`]+)`", row)}
    assert len(quoted) > 10
    for message in quoted - of_the_host:
        parts = (part.strip() for part in message.split("…"))
        unknown += [part for part in parts if len(part) > 3 and part not in code]
    assert unknown == []


@pytest.mark.parametrize("language", READMES)
def test_the_workflows_of_the_table_are_those_that_there_are(language: str) -> None:
    rows = re.findall(
        r"^\| ([a-z0-9]+(?:_[a-z0-9]+)+) \|", READMES[language].read_text("utf-8"), re.M
    )
    assert set(rows) == {path.stem for path in (ROOT / "workflows").glob("*.json")}
