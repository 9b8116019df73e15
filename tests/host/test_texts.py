"""What people read: the Chinese texts and the help pages say everything the schemas hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from host import PACK_NAME, HostServer

ROOT = Path(__file__).resolve().parents[2]
CHINESE = ROOT / "locales" / "zh"
DOCS = ROOT / "web" / "docs"
HAN = re.compile(r"[\u4e00-\u9fff]")
LANGUAGES = ("en", "zh")


@pytest.fixture(scope="module")
def schemas(server: HostServer) -> dict[str, Any]:
    """What /object_info says of the pack's nodes, by node id."""
    module = f"custom_nodes.{PACK_NAME}"
    found = server.object_info().items()
    return {name: info for name, info in found if info["python_module"] == module}


@pytest.fixture(scope="module")
def chinese(server: HostServer) -> dict[str, Any]:
    """What ComfyUI serves: a file that is no valid JSON would be missing from it."""
    return server.json("/i18n")["zh"]


def inputs(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: definition[1] if len(definition) > 1 else {}
        for group in ("required", "optional")
        for name, definition in schema["input"].get(group, {}).items()
    }


def own_types(schemas: dict[str, Any]) -> set[str]:
    return {kind for schema in schemas.values() for kind in schema["output"] if "ATELIER" in kind}


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for item in value.values():
            yield from texts(item)
    else:
        yield value


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def test_chinese_covers_exactly_the_nodes_there_are(schemas: dict, chinese: dict) -> None:
    assert set(chinese["nodeDefs"]) == set(schemas)


def test_chinese_names_and_explains_every_input_and_no_other(schemas: dict, chinese: dict) -> None:
    for node, schema in schemas.items():
        told = chinese["nodeDefs"][node]["inputs"]
        assert set(told) == set(inputs(schema)), node
        for name, text in told.items():
            assert text["name"].strip() and HAN.search(text["tooltip"]), f"{node}.{name}"


def test_chinese_has_every_choice_of_a_combo_and_no_other(
    server: HostServer, schemas: dict, chinese: dict
) -> None:
    samplers = server.object_info()["KSampler"]["input"]["required"]
    lists_of_the_host = [samplers[name][0] for name in ("sampler_name", "scheduler")]
    for node, schema in schemas.items():
        for name, options in inputs(schema).items():
            told = chinese["nodeDefs"][node]["inputs"][name].get("options", {})
            if options.get("options") in lists_of_the_host:
                assert told == {}, f"{node}.{name}"
                continue
            choices = {c for c in options.get("options", []) if not c.endswith(".safetensors")}
            assert set(told) == choices, f"{node}.{name}"


def test_chinese_names_and_explains_every_output_by_its_place(schemas: dict, chinese: dict) -> None:
    for node, schema in schemas.items():
        told = chinese["nodeDefs"][node]["outputs"]
        assert list(told) == [str(place) for place in range(len(schema["output"]))], node
        for place, text in told.items():
            assert text["name"].strip() and HAN.search(text["tooltip"]), f"{node}.{place}"


def test_chinese_titles_and_descriptions_are_chinese(schemas: dict, chinese: dict) -> None:
    told = {node: chinese["nodeDefs"][node] for node in schemas}
    assert [n for n, text in told.items() if not HAN.search(text["display_name"])] == []
    assert [n for n, text in told.items() if not HAN.search(text["description"])] == []
    titles = [text["display_name"] for text in told.values()]
    assert len(set(titles)) == len(titles)


def test_chinese_names_the_menus_and_the_wires(schemas: dict, chinese: dict) -> None:
    segments = {part for schema in schemas.values() for part in schema["category"].split("/")}
    assert set(chinese["nodeCategories"]) == segments
    assert set(chinese["dataTypes"]) == own_types(schemas)


def test_no_chinese_text_trips_the_message_format(chinese: dict) -> None:
    # vue-i18n reads these as places to fill in, links and plurals, and shows something else.
    own = [chinese["nodeDefs"], chinese["nodeCategories"], chinese["dataTypes"]]
    assert [text for part in own for text in texts(part) if re.search(r"[{}@|]", text)] == []


def test_english_tooltips_say_more_than_the_name(schemas: dict) -> None:
    bare = []
    for node, schema in schemas.items():
        told = {name: options.get("tooltip") for name, options in inputs(schema).items()}
        told |= dict(zip(schema["output_name"], schema["output_tooltips"], strict=True))
        for name, tooltip in told.items():
            if len(words(tooltip or "") - words(name)) < 3:
                bare.append(f"{node}.{name}")
    assert bare == []


def test_outputs_have_names_and_not_only_types(schemas: dict) -> None:
    nameless = {
        node: schema["output_name"]
        for node, schema in schemas.items()
        if set(schema["output_name"]) & own_types(schemas)
        or set(schema["output_name"]) & set(schema["output"])
    }
    assert nameless == {}


def test_every_node_has_its_help_page_in_both_languages_and_no_other(schemas: dict) -> None:
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*") if path.is_file()}
    assert there == {f"{node}/{language}.md" for node in schemas for language in LANGUAGES}


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_pages_speak_of_every_input_and_output(schemas: dict, language: str) -> None:
    silent = []
    for node, schema in schemas.items():
        page = (DOCS / node / f"{language}.md").read_text("utf-8")
        code = set(re.findall(r"`([^`\n]+)`", page))
        wanted = [*inputs(schema), *schema["output_name"]]
        silent += [f"{node}: {name}" for name in wanted if name not in code]
    assert silent == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_pages_are_served_under_the_title_of_the_node(
    server: HostServer, schemas: dict, chinese: dict, language: str
) -> None:
    for node, schema in schemas.items():
        page = server.get(f"/extensions/{PACK_NAME}/docs/{node}/{language}.md").decode()
        title = schema if language == "en" else chinese["nodeDefs"][node]
        assert page.splitlines()[0] == f"# {title['display_name']}"


def test_messages_that_help_pages_quote_are_those_of_the_code(schemas: dict) -> None:
    code = "".join(
        path.read_text("utf-8")
        for folder in ("nodes", "training")
        for path in sorted((ROOT / folder).rglob("*.py"))
    )
    code = re.sub(r'"\s*\n\s*f?r?"', "", code)  # a message that goes over several lines
    plain = re.sub(r"\{[^{}]*\}", "…", code.replace('\\"', '"'))
    unknown = []
    for page in sorted(DOCS.rglob("*.md")):
        refusals = re.split(r"^## (?:When it|报错)", page.read_text("utf-8"), flags=re.M)[1]
        for message in re.findall(r"^- `([^`]+)`", refusals, flags=re.M):
            message = re.sub(r"^\w+ is …: it must", "… is …: it must", message)
            message = re.sub(r" (needs the package) \w+$", r"… \1", message)
            parts = [part.strip() for part in re.split(r"…|\b\d+\b", message)]
            unknown += [f"{page}: {part}" for part in parts if len(part) > 3 and part not in plain]
    assert unknown == []
