"""The workflows that come with the pack, and the converter that runs them without a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from host import HostServer
from workflow import NOTES, WorkflowError, to_prompt, widget_names

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
ABSOLUTE = re.compile(r"(?:^|[\s\"'`(])(?:/[\w.-]+/|[A-Za-z]:[\\/]|~/|\\\\)")

TYPES = {"INT": (int,), "FLOAT": (int, float), "BOOLEAN": (bool,)} | dict.fromkeys(
    ("STRING", "COMBO"), (str,)
)

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def object_info(server: HostServer) -> dict[str, Any]:
    return server.object_info()


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def nodes(ui: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {node["id"]: node for node in ui["nodes"] if node["type"] not in NOTES}


def declared(schema: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Input name -> type and options; a list of choices is a COMBO."""
    both = {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}
    return {
        name: ("COMBO" if isinstance(kind, list) else kind, options[0] if options else {})
        for name, (kind, *options) in both.items()
    }


def nulls(value: Any, where: str = "") -> list[str]:
    if value is None:  # a socket without a link is the one place where null is meant
        return [] if where.endswith((".link", ".links")) else [where]
    if not isinstance(value, dict | list):
        return []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [found for key, item in items for found in nulls(item, f"{where}.{key}")]


def test_there_is_a_workflow_to_start_with() -> None:
    assert "style_lora" in [path.stem for path in WORKFLOWS]


@each_workflow
def test_it_uses_only_nodes_that_exist(path: Path, object_info: dict) -> None:
    assert {node["type"] for node in nodes(read(path)).values()} <= set(object_info)


@each_workflow
def test_its_links_join_sockets_of_the_type_they_name(path: Path, object_info: dict) -> None:
    ui = read(path)
    assert len({link[0] for link in ui["links"]}) == len(ui["links"]) > 0
    for link_id, origin, output, target, place, kind in ui["links"]:
        source, sink = nodes(ui)[origin], nodes(ui)[target]
        schema_out, schema_in = object_info[source["type"]], object_info[sink["type"]]
        slot = sink["inputs"][place]
        assert schema_out["output"][output] == declared(schema_in)[slot["name"]][0] == kind
        assert slot["link"] == link_id
        assert link_id in source["outputs"][output]["links"]


@each_workflow
def test_its_values_fit_the_widgets(path: Path, object_info: dict) -> None:
    for node in nodes(read(path)).values():
        schema = object_info[node["type"]]
        names = list(widget_names(schema))
        assert len(node.get("widgets_values", [])) == len(names), node["type"]
        for name, value in zip(names, node.get("widgets_values", []), strict=True):
            where = f"{node['type']}.{name}"
            if not name:
                assert value == "fixed", "a shared graph gives everyone the same pictures"
                continue
            kind, options = declared(schema)[name]
            assert type(value) in TYPES[kind], where
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= value <= options["max"], where


@each_workflow
def test_its_nodes_have_their_outputs_under_todays_names(path: Path, object_info: dict) -> None:
    for node in nodes(read(path)).values():
        names = [output["name"] for output in node.get("outputs", [])]
        told = object_info[node["type"]]["output_name"]
        if not node["type"].startswith("Atelier"):  # newer hosts give SaveImage an output
            told = told[: len(names)]
        assert names == told, node["type"]


@each_workflow
def test_its_nodes_do_not_overlap(path: Path) -> None:
    title = 30  # px above a node's position
    boxes = {
        node["id"]: (x, y - title, x + node["size"][0], y + node["size"][1])
        for node in read(path)["nodes"]
        for x, y in [node["pos"]]
    }
    overlapping = [
        (a, b)
        for a, first in boxes.items()
        for b, second in boxes.items()
        if a < b
        and first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    ]
    assert overlapping == []


@each_workflow
def test_it_names_no_place_on_somebodys_machine(path: Path) -> None:
    strings = re.findall(r'"(?:[^"\\]|\\.)*"', path.read_text("utf-8"))
    assert [text for text in map(json.loads, strings) if ABSOLUTE.search(text)] == []


@each_workflow
def test_it_holds_no_null_that_the_browser_would_warn_of(path: Path) -> None:
    ui = read(path)
    assert ui["version"] == 0.4
    assert nulls(ui) == []


@each_workflow
def test_a_thumbnail_lies_beside_it(path: Path) -> None:
    with Image.open(path.with_suffix(".jpg")) as picture:
        picture.load()
        assert picture.format == "JPEG"
        assert min(picture.size) >= 256
    assert path.with_suffix(".jpg").stat().st_size < 200_000


def test_the_converter_names_widgets_and_skips_the_control_below_a_seed(object_info: dict) -> None:
    ui = {
        "nodes": [
            {
                "id": 7,
                "type": "KSampler",
                "title": "Mine",
                "inputs": [],
                "widgets_values": [3, "fixed", 20, 8.0, "euler", "normal", 0.5],
            },
            {"id": 8, "type": "Note", "widgets_values": ["hello"]},
        ],
        "links": [],
    }
    expected = {"seed": 3, "steps": 20, "cfg": 8.0, "sampler_name": "euler"}
    expected |= {"scheduler": "normal", "denoise": 0.5}
    assert to_prompt(ui, object_info) == {
        "7": {"class_type": "KSampler", "inputs": expected, "_meta": {"title": "Mine"}}
    }


def _chain(mode: int) -> dict[str, Any]:
    """Load Image -> Invert Image (in the given mode) -> Preview Image."""
    image = {"name": "image", "type": "IMAGE", "link": 1}
    return {
        "nodes": [
            {"id": 1, "type": "LoadImage", "widgets_values": ["a.png", "image"]},
            {"id": 2, "type": "ImageInvert", "mode": mode, "inputs": [image]},
            {
                "id": 3,
                "type": "PreviewImage",
                "inputs": [{"name": "images", "type": "IMAGE", "link": 2}],
            },
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "IMAGE"]],
    }


@pytest.mark.parametrize(
    ("mode", "ids", "source"),
    [(0, {"1", "2", "3"}, ["2", 0]), (4, {"1", "3"}, ["1", 0]), (2, {"1", "3"}, None)],
    ids=["active", "bypassed", "muted"],
)
def test_the_converter_follows_a_link_as_the_browser_does(
    mode: int, ids: set[str], source: list | None, object_info: dict
) -> None:
    prompt = to_prompt(_chain(mode), object_info)
    assert set(prompt) == ids
    assert prompt["3"]["inputs"].get("images") == source


def test_the_converter_goes_past_reroutes(object_info: dict) -> None:
    ui = _chain(0)
    ui["nodes"][1]["type"] = "Reroute"
    prompt = to_prompt(ui, object_info)
    assert set(prompt) == {"1", "3"}
    assert prompt["3"]["inputs"]["images"] == ["1", 0]


def test_the_converter_puts_the_value_of_a_primitive_where_it_is_wired(object_info: dict) -> None:
    ui = {
        "nodes": [
            {"id": 1, "type": "PrimitiveNode", "widgets_values": [96, "fixed"]},
            {
                "id": 2,
                "type": "EmptyLatentImage",
                "inputs": [{"name": "width", "type": "INT", "link": 1}],
                "widgets_values": [64, 32, 1],
            },
        ],
        "links": [[1, 1, 0, 2, 0, "INT"]],
    }
    (node,) = to_prompt(ui, object_info).values()
    assert node["inputs"] == {"width": 96, "height": 32, "batch_size": 1}


def test_the_converter_refuses_groups_of_nodes_in_one(object_info: dict) -> None:
    kind = "0c1e1b6e-0000-4000-8000-5f2f6f0a7c11"
    ui = {
        "nodes": [{"id": 9, "type": kind, "inputs": []}],
        "links": [],
        "definitions": {"subgraphs": [{"id": kind, "nodes": []}]},
    }
    with pytest.raises(WorkflowError, match=r"node 9 .* Export \(API\)"):
        to_prompt(ui, object_info)


def test_the_converter_takes_a_graph_that_was_saved_after_a_run(object_info: dict) -> None:
    shown = "step 300/300"  # what a node showed on itself is saved behind its widgets
    ui = {"nodes": [{"id": 1, "type": "EmptyLatentImage", "widgets_values": [64, 32, 1, shown]}]}
    (node,) = to_prompt({**ui, "links": []}, object_info).values()
    assert node["inputs"] == {"width": 64, "height": 32, "batch_size": 1}


def test_the_converter_refuses_a_node_this_server_lacks(object_info: dict) -> None:
    ui = {"nodes": [{"id": 4, "type": "NobodyHasThis"}], "links": []}
    with pytest.raises(WorkflowError, match=r"node 4 \(NobodyHasThis\)"):
        to_prompt(ui, object_info)


def test_the_converter_refuses_a_graph_with_too_few_values(object_info: dict) -> None:
    ui = {"nodes": [{"id": 1, "type": "EmptyLatentImage", "widgets_values": [8]}], "links": []}
    with pytest.raises(WorkflowError, match="1 saved values for 3 widgets"):
        to_prompt(ui, object_info)


def test_the_converter_leaves_the_widgets_of_later_versions_to_the_node(object_info: dict) -> None:
    values = [100, 1, 1, "auto", 0]  # without the optional ones
    ui = {"nodes": [{"id": 1, "type": "AtelierTrainLoRA", "widgets_values": values}], "links": []}
    (node,) = to_prompt(ui, object_info).values()
    names = ["max_train_steps", "train_batch_size", "gradient_accumulation_steps"]
    assert node["inputs"] == dict(zip([*names, "mixed_precision", "seed"], values, strict=True))


def test_the_converter_takes_values_that_are_saved_by_name(object_info: dict) -> None:
    values = {"batch_size": 3, "width": 64, "height": 32, "shown": "of the pack's own"}
    ui = {"nodes": [{"id": 1, "type": "EmptyLatentImage", "widgets_values": values}], "links": []}
    (node,) = to_prompt(ui, object_info).values()
    assert node["inputs"] == {"width": 64, "height": 32, "batch_size": 3}
