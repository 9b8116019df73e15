"""The gallery of Curate Dataset: what a person does in it, and what the graph makes of that."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from frontend import SECONDS, Frontend
from host import HostServer
from lora_atelier.training.curation.reasons import SENTENCES, Cause
from lora_atelier.training.curation.scores import Score
from training_graph import PICTURES, Prompt, node

pytestmark = [pytest.mark.browser, pytest.mark.slow]

Open = Callable[..., AbstractContextManager[Frontend]]
DATASET, CURATE, SAVE = "1", "2", "3"
NAMES = ("bear", "bee", "cactus", "crab", "fox", "lemon", "pizza", "whale")
MANY = 2000
FOUND = """path => {
    let graph = app.rootGraph ?? app.graph;
    const ids = path.split(':');
    while (ids.length > 1) graph = graph.getNodeById(ids.shift()).subgraph;
    const node = graph.getNodeById(ids[0]);
    const value = name => node.widgets.find(w => w.name === name).value;
    const session = node.widgets.find(w => w.gallery)?.gallery.session;
    return {
        id: session?.report.id, status: session?.report.status,
        mode: value('mode'), choice: value('choice'),
    };
}"""
HAN = re.compile("[\u4e00-\u9fff]")
SHOWN = "cells => cells.sort((a, b) => a.dataset.place - b.dataset.place).map(c => c.innerText)"


def curated(folder: str, saved: str, **widgets: Any) -> Prompt:
    """Load Dataset -> Curate Dataset, which waits -> Save Dataset."""
    wanted = {
        "mode": "wait_for_me",
        "score": "sharpness",
        "keep_best": 0,
        "drop_duplicates": True,
        "drop_outliers": False,
        "timeout_minutes": 5,
        "choice": "",
    }
    return {
        DATASET: node("AtelierLoadDataset", folder=folder),
        CURATE: node("AtelierCurateDataset", dataset=[DATASET, 0], **{**wanted, **widgets}),
        SAVE: node("AtelierSaveDataset", dataset=[CURATE, 0], folder=f"datasets/{saved}"),
    }


def places(text: str) -> set[str]:
    """Where values go in a sentence."""
    return set(re.findall(r"\{(\w+)\}", text))


class Graph:
    """A graph with the gallery in a window."""

    def __init__(self, frontend: Frontend) -> None:
        self.frontend, self.page, self.node = frontend, frontend.page, CURATE
        self.dialog = self.page.locator(".atelier-gallery dialog")
        self.panel = self.page.locator(".atelier-gallery-panel")

    def load(self, prompt: Prompt) -> None:
        self.frontend.run("prompt => app.loadApiJson(prompt, 'curated')", prompt)
        self.page.wait_for_function(
            "id => app.canvas.graph?.getNodeById(id)?.widgets?.some(widget => widget.gallery)",
            arg=self.node,
            timeout=240 * SECONDS,
        )
        self.look()

    def look(self) -> None:
        """Bring the node into view, at a place of its own."""
        self.frontend.run(
            """id => {
                const node = app.canvas.graph.getNodeById(id);
                node.pos = [3000, 0];
                app.canvas.ds.scale = 1;
                app.canvas.ds.offset = [-2650, 160];
                app.canvas.setDirty(true, true);
            }""",
            self.node.split(":")[-1],
        )
        self.page.wait_for_timeout(SECONDS // 2)

    def queue(self) -> None:
        self.frontend.run("() => app.queuePrompt(0)")

    def wait_open(self) -> None:
        self.dialog.wait_for(state="visible", timeout=240 * SECONDS)
        self.page.wait_for_timeout(SECONDS // 2)

    def found(self) -> dict[str, Any]:
        return self.frontend.run(FOUND, self.node)

    def names(self) -> list[str]:
        """Of the pictures in sight, in their order."""
        return (
            self.page.locator(".atelier-gallery .name")
            .locator("..")
            .evaluate_all(
                """cells => cells.sort((a, b) => a.dataset.place - b.dataset.place)
                .map(cell => cell.querySelector('.name').textContent.split(' · ').pop()
                    .split('.')[0])"""
            )
        )

    def cell(self, name: str) -> Any:
        return self.dialog.locator(".cell", has_text=f"{name}.png")

    def dropped(self) -> list[str]:
        cells = self.dialog.locator(".cell.dropped .name").all_inner_texts()
        return sorted(text.split(" · ")[-1].split(".")[0] for text in cells)

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.page.wait_for_timeout(SECONDS // 10)

    def proceed(self) -> None:
        self.dialog.locator("button.continue").click()
        self.dialog.wait_for(state="detached")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, new_server: Callable[[Path], HostServer]
) -> Iterator[HostServer]:
    """Of its own: what other tests queue would open galleries, too."""
    with new_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def pictures(server: HostServer) -> str:
    """Eight pictures with captions, and a near-duplicate of the fox."""
    folder = server.base / "input" / "gallery"
    folder.mkdir(parents=True)
    for name in NAMES:
        shutil.copy(PICTURES / f"{name}.png", folder)
        (folder / f"{name}.txt").write_text(f"a {name}, glossy", "utf-8")
    with Image.open(folder / "fox.png") as fox:
        fox.convert("RGB").save(folder / "fox_again.jpg", quality=92)
    return "gallery"


@pytest.fixture
def graph(english: Frontend, pictures: str, server: HostServer) -> Iterator[Graph]:
    """A graph that will wait for a choice; whatever a test leaves waiting is cancelled."""
    graph = Graph(english)
    graph.load(curated(pictures, "kept"))
    yield graph
    server.interrupt()
    idle(server)
    graph.keys("Escape", "Escape", "Escape")  # out of a field, the large view, the dialog
    assert graph.dialog.count() == 0
    assert english.own_errors() == []


def idle(server: HostServer) -> None:
    """Until nothing runs or waits for its turn."""
    deadline = time.monotonic() + 240
    while any(server.json("/queue").values()):
        assert time.monotonic() < deadline, "the queue does not get empty"
        time.sleep(0.1)


def saved(server: HostServer) -> dict[str, str]:
    """Name of each picture -> its caption, in the newest saved folder."""
    newest = max(
        (server.base / "output" / "datasets").iterdir(), key=lambda f: f.stat().st_mtime_ns
    )
    return {file.stem: file.read_text("utf-8").strip() for file in newest.glob("*.txt")}


def folders(server: HostServer) -> int:
    return len(list((server.base / "output" / "datasets").iterdir()))


def test_before_a_run_there_is_one_slim_line_and_nothing_to_save(graph: Graph) -> None:
    assert graph.panel.inner_text().strip() == "The gallery appears here."
    kept = graph.frontend.run("id => app.graph.getNodeById(id).serialize()", CURATE)
    queued = graph.frontend.run("async () => (await app.graphToPrompt()).output")
    values = [value for value in queued[CURATE]["inputs"].values() if not isinstance(value, list)]
    assert kept["widgets_values"] == values
    assert "atelier_gallery" not in queued[CURATE]["inputs"]


def test_what_is_chosen_goes_on_and_is_repeated(graph: Graph, server: HostServer) -> None:
    graph.queue()
    graph.wait_open()
    assert graph.dropped() in (["fox"], ["fox_again"]), "the rule's preselection"
    counts = graph.dialog.locator(".counts")
    assert counts.inner_text() == "9 → 8 kept"
    graph.page.wait_for_function(
        """() => [...document.querySelector('.atelier-gallery').shadowRoot
            .querySelectorAll('.cell img')].every(image => image.naturalWidth)"""
    )
    graph.frontend.screenshot("gallery-dark")
    graph.cell("bear").click()
    graph.keys("ArrowRight", "ArrowRight", "x")  # cactus
    assert {"bear", "cactus"} < set(graph.dropped())
    assert counts.inner_text() == "9 → 6 kept"
    graph.keys("ArrowRight", "e")
    graph.page.keyboard.type(", on a beach")
    graph.keys("Escape")
    graph.dialog.locator(".find").fill("beach")
    graph.page.wait_for_timeout(SECONDS // 5)
    assert graph.names() == ["crab"]
    graph.dialog.locator(".find").fill("")
    graph.dialog.locator(".states").select_option("dropped")
    graph.page.wait_for_timeout(SECONDS // 5)
    assert sorted(graph.names()) == graph.dropped() and len(graph.names()) == 3
    graph.dialog.locator(".states").select_option("all")
    graph.proceed()
    idle(server)
    chosen = saved(server)
    assert set(NAMES) - {"bear", "cactus", "fox"} <= set(chosen) and len(chosen) == 6
    assert chosen["crab"] == "a crab, glossy, on a beach"
    assert chosen["lemon"] == "a lemon, glossy"
    after = graph.found()
    assert (after["status"], after["mode"]) == ("done", "use_saved_choice")
    choice = json.loads(after["choice"])
    assert sorted(map(len, (choice["keep"], choice["drop"], choice["captions"]))) == [1, 3, 6]
    assert "6 of 9 kept" in graph.panel.inner_text()
    graph.frontend.screenshot("gallery-panel-done")

    before = folders(server)
    graph.queue()
    idle(server)
    assert folders(server) == before + 1, "it did not wait, and was not served from the cache"
    assert saved(server) == chosen
    assert graph.dialog.count() == 0


def test_selections_tags_groups_and_undo(graph: Graph) -> None:
    graph.queue()
    graph.wait_open()
    assert graph.names()[:4] == ["bear", "bee", "cactus", "crab"]
    graph.keys("Home", "Shift+ArrowRight", "Shift+ArrowRight")
    assert graph.dialog.locator(".cell.selected").count() == 3
    graph.cell("fox").first.click(modifiers=["Control"])
    side = graph.dialog.locator(".side")
    assert "4 selected" in side.inner_text()
    side.locator("form input").fill("animal, round")
    side.locator("button.add").click()
    tag = side.locator(".tag", has_text="animal")
    assert tag.inner_text() in ("animal3", "animal4"), "of the kept ones"
    tag.click()
    graph.page.wait_for_timeout(SECONDS // 5)
    assert graph.names() == ["bear", "bee", "cactus", "fox"]
    graph.keys("Control+a")
    side.locator("form input").fill("GLOSSY")
    side.locator("button.remove").click()
    graph.cell("bee").click(modifiers=["Shift"])
    graph.keys("Home")
    assert side.locator("textarea").input_value() == "a bear, animal, round"
    graph.keys("Control+z")
    assert side.locator("textarea").input_value() == "a bear, glossy, animal, round"
    graph.keys("Control+z")
    assert graph.names() == [], "the tag is nowhere any more"
    graph.keys("Control+y")
    assert len(graph.names()) == 4
    side.locator(".tag[aria-pressed=true]").click()
    graph.dialog.locator(".sorts").select_option("group")
    graph.page.wait_for_timeout(SECONDS // 5)
    assert graph.names()[:2] == ["fox", "fox_again"]
    assert graph.dialog.locator(".cell.grouped").count() == 2
    graph.frontend.screenshot("gallery-groups-dark")
    graph.dialog.locator(".sorts").select_option("sharpness")
    graph.page.wait_for_timeout(SECONDS // 5)
    labels = graph.dialog.locator(".cell").evaluate_all(SHOWN)
    sharp = [float(label.split("·")[0].split()[-1]) for label in labels if "·" in label]
    assert len(sharp) == 9 and sharp == sorted(sharp, reverse=True) and sharp[0] > sharp[-1]
    graph.keys("Escape", "Home", "Enter")  # from the drop-down to the pictures
    large = graph.dialog.locator(".large")
    first = large.locator("b").inner_text()
    graph.keys("ArrowRight", "Space")
    assert large.locator("b").inner_text() != first
    assert "dropped" in large.get_attribute("class") or "by hand" not in large.inner_text()
    graph.frontend.screenshot("gallery-large")
    graph.keys("Escape")
    assert graph.dialog.is_visible() and not large.is_visible()


def test_a_caption_that_leaves_the_filter_while_it_is_typed_stays_the_same_pictures(
    graph: Graph,
) -> None:
    graph.queue()
    graph.wait_open()
    graph.dialog.locator("input.find").fill("a b")
    graph.keys("Escape", "Home", "e")
    assert graph.names() == ["bear", "bee"]
    caption = graph.dialog.locator(".side textarea")
    graph.keys("Control+a", "x", "y", "z")
    assert caption.input_value() == "xyz"
    graph.keys("Escape")
    graph.page.wait_for_timeout(SECONDS // 5)
    assert graph.names() == ["bee"]
    assert caption.input_value() == "a bee, glossy"
    graph.keys("Control+z")
    assert graph.names() == ["bear", "bee"], "all that was typed is one step"


def test_automatic_does_not_show_the_saved_choice(graph: Graph, server: HostServer) -> None:
    graph.queue()
    graph.wait_open()
    graph.cell("lemon").click()
    graph.proceed()
    idle(server)
    graph.look()
    assert "7 of 9 kept" in graph.panel.inner_text()
    graph.frontend.run(
        """id => {
            const { widgets } = app.canvas.graph.getNodeById(id);
            widgets.find(widget => widget.name === 'mode').value = 'automatic';
        }""",
        CURATE,
    )
    graph.queue()
    idle(server)
    graph.page.wait_for_timeout(SECONDS)
    assert "lemon" in saved(server)
    assert "8 of 9 kept" in graph.panel.inner_text()


def test_the_shipped_workflow_waits_and_what_is_chosen_is_saved(
    graph: Graph, server: HostServer, tiny_checkpoint: Path
) -> None:
    """From the template browser on. The tiny model paints noise, of which no two are alike."""
    graph.frontend.open_template("generate_style_dataset")
    (graph.node,) = graph.frontend.run(
        "() => app.graph._nodes.filter(n => n.type === 'AtelierCurateDataset').map(n => `${n.id}`)"
    )
    graph.queue()
    graph.dialog.wait_for(state="visible", timeout=240 * SECONDS)
    graph.page.wait_for_timeout(SECONDS // 2)
    cells = graph.dialog.locator(".cell:not(.dropped)")
    kept = int(graph.dialog.locator(".counts").inner_text().split("→")[1].split()[0])
    cells.first.click()
    assert f"→ {kept - 1} kept" in graph.dialog.locator(".counts").inner_text()
    graph.proceed()
    idle(server)
    chosen = list((server.base / "input/datasets/flatart").glob("*.png"))
    assert len(chosen) == kept - 1
    assert graph.found()["mode"] == "use_saved_choice"


def test_keys_and_undo_of_the_gallery_do_not_reach_the_graph(
    graph: Graph, server: HostServer
) -> None:
    page = graph.page
    graph.frontend.run("id => { app.graph.getNodeById(id).title = 'changed' }", CURATE)
    page.mouse.click(1400, 900)  # ComfyUI takes note of the change
    page.wait_for_timeout(SECONDS // 2)
    graph.queue()
    graph.wait_open()
    before = graph.frontend.run("() => app.graph.serialize().nodes.map(n => [n.id, n.title])")
    prompts = len(server.json("/history"))
    graph.keys("Control+a", "Delete", "Backspace", "Control+z", "Control+Enter", "Control+m", "q")
    graph.dialog.locator("button.keep").focus()
    graph.keys("Control+z", "Tab", "Control+z", "Tab")
    page.wait_for_timeout(SECONDS)
    after = graph.frontend.run("() => app.graph.serialize().nodes.map(n => [n.id, n.title])")
    assert after == before
    assert ["2", "changed"] in [[str(key), title] for key, title in after]
    running, pending = (server.json("/queue")[f"queue_{part}"] for part in ("running", "pending"))
    assert (len(running), pending, len(server.json("/history"))) == (1, [], prompts)
    for _ in range(40):
        graph.keys("Tab")
        focus = page.evaluate("() => document.activeElement?.className")
        assert focus == "atelier-gallery", "the focus stays in the dialog"


def test_a_reload_and_a_closed_dialog_lose_nothing(graph: Graph, server: HostServer) -> None:
    graph.queue()
    graph.wait_open()
    graph.cell("lemon").click()
    graph.keys("Escape")
    assert graph.dialog.count() == 0
    assert "Waiting for you" in graph.panel.inner_text()
    assert "7 of 9 kept" in graph.panel.inner_text()
    graph.frontend.screenshot("gallery-panel-waiting")
    graph.panel.get_by_role("button", name="Open gallery").click()
    assert "lemon" in graph.dropped()
    graph.page.wait_for_timeout(SECONDS)
    graph.page.reload(wait_until="domcontentloaded")
    graph.wait_open()
    assert "lemon" in graph.dropped()
    graph.keys("Escape")
    graph.look()
    graph.panel.get_by_role("button", name="Continue").click()
    idle(server)
    assert "lemon" not in saved(server) and "pizza" in saved(server)
    assert graph.found()["mode"] == "use_saved_choice"


def test_after_the_run_it_is_for_looking_until_edited_again(
    graph: Graph, server: HostServer
) -> None:
    graph.queue()
    graph.wait_open()
    graph.proceed()
    idle(server)
    before = graph.found()["choice"]
    graph.look()
    graph.panel.get_by_role("button", name="Open gallery").click()
    graph.wait_open()
    dropped = graph.dropped()
    graph.cell("whale").click()
    assert graph.dropped() == dropped
    graph.dialog.get_by_role("button", name="Edit again").click()
    graph.cell("whale").click()
    graph.dialog.get_by_role("button", name="Save choice").click()
    assert graph.dialog.count() == 0
    assert graph.found()["choice"] != before
    graph.queue()
    idle(server)
    assert "whale" not in saved(server) and len(saved(server)) == 7


def test_cancel_in_the_gallery_cancels_the_run(graph: Graph, server: HostServer) -> None:
    graph.queue()
    graph.wait_open()
    before = folders(server) if (server.base / "output" / "datasets").exists() else 0
    graph.dialog.get_by_role("button", name="Cancel run").click()
    idle(server)
    graph.page.wait_for_timeout(SECONDS)
    assert (folders(server) if before else 0) == before
    found = graph.found()
    assert (found["status"], found["mode"]) == ("cancelled", "wait_for_me")


def test_it_works_inside_a_subgraph(graph: Graph, server: HostServer) -> None:
    made = graph.frontend.run(
        """id => {
            const node = app.graph.getNodeById(id);
            const { node: outer } = app.graph.convertToSubgraph(new Set([node]));
            return [outer.id, outer.subgraph.nodes[0].id];
        }""",
        CURATE,
    )
    graph.node = ":".join(map(str, made))
    graph.queue()
    graph.wait_open()
    graph.cell("pizza").click()
    graph.proceed()
    idle(server)
    assert "pizza" not in saved(server)
    found = graph.found()
    assert (found["status"], found["mode"]) == ("done", "use_saved_choice")


def test_captions_are_never_taken_for_html(graph: Graph, server: HostServer) -> None:
    folder = server.base / "input" / "sharp_tongue"
    shutil.copytree(server.base / "input" / "gallery", folder)
    evil = "<img src=x onerror=window.caught=1>"
    (folder / "bear.txt").write_text(f"{evil}, bear", "utf-8")
    graph.load(curated("sharp_tongue", "sharp"))
    graph.queue()
    graph.wait_open()
    assert graph.page.evaluate("() => window.caught") is None, "by a text on a node"
    graph.keys("Home", "Enter")
    assert evil in graph.dialog.locator(".large p").inner_text()
    assert graph.dialog.locator(".tag", has_text=evil).count() == 1
    assert graph.page.evaluate("() => window.caught") is None


@pytest.fixture(scope="module")
def many(server: HostServer) -> str:
    """2,000 pictures; small, for what counts here is their number."""
    folder = server.base / "input" / "many"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(MANY):
        cells = noise.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        file = folder / f"{number:04}.png"
        Image.fromarray(cells).resize((64, 64), Image.Resampling.BILINEAR).save(file)
    return "many"


TO_THE_END = """() => {
    const grid = document.querySelector('.atelier-gallery').shadowRoot.querySelector('.grid');
    grid.scrollTop = grid.scrollHeight;
    return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""

ALL_READY = """() => [...document.querySelector('.atelier-gallery').shadowRoot
    .querySelectorAll('.cell')].every(cell => cell.classList.contains('ready'))"""

SCROLL = """async () => {
    const grid = document.querySelector('.atelier-gallery').shadowRoot.querySelector('.grid');
    const times = [];
    let most = 0, last = null;
    grid.scrollTop = 0;
    const end = grid.scrollHeight - grid.clientHeight - 1;
    await new Promise(done => {
        const frame = now => {
            if (last !== null) times.push(now - last);
            last = now;
            most = Math.max(most, grid.querySelectorAll('*').length);
            if (grid.scrollTop >= end) return done();
            grid.scrollTop += 150;
            requestAnimationFrame(frame);
        };
        requestAnimationFrame(frame);
    });
    times.sort((a, b) => a - b);
    const at = share => times[Math.floor((times.length - 1) * share)];
    return { frames: times.length, median: at(0.5), slow: at(0.98), longest: at(1), most };
}"""


def test_two_thousand_pictures_scroll_smoothly(graph: Graph, many: str) -> None:
    graph.load(curated(many, "many", drop_duplicates=False, score="none"))
    asked: list[str] = []
    graph.page.on("request", lambda request: asked.append(request.url))
    graph.queue()
    graph.wait_open()
    assert graph.dialog.locator(".counts").inner_text() == f"{MANY} → {MANY} kept"
    asked.clear()
    graph.frontend.run(TO_THE_END)
    graph.page.wait_for_function(ALL_READY)
    thumbnails = [url for url in asked if "/thumbnails/" in url]
    assert len(thumbnails) < 300, "what is jumped over is not asked for"
    figures = graph.frontend.run(SCROLL)
    assert figures["frames"] > 50
    assert graph.dialog.locator(".cell").count() < 300
    assert figures["most"] < 300 * 8
    assert figures["slow"] < 750, figures
    assert figures["longest"] < 3000, figures  # other tests may hold the processor for a while
    graph.page.wait_for_function(ALL_READY)
    assert graph.names()[-1] == f"{MANY - 1:04}"
    graph.keys("Home")
    graph.dialog.locator(".grid").focus()
    graph.keys("Control+a", "x")
    assert graph.dialog.locator(".counts").inner_text() == f"{MANY} → 0 kept"
    assert graph.dialog.locator("button.continue").is_disabled()
    graph.keys("Control+z")
    assert graph.dialog.locator(".counts").inner_text() == f"{MANY} → {MANY} kept"


@pytest.mark.parametrize(("locale", "palette"), [("en", "light"), ("zh", "dark")])
def test_it_is_legible_in_every_theme_and_language(
    locale: str, palette: str, open_frontend: Open, pictures: str, server: HostServer
) -> None:
    with open_frontend(locale=locale, palette=palette) as frontend:
        graph = Graph(frontend)
        graph.load(curated(pictures, "themes"))
        graph.queue()
        graph.wait_open()
        graph.cell("bee").click()
        graph.keys("Shift+ArrowRight")
        frontend.screenshot(f"gallery-{locale}-{palette}")
        text = graph.dialog.inner_text()
        assert ("Waiting for you" in text) == ("near duplicate of fox" in text) == (locale == "en")
        assert bool(re.search(r"与 fox\S* 近似重复", text)) == (locale == "zh")
        graph.keys("Escape")
        frontend.screenshot(f"gallery-panel-{locale}-{palette}")
        assert frontend.own_errors() == []
        server.interrupt()
        idle(server)


def test_both_languages_have_every_text(english: Frontend) -> None:
    keys = english.run(
        """async () => {
            const { LANGUAGES } = await import('/extensions/lora-atelier/gallery_texts.js');
            return Object.values(LANGUAGES).map(table => Object.keys(table).sort());
        }"""
    )
    assert keys[0] == keys[1] and len(keys[0]) > 50


def test_every_reason_of_the_server_has_its_sentence_in_both_languages(english: Frontend) -> None:
    languages = english.run(
        """async () => {
            const { LANGUAGES } = await import('/extensions/lora-atelier/gallery_texts.js');
            return LANGUAGES;
        }"""
    )
    told = {
        language: {
            name.removeprefix("reason_"): text
            for name, text in table.items()
            if name.startswith("reason_")
        }
        for language, table in languages.items()
    }
    assert told["en"] == {cause.value: text for cause, text in SENTENCES.items()}
    assert told["zh"].keys() == {cause.value for cause in Cause}
    for cause, chinese in told["zh"].items():
        assert places(chinese) == places(told["en"][cause]), cause
        assert HAN.search(chinese), cause
    scores = {score.value for score in Score} - {Score.NONE.value}
    assert all(scores <= table.keys() for table in languages.values())


def test_a_reason_is_told_in_the_language_of_the_reader(english: Frontend) -> None:
    reason = {"cause": "score_rank", "values": {"rank": 3, "count": 9, "score": "sharpness"}}
    said = english.run(
        """async reason => {
            const { reasonText, textsFor } =
                await import('/extensions/lora-atelier/gallery_texts.js');
            return ['en', 'zh'].flatMap(locale =>
                [reason, null].map(which => reasonText(textsFor(locale), which)));
        }""",
        reason,
    )
    assert said == ["rank 3 of 9 by sharpness", "", "清晰度排名 3 / 9", ""]
