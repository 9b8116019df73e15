"""A preset of LoRA Network shows its numbers in the widgets, and gives way to a hand that edits."""

from __future__ import annotations

from typing import Any

import pytest

from frontend import Frontend
from lora_atelier.training.network.presets import SIZES, Preset

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHOOSE = """([name, value]) => {
    const node = app.graph._nodes[0];
    const widget = node.widgets.find(widget => widget.name === name);
    widget.setValue
        ? widget.setValue(value, { e: {}, node, canvas: app.canvas })
        : (widget.value = value, widget.callback?.(value, app.canvas, node));
    return Object.fromEntries(node.widgets.map(widget => [widget.name, widget.value]));
}"""


@pytest.fixture
def choose(english: Frontend) -> Any:
    """Sets a widget as a person does, and gives the values of all of them."""
    english.open_nodes(["AtelierNetwork"])
    return lambda name, value: english.run(CHOOSE, [name, value])


@pytest.mark.parametrize("preset", SIZES)
def test_a_preset_fills_the_widgets_with_the_numbers_that_count(
    preset: Preset, choose: Any
) -> None:
    values = choose("preset", preset.value)
    assert (values["network_dim"], values["network_alpha"]) == SIZES[preset]
    assert values["preset"] == preset.value


@pytest.mark.parametrize(("widget", "number"), [("network_dim", 48), ("network_alpha", 24)])
def test_a_number_edited_by_hand_makes_it_custom(widget: str, number: float, choose: Any) -> None:
    choose("preset", "complex_style")
    values = choose(widget, number)
    assert values["preset"] == "custom"
    assert values[widget] == number


def test_custom_leaves_the_numbers_as_they_are(choose: Any) -> None:
    choose("preset", "light")
    values = choose("preset", "custom")
    assert (values["network_dim"], values["network_alpha"]) == (16, 8)


def test_a_saved_graph_opens_as_it_was(english: Frontend, choose: Any) -> None:
    choose("preset", "anime_style")
    saved = english.run("() => app.graph.serialize()")
    english.run("async graph => { await app.loadGraphData(graph, true, true, 'again') }", saved)
    values = choose("conv_dim", 4)
    assert (values["preset"], values["network_dim"]) == ("anime_style", 32)
    assert english.own_errors() == []
