"""The live monitor: what a person sees of a run on the node, and what the buttons do."""

from __future__ import annotations

import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from frontend import READY, SECONDS, Frontend
from host import HostServer
from training_graph import PICTURES, TRAIN, Prompt, training

pytestmark = [pytest.mark.browser, pytest.mark.slow]

Open = Callable[..., AbstractContextManager[Frontend]]
ENDLESS = 1_000_000
"""More steps than any test waits for."""
SEEDS = itertools.count(100)
"""Of the runs: one that ended as a success would else come from ComfyUI's cache."""
STATE = """path => {
    let graph = app.rootGraph ?? app.graph;
    const ids = path.split(':');
    while (ids.length > 1) graph = graph.getNodeById(ids.shift()).subgraph;
    const run = graph.getNodeById(ids[0]).widgets.find(w => w.monitor)?.monitor.run;
    return run && {
        id: run.id, status: run.status, step: run.step, steps: run.points.step,
        losses: run.points.loss?.mean ?? [], messages: run.messages,
    };
}"""
HEIGHT = "id => app.graph.getNodeById(id).size[1]"
PANEL = ".atelier-monitor"
PICTURE = """() => {
    const canvas = document.querySelector('.atelier-plot canvas');
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const pixels = Array.from({ length: data.length / 4 }, (_, i) => data.slice(4 * i, 4 * i + 4));
    const near = ([r, g, b], [x, y, z]) => Math.abs(r - x) + Math.abs(g - y) + Math.abs(b - z) < 12;
    const count = colour => pixels.filter(pixel => pixel[3] > 200 && near(pixel, colour)).length;
    return {
        width: canvas.width, loss: count([143, 180, 224]), average: count([255, 122, 133]),
        rate: count([127, 214, 164]), validation: count([245, 215, 110]),
    };
}"""


class Graph:
    """A training graph in a window."""

    def __init__(self, frontend: Frontend, node: str = TRAIN) -> None:
        self.frontend, self.page, self.node = frontend, frontend.page, node

    def load(self, prompt: Prompt) -> None:
        self.frontend.run("prompt => app.loadApiJson(prompt, 'monitored')", prompt)
        self.page.wait_for_function(
            "id => app.canvas.graph?.getNodeById(id)?.widgets?.some(widget => widget.monitor)",
            arg=self.node,
            timeout=240 * SECONDS,
        )
        self.look()

    def look(self, scale: float = 1.0) -> None:
        """Bring the training node into view, at a place of its own."""
        self.frontend.run(
            """([id, scale]) => {
                const node = app.canvas.graph.getNodeById(id);
                node.pos = [3000, 0];
                app.canvas.ds.scale = scale;
                app.canvas.ds.offset = [-2950 + 300 / scale, 60 + 60 / scale];
                app.canvas.setDirty(true, true);
            }""",
            [self.node.split(":")[-1], scale],
        )
        self.page.wait_for_timeout(SECONDS // 2)

    def queue(self) -> None:
        """Queue the graph and wait until the node shows the new run."""
        before = self.state().get("id")
        self.frontend.run("() => app.queuePrompt(0)")
        self.wait(f"run.id !== {json.dumps(before)}")

    def state(self) -> dict[str, Any]:
        return self.frontend.run(STATE, self.node) or {}

    def wait(self, condition: str, seconds: int = 60) -> dict[str, Any]:
        """Until a JavaScript condition on `run` holds."""
        self.page.wait_for_function(
            f"path => {{ const run = ({STATE})(path); return run && ({condition}); }}",
            arg=self.node,
            timeout=4 * seconds * SECONDS,
        )
        return self.state()

    def press(self, label: str) -> None:
        self.page.locator(PANEL).get_by_role("button", name=label, exact=True).click()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, new_server: Callable[[Path], HostServer]
) -> Iterator[HostServer]:
    """Of its own: what programs queue, other tests among them, is shown on the node of that id."""
    with new_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def pictures(server: HostServer) -> str:
    return server.put_input(PICTURES, "monitored")


@pytest.fixture
def graph(open_frontend: Open, pictures: str, server: HostServer) -> Iterator[Graph]:
    """A training of no end in a window; whatever a test leaves running is cancelled."""
    with open_frontend() as frontend:
        graph = Graph(frontend)
        prompt = training(pictures, ENDLESS, prefix="atelier/monitored")
        prompt[TRAIN]["inputs"]["seed"] = next(SEEDS)
        graph.load(prompt)
        yield graph
        assert frontend.own_errors() == []
        stop(server)


def stop(server: HostServer) -> None:
    server.interrupt()
    while server.json("/queue")["queue_running"]:
        pass


def saved(server: HostServer) -> int:
    return len(list((server.base / "output" / "atelier").glob("monitored_*.safetensors")))


def post(server: HostServer, path: str) -> int:
    request = urllib.request.Request(server.url + path, b"", method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_before_a_run_there_is_one_slim_line_and_nothing_to_save(graph: Graph) -> None:
    panel = graph.page.locator(PANEL)
    assert panel.inner_text().strip() == "The training chart appears here."
    assert panel.bounding_box()["height"] < 40
    kept = graph.frontend.run("id => app.graph.getNodeById(id).serialize()", TRAIN)
    queued = graph.frontend.run("async () => (await app.graphToPrompt()).output")
    values = [value for value in queued[TRAIN]["inputs"].values() if not isinstance(value, list)]
    assert kept["widgets_values"] == values
    assert "atelier_monitor" not in queued[TRAIN]["inputs"]
    graph.frontend.screenshot("monitor-empty")


def test_every_node_that_trains_has_one(english: Frontend) -> None:
    english.open_nodes(["AtelierTrainLoRA", "AtelierTrainSteps", "AtelierStartTraining"])
    have = english.run(
        "() => app.graph._nodes.filter(n => n.widgets?.some(w => w.monitor)).map(n => n.type)"
    )
    assert have == ["AtelierTrainLoRA", "AtelierTrainSteps"]


def test_finish_now_is_a_success_and_what_follows_runs(graph: Graph, server: HostServer) -> None:
    files = saved(server)
    graph.queue()
    before = graph.wait("run.steps.length > 5")
    more = graph.wait(f"run.step > {before['step'] + 10}")
    assert more["steps"] == list(range(1, more["step"] + 1))
    assert all(loss > 0 for loss in more["losses"])
    drawn = graph.frontend.run(PICTURE)
    assert drawn["average"] > 20, "the line of the average is not on the canvas"
    graph.frontend.screenshot("monitor-running-dark")
    graph.press("Finish now")
    done = graph.wait("run.status === 'finished'")
    graph.page.wait_for_function("() => document.querySelector('.atelier-finish').hidden")
    while server.json("/queue")["queue_running"]:
        graph.page.wait_for_timeout(SECONDS // 10)
    assert more["step"] <= done["step"] < ENDLESS
    assert saved(server) == files + 1
    prompt = server.json(f"/atelier/runs/{done['id']}")["prompt"]
    assert server.json(f"/history/{prompt}")[prompt]["status"]["status_str"] == "success"
    graph.frontend.screenshot("monitor-finished-dark")


def test_pause_stops_the_steps_and_continue_goes_on(graph: Graph) -> None:
    graph.queue()
    graph.wait("run.step > 3")
    graph.press("Pause")
    held = graph.wait("run.status === 'paused'")
    graph.page.wait_for_timeout(2 * SECONDS)
    assert graph.state()["step"] == held["step"]
    graph.frontend.screenshot("monitor-paused-dark")
    graph.press("Continue")
    graph.wait(f"run.status === 'running' && run.step > {held['step'] + 3}")


def test_cancel_works_while_paused_and_keeps_the_lora(graph: Graph, server: HostServer) -> None:
    graph.queue()
    graph.wait("run.step > 3")
    graph.press("Pause")
    graph.wait("run.status === 'paused'")
    server.interrupt()
    ended = graph.wait("run.status === 'cancelled'")
    assert "the LoRA so far is in output/atelier/" in ended["messages"][-1]["text"]
    assert graph.page.locator(f"{PANEL} .atelier-status").inner_text() == "Cancelled"
    graph.frontend.screenshot("monitor-cancelled-dark")


def test_a_reload_restores_the_chart_and_a_second_tab_follows(graph: Graph) -> None:
    """Paused, the run sends no events: what a fresh page shows, it has asked for."""
    graph.queue()
    graph.wait("run.step > 5")
    graph.press("Pause")
    held = graph.wait("run.status === 'paused'")
    saved_graph = graph.frontend.run("() => app.graph.serialize()")
    height = graph.frontend.run(HEIGHT, TRAIN)
    graph.page.reload(wait_until="domcontentloaded")
    graph.page.wait_for_function("() => window.app?.graph?._nodes?.length", timeout=240 * SECONDS)
    assert graph.wait("run.steps.length") == held
    page = graph.page.context.new_page()
    try:
        page.goto(graph.frontend.server.url, wait_until="domcontentloaded")
        page.wait_for_function(READY, timeout=240 * SECONDS)
        page.wait_for_timeout(2 * SECONDS)
        page.evaluate("async graph => { await app.loadGraphData(graph) }", saved_graph)
        page.wait_for_function(f"path => ({STATE})(path)?.steps.length", arg=TRAIN)
        assert page.evaluate(STATE, TRAIN) == held
        assert page.evaluate(HEIGHT, TRAIN) == height
        graph.page.bring_to_front()
        graph.look()
        graph.press("Continue")
        for one in (page, graph.page):
            one.wait_for_function(
                f"path => ({STATE})(path).step > {held['step'] + 5}",
                arg=TRAIN,
                timeout=240 * SECONDS,
            )
        there, here = page.evaluate(STATE, TRAIN), graph.state()
        shared = min(there["step"], here["step"])
        assert there["losses"][:shared] == here["losses"][:shared]
        assert there["steps"] == list(range(1, there["step"] + 1))
    finally:
        page.close()


def test_another_workflow_does_not_show_the_run(graph: Graph) -> None:
    graph.queue()
    graph.wait("run.step > 3")
    other = graph.frontend.run("() => app.graph.serialize()")
    assert other["id"].strip("0-") != ""
    other["id"] = "11111111-2222-3333-4444-555555555555"
    graph.frontend.run("async graph => { await app.loadGraphData(graph) }", other)
    graph.page.wait_for_timeout(2 * SECONDS)
    assert graph.state() == {}


def test_it_works_inside_a_subgraph(graph: Graph) -> None:
    made = graph.frontend.run(
        """id => {
            const node = app.graph.getNodeById(id);
            const { node: outer } = app.graph.convertToSubgraph(new Set([node]));
            return [outer.id, outer.subgraph.nodes[0].id];
        }""",
        TRAIN,
    )
    graph.node = ":".join(map(str, made))
    graph.queue()
    graph.wait("run.step > 5")
    graph.frontend.run("id => app.canvas.openSubgraph(app.graph.getNodeById(id).subgraph)", made[0])
    graph.look()
    graph.page.locator(PANEL).wait_for(state="visible")
    graph.frontend.screenshot("monitor-subgraph")
    graph.press("Finish now")
    graph.wait("run.status === 'finished'")


def test_hover_zoom_log_and_toggles(graph: Graph) -> None:
    graph.queue()
    graph.wait("run.step > 30", 120)
    graph.press("Pause")
    graph.wait("run.status === 'paused'")
    page, box = graph.page, graph.page.locator(f"{PANEL} canvas").bounding_box()
    chart = "document.querySelector('.atelier-monitor')"
    middle = box["y"] + box["height"] / 2

    def at(share: float) -> float:
        return box["x"] + 44 + share * (box["width"] - 54)

    page.mouse.move(at(0.5), middle)
    shown = page.locator(f"{PANEL} .atelier-legend b").first.inner_text()
    losses = graph.state()["losses"]
    place = (len(losses) - 1) / 2
    near = {f"{losses[i]:.3g}" for i in range(int(place) - 1, int(place) + 3)}
    assert any(float(value) == pytest.approx(float(shown), rel=2e-3) for value in near)
    graph.frontend.screenshot("monitor-hover-dark")

    page.mouse.move(at(0.25), middle)
    page.mouse.down()
    page.mouse.move(at(0.4), middle)
    page.mouse.move(at(0.75), middle)
    page.mouse.up()
    zoom = graph.frontend.run(ZOOM, TRAIN)
    last = len(losses)
    assert zoom == pytest.approx([0.25 * last, 0.75 * last], abs=1.5)
    page.mouse.dblclick(at(0.5), middle)
    assert graph.frontend.run(ZOOM, TRAIN) is None

    assert graph.frontend.run(PICTURE)["rate"] == 0
    legend = page.locator(f"{PANEL} .atelier-legend")
    legend.get_by_role("button", name="learning rate").click()
    legend.get_by_role("button", name="gradient").click()
    legend.get_by_role("button", name="log", exact=True).click()
    page.mouse.move(10, 10)
    page.wait_for_timeout(SECONDS // 2)
    assert graph.frontend.run(PICTURE)["rate"] > 20
    graph.frontend.screenshot("monitor-all-lines-dark")
    assert page.evaluate(f"{chart}.querySelector('.atelier-log').ariaPressed") == "true"


ZOOM = "id => app.graph.getNodeById(id).widgets.find(w => w.monitor).monitor.chart.zoom"


def test_the_canvas_is_sharp_when_the_graph_is_zoomed_in(graph: Graph) -> None:
    graph.queue()
    graph.wait("run.step > 3")
    graph.look(2.0)
    page = graph.page
    page.wait_for_function(
        """() => {
            const canvas = document.querySelector('.atelier-plot canvas');
            return Math.abs(canvas.width - canvas.getBoundingClientRect().width) < 2;
        }"""
    )


def test_previews_validation_and_spikes(graph: Graph) -> None:
    """A report as the server makes it, of a long run, through the panel's own module."""
    pictures = sorted(path.name for path in PICTURES.glob("*.png"))[:6]
    graph.frontend.run(LONG_RUN, [TRAIN, pictures])
    page = graph.page
    strip = page.locator(f"{PANEL} .atelier-strip button")
    assert strip.count() == 6
    assert strip.first.inner_text() == "6000", "the newest comes first"
    page.wait_for_function(
        "() => [...document.querySelectorAll('.atelier-strip img')].every(i => i.naturalWidth)"
    )
    graph.look()
    graph.frontend.screenshot("monitor-previews-dark")
    drawn = graph.frontend.run(PICTURE)
    assert drawn["average"] > 200
    assert 0 < drawn["loss"] < 300, "only the marks of spikes have the full colour"
    graph.frontend.run(WITHOUT_BASE, TRAIN)
    page.wait_for_timeout(200)
    assert graph.frontend.run(PICTURE)["validation"] < drawn["validation"] - 100
    strip.nth(1).click()
    box = page.locator(".atelier-lightbox")
    assert box.inner_text() == "step 5000"
    page.keyboard.press("ArrowRight")
    assert box.inner_text() == "step 6000"
    graph.frontend.screenshot("monitor-lightbox")
    page.keyboard.press("Escape")
    assert box.count() == 0


WITHOUT_BASE = """id => {
    const { monitor } = app.graph.getNodeById(id).widgets.find(w => w.monitor);
    const { chart } = monitor;
    chart.set({ points: chart.points, validation: chart.validation.map(([s, v]) => [s, v, null]) });
}"""


LONG_RUN = """([id, pictures]) => {
    const node = app.graph.getNodeById(id);
    const { monitor } = node.widgets.find(w => w.monitor);
    const points = { step: [] };
    for (const name of ['loss', 'smoothed', 'learning_rate', 'grad_norm'])
        points[name] = { min: [], mean: [], max: [] };
    let seed = 1, average = 0.2;
    const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
    for (let i = 1; i <= 1500; i++) {
        const base = 0.09 + 0.11 * Math.exp(-i / 400);
        const mean = base * (0.7 + 0.6 * random());
        average = 0.98 * average + 0.02 * mean;
        const spike = i === 700 ? 3 : 1 + random();
        points.step.push(4 * i);
        const put = (name, low, middle, high) => {
            points[name].min.push(low); points[name].mean.push(middle); points[name].max.push(high);
        };
        put('loss', mean * 0.5, mean, mean * spike);
        put('smoothed', average, average, average);
        const rate = 1e-4 * Math.min(1, i / 100) * (0.5 + 0.5 * Math.cos(Math.PI * i / 1500));
        put('learning_rate', rate, rate, rate);
        put('grad_norm', 0.2, 0.3 + 0.2 * random(), 1);
    }
    const before = monitor.minHeight;
    monitor.show({
        id: 'made', status: 'running', finish_requested: false, pause_requested: false,
        step: 6000, last_step: 8000, epoch: 59, stride: 4, points,
        seconds_per_step: 0.42, seconds_left: 840, memory: { process: 3.2e9, device: 1.1e10 },
        validation: [0, 1, 2, 3, 4, 5].map(
            i => [500 + 1000 * i, 0.17 - 0.012 * i + 0.002 * i * i, 0.19]),
        previews: pictures.map((name, i) => (
            { step: 1000 * (i + 1), filename: name, subfolder: 'monitored', type: 'input' })),
        messages: [{ text: 'The learning rate is high for this optimizer.', level: 'warning' }],
    });
    node.setSize([560, node.size[1] + monitor.minHeight - before + 60]);
    app.canvas.setDirty(true, true);
}"""


@pytest.mark.parametrize(("locale", "palette"), [("en", "light"), ("zh", "dark"), ("zh", "light")])
def test_it_is_legible_in_every_theme_and_language(
    locale: str, palette: str, open_frontend: Open, pictures: str, server: HostServer
) -> None:
    names = sorted(path.name for path in PICTURES.glob("*.png"))[:6]
    with open_frontend(locale=locale, palette=palette) as frontend:
        graph = Graph(frontend)
        graph.load(training(pictures, ENDLESS))
        frontend.run(LONG_RUN, [TRAIN, names])
        graph.look()
        frontend.screenshot(f"monitor-{locale}-{palette}")
        contrast = frontend.run(CONTRAST)
        assert min(contrast.values()) > 3, contrast
        english = "Finish now" in frontend.page.locator(PANEL).inner_text()
        assert english == (locale == "en")
        assert frontend.own_errors() == []


CONTRAST = """() => {
    const panel = document.querySelector('.atelier-monitor');
    const parts = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
    const toRgb = colour => {
        const probe = document.createElement('i');
        probe.style.color = colour;
        panel.append(probe);
        const found = parts(getComputedStyle(probe).color);
        probe.remove();
        return found;
    };
    const light = rgb => {
        const [r, g, b] = rgb.map(v => v / 255)
            .map(v => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = light(parts(getComputedStyle(panel).backgroundColor));
    const against = colour => {
        const [a, b] = [light(toRgb(colour)), ground].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    };
    const answer = { text: against(getComputedStyle(panel).color) };
    for (const [name, { button }] of Object.entries(
        app.graph._nodes.flatMap(n => n.widgets ?? []).find(w => w.monitor).monitor.entries,
    )) answer[name] = against(button.style.getPropertyValue('--of'));
    return answer;
}"""


def test_both_languages_have_every_text(english: Frontend) -> None:
    keys = english.run(
        """async () => {
            const { LANGUAGES } = await import('/extensions/lora-atelier/monitor_texts.js');
            return Object.values(LANGUAGES).map(table => Object.keys(table).sort());
        }"""
    )
    assert keys[0] == keys[1] and len(keys[0]) > 20


def test_routes_know_ids_only(graph: Graph, server: HostServer) -> None:
    graph.queue()
    run = graph.wait("run.step > 3")
    listed = server.json("/atelier/runs")[0]
    assert listed["id"] == run["id"]
    assert (listed["node"], listed["status"]) == (TRAIN, "running")
    whole = json.loads(server.get(f"/api/atelier/runs/{run['id']}"))
    assert whole["points"]["step"][:3] == [1, 2, 3]
    with pytest.raises(urllib.error.HTTPError):
        server.get(f"/atelier/runs/{run['id']}/finish")  # changing things is for POST
    assert post(server, "/atelier/runs/none/finish") == 404
    assert post(server, f"/atelier/runs/{run['id']}/delete") == 404
    assert post(server, f"/atelier/runs/{run['id']}/finish") == 200
    graph.wait("run.status === 'finished'")
    assert post(server, f"/atelier/runs/{run['id']}/finish") == 409
