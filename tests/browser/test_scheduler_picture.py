"""LR Scheduler shows its curve on itself, though nothing but its own output asks for it."""

from __future__ import annotations

import pytest

from frontend import Frontend

pytestmark = [pytest.mark.browser, pytest.mark.slow]

BUILD = """() => {
    const scheduler = app.graph._nodes.find(node => node.type === 'AtelierScheduler');
    const show = LiteGraph.createNode('PreviewImage');
    show.pos = [500, 0];
    app.graph.add(show);
    scheduler.connect(1, show, 0);
}"""
SHOWN = """() => {
    const scheduler = app.graph._nodes.find(node => node.type === 'AtelierScheduler');
    return scheduler?.imgs?.map(image => [image.naturalWidth, image.naturalHeight]);
}"""


def test_the_curve_is_drawn_on_the_node(english: Frontend) -> None:
    english.open_nodes(["AtelierScheduler"])
    english.run(BUILD)
    english.run("() => app.queuePrompt(0)")
    english.page.wait_for_function(f"() => ({SHOWN})()?.[0]?.[0] > 0", timeout=240 * 1000)
    english.screenshot("scheduler")
    assert english.run(SHOWN) == [[640, 360]]
