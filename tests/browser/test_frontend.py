"""The pack as a person meets it: in the template browser, on the canvas, in the help, in search."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from frontend import WORKFLOW, WORKFLOWS, Frontend
from workflow import to_prompt

pytestmark = [pytest.mark.browser, pytest.mark.slow]

DOCS = Path(__file__).resolve().parents[2] / "web" / "docs"
CHINESE = Path(__file__).resolve().parents[2] / "locales" / "zh" / "nodeDefs.json"
HAN = re.compile("[\u4e00-\u9fff]")
NODES = sorted(folder.name for folder in DOCS.iterdir())

# What the canvas writes into a row: the name, a gap, the value, between margins and arrows.
CUT_WIDGETS = """types => {
    const context = document.createElement('canvas').getContext('2d');
    context.font = `${LiteGraph.NODE_TEXT_SIZE}px ${LiteGraph.NODE_FONT}`;
    const cut = [];
    for (const type of types) {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        const [width, height] = node.computeSize();
        if (node.size[0] < width || node.size[1] < height) cut.push(`${type}: too small`);
        for (const widget of node.widgets ?? []) {
            if (widget.element) continue; // a text area wraps what does not fit
            const texts = [widget.label ?? widget.name, String(widget.value)];
            const needed = texts.map(t => context.measureText(t).width).reduce((a, b) => a + b);
            if (needed + 70 > node.size[0])
                cut.push(`${type}.${widget.name}: ${needed} + 70 > ${node.size[0]}`);
        }
        app.graph.remove(node);
    }
    return cut;
}"""

# As they are on the canvas, where a node is never smaller than what it shows.
OVERLAPPING = """() => {
    const boxes = app.graph._nodes.map(node => {
        const [x, y, width, height] = node.boundingRect;
        return { name: node.title, left: x, top: y, right: x + width, bottom: y + height };
    });
    return boxes.flatMap((a, place) => boxes.slice(place + 1).filter(b =>
        a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom
    ).map(b => `${a.name} over ${b.name}`));
}"""

# A group holds all of a node or nothing of it, and its title has room.
GROUPS = """() => {
    const context = document.createElement('canvas').getContext('2d');
    const wrong = [];
    for (const group of app.graph._groups) {
        const [left, top, width, height] = group.boundingRect ?? group._bounding;
        context.font = `${group.font_size}px Arial`;
        const needed = context.measureText(group.title).width + 10;
        if (needed > width) wrong.push(`${group.title}: ${needed} > ${width}`);
        for (const node of app.graph._nodes) {
            const [x, y, w, h] = node.boundingRect;
            const apart = x >= left + width || x + w <= left || y >= top + height || y + h <= top;
            const inside = x >= left && x + w <= left + width && y >= top && y + h <= top + height;
            if (!apart && !inside) wrong.push(`${group.title}: half of ${node.title}`);
        }
    }
    return wrong;
}"""

# What stands in the empty text areas of nodes.
HINTS = """async types => {
    const { CHINESE } = await import('/extensions/lora-atelier/text_area_hints.js');
    const shown = {};
    for (const type of types) {
        const node = LiteGraph.createNode(type);
        app.graph.add(node);
        for (const { name, element } of node.widgets ?? [])
            if (element?.tagName === 'TEXTAREA') shown[`${type}.${name}`] = element.placeholder;
        app.graph.remove(node);
    }
    return [CHINESE, shown];
}"""

TALL = 1400
# The pictures of a node come into what its widgets leave.
FREE_ROOM = """() => {
    const [node] = app.graph._nodes;
    const ends = node.widgets.map(widget => widget.y + (widget.computedHeight ?? 20));
    return node.size[1] - Math.max(...ends);
}"""

LOOK = """() => app.graph._nodes.filter(node => node.type.startsWith('Atelier')).map(node => ({
    type: node.type,
    title: node.title,
    inputs: node.inputs.map(slot => [slot.name, slot.label ?? slot.localized_name]),
    outputs: node.outputs.map(slot => slot.label ?? slot.localized_name ?? slot.name),
    widgets: node.widgets.map(widget => [widget.name, widget.label]),
}))"""


def test_the_template_browser_lists_the_workflow_with_its_picture_and_opens_it(
    open_frontend: Callable[..., AbstractContextManager[Frontend]],
) -> None:
    with open_frontend() as frontend:
        frontend.open_template("style_lora")
        assert frontend.own_errors() == []


@pytest.mark.parametrize("name", sorted(path.stem for path in WORKFLOWS.glob("*.json")))
def test_the_workflow_opens_without_a_missing_node_a_red_border_or_a_warning(
    name: str, english: Frontend
) -> None:
    english.open_workflow(name)
    troubled = english.run(
        """() => app.graph._nodes
            .filter(n => n.has_errors || !LiteGraph.registered_node_types[n.type])
            .map(n => n.type)"""
    )
    assert troubled == []
    assert english.page.locator("[role=dialog]").count() == 0
    alerts = english.page.locator(".p-toast-message").all_inner_texts()
    assert alerts == []
    assert english.run(OVERLAPPING) == []
    assert english.run(GROUPS) == []
    assert english.own_errors() == []
    english.screenshot(f"graph-{name}-dark")


def test_the_browser_queues_what_the_converter_makes(english: Frontend) -> None:
    english.open_workflow()
    queued = english.run("async () => JSON.stringify((await app.graphToPrompt()).output)")
    ui = json.loads(WORKFLOW.read_text("utf-8"))
    assert to_prompt(ui, english.server.object_info()) == json.loads(queued)


def test_widgets_are_legible_at_the_default_size(english: Frontend) -> None:
    assert english.run(CUT_WIDGETS, NODES) == []


def test_every_help_page_opens_from_its_node(english: Frontend) -> None:
    for node in NODES:
        english.open_nodes([node], left=1200)
        shown = english.help_page(node)
        title = (DOCS / node / "en.md").read_text("utf-8").splitlines()[0].removeprefix("# ")
        assert shown.startswith(title)
        assert "`" not in shown, "markdown is shown as it was written"
    english.screenshot("help-en")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lora", {"LoRA Network", "Train LoRA", "Save LoRA"}),
        ("train", {"Train LoRA"}),
        ("dataset", {"Load Image Dataset"}),
    ],
)
def test_search_finds_the_nodes(text: str, expected: set[str], english: Frontend) -> None:
    assert expected <= set(english.search(text))


def test_search_finds_the_nodes_in_chinese(chinese: Frontend) -> None:
    assert "训练 LoRA" in chinese.search("训练")
    assert "加载图像数据集" in chinese.search("数据集")


def test_the_nodes_speak_chinese(chinese: Frontend) -> None:
    chinese.open_nodes(NODES)
    told = json.loads(CHINESE.read_text("utf-8"))
    nodes = chinese.run(LOOK)
    assert {node["type"] for node in nodes} == set(NODES)
    for node in nodes:
        texts = told[node["type"]]
        assert node["title"] == texts["display_name"]
        for name, label in [*node["widgets"], *node["inputs"]]:
            if name in ("atelier_monitor", "atelier_gallery"):  # speak in their own panels
                continue
            assert label == texts["inputs"][name]["name"], f"{node['type']}.{name}"
        outputs = [text["name"] for text in texts["outputs"].values()]
        assert node["outputs"] == outputs, node["type"]
    chinese.screenshot("nodes-zh")


def test_widgets_are_legible_in_chinese(chinese: Frontend) -> None:
    assert chinese.run(CUT_WIDGETS, NODES) == []


def test_text_areas_have_chinese_hints(chinese: Frontend) -> None:
    hints, shown = chinese.run(HINTS, NODES)
    assert shown == hints and len(shown) > 10
    assert [name for name, hint in shown.items() if not HAN.search(hint)] == []


def test_text_areas_have_the_hints_of_the_schemas_in_english(english: Frontend) -> None:
    _, shown = english.run(HINTS, NODES)
    assert [name for name, hint in shown.items() if HAN.search(hint)] == []
    assert shown["AtelierCurateDataset.choice"] == "written by the gallery"


@pytest.mark.parametrize("node", ["AtelierCompareGrid", "AtelierEvaluate", "AtelierCurateDataset"])
def test_text_areas_leave_the_room_to_pictures(node: str, english: Frontend) -> None:
    english.open_nodes([node])
    english.run("tall => app.graph._nodes[0].setSize([900, tall])", TALL)
    english.screenshot(f"text-areas-{node}")
    assert english.run(FREE_ROOM) > TALL / 2


def test_help_opens_in_chinese(chinese: Frontend) -> None:
    chinese.open_workflow()
    assert chinese.help_page("AtelierTrainLoRA").startswith("训练 LoRA")
    chinese.screenshot("help-zh")


def test_the_light_theme_shows_the_graph(
    open_frontend: Callable[..., AbstractContextManager[Frontend]],
) -> None:
    with open_frontend(palette="light") as light:
        light.open_workflow()
        background: Any = light.run(
            "() => getComputedStyle(document.documentElement).getPropertyValue('--bg-color')"
        )
        assert background.strip().lower() in ("#ddd", "#dddddd"), "not the light theme"
        assert light.own_errors() == []
        light.screenshot("graph-light")


def test_the_pack_has_put_no_error_on_the_console(english: Frontend, chinese: Frontend) -> None:
    """Last, so that it hears of everything the tests above have done."""
    assert english.own_errors() == []
    assert chinese.own_errors() == []
