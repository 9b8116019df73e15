"""ComfyUI's own frontend in a browser page, as far as the tests handle it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image

from host import PACK_NAME, HostServer

SCREENSHOTS = Path(__file__).resolve().parents[1] / ".work" / "screenshots"
WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
WORKFLOW = WORKFLOWS / "style_lora.json"
READY = """() => window.app?.extensionManager && window.app.graph
    && LiteGraph.registered_node_types['AtelierTrainLoRA']
    && !document.querySelector('#vue-app .p-progressspinner')"""
SECONDS = 1000


class Frontend:
    """One window. Only what the server itself offers can be reached from it."""

    def __init__(self, page: Any, server: HostServer, locale: str, palette: str) -> None:
        self.page = page
        self.server = server
        self.errors: list[str] = []
        self._set("Comfy.TutorialCompleted", True)
        self._set("Comfy.Locale", locale)
        self._set("Comfy.ColorPalette", palette)
        page.route("**/*", self._only_own)
        page.on("pageerror", lambda error: self.errors.append(f"{error}\n{error.stack}"))
        page.on("console", self._listen)
        page.goto(server.url, wait_until="domcontentloaded")
        page.wait_for_function(READY, timeout=240 * SECONDS)
        page.wait_for_timeout(SECONDS)
        self._close_banner()

    def _set(self, name: str, value: Any) -> None:
        request = urllib.request.Request(
            f"{self.server.url}/api/settings/{name}", json.dumps(value).encode(), method="POST"
        )
        request.add_header("Content-Type", "application/json")
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()

    def _only_own(self, route: Any) -> None:
        own = (self.server.url, "data:", "blob:")
        route.continue_() if route.request.url.startswith(own) else route.abort()

    def _listen(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} at {message.location.get('url', '')}")

    def _close_banner(self) -> None:
        """The advertisement of another node design, which hides the tabs."""
        banner = self.page.locator("div:has(> div > button:text-matches('Try it out|试试看'))").last
        if banner.count():
            banner.locator("button").last.click()

    def own_errors(self) -> list[str]:
        """Errors on the console that name the pack, its files or its nodes."""
        # The frontend asks the registry on the web about every pack it sees, and is not let out.
        own = (PACK_NAME, "Atelier", "atelier")
        return [e for e in self.errors if any(w in e for w in own) and "api.comfy.org" not in e]

    def run(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def open_workflow(self, name: str = WORKFLOW.stem) -> None:
        """Load a workflow afresh, as opening its file does."""
        ui = json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))
        script = "async ([ui, name]) => { await app.loadGraphData(ui, true, true, name) }"
        self.run(script, [ui, name])
        self.page.wait_for_timeout(SECONDS)

    def open_template(self, name: str) -> None:
        """Through the template browser, whose picture of it must have come."""
        card = f'[data-testid="template-workflow-{name}"]'
        count = len(json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))["nodes"])
        with Image.open(WORKFLOWS / f"{name}.jpg") as picture:
            width = picture.width
        self.run("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.page.locator("[role=dialog]").get_by_text(PACK_NAME).first.click()
        self.page.locator(card).first.locator("img").first.wait_for(timeout=240 * SECONDS)
        self.page.wait_for_function(
            "([card, width]) => document.querySelector(`${card} img`)?.naturalWidth === width",
            arg=[card, width],
        )
        self.screenshot("template-browser")
        self.page.locator(card).first.click()
        self.page.wait_for_function("count => app.graph._nodes.length === count", arg=count)
        self.page.locator("[role=dialog]").wait_for(state="detached", timeout=60 * SECONDS)

    def open_nodes(self, types: list[str], left: int = 150) -> None:
        """An empty graph with one node of each type.

        Args:
            left: how far from the left edge; the help covers what lies there.
        """
        self.run(
            """([types, left]) => {
                app.graph.clear();
                app.canvas.ds.scale = 0.64;
                app.canvas.ds.offset = [left, 200];
                types.forEach((type, place) => {
                    const node = LiteGraph.createNode(type);
                    node.pos = [(place % 7) * 380, Math.floor(place / 7) * 540];
                    app.graph.add(node);
                });
            }""",
            [types, left],
        )
        self.page.wait_for_timeout(SECONDS)

    def screenshot(self, name: str) -> None:
        """An artefact for people to judge."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.run("() => app.canvas.setDirty(true, true)")
        self.page.wait_for_timeout(SECONDS // 2)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")

    def help_page(self, node_type: str) -> str:
        """The text that opens for a node of the graph, through the button above it."""
        self.run(
            """type => {
                app.canvas.deselectAll();
                app.canvas.selectNode(app.graph._nodes.find(node => node.type === type));
            }""",
            node_type,
        )
        self.page.locator('[data-testid="info-button"]').first.click()
        content = self.page.locator(".node-help-content .markdown-content")
        content.locator("h1").wait_for(timeout=60 * SECONDS)
        self.page.wait_for_timeout(SECONDS // 2)
        return content.inner_text()

    def search(self, text: str) -> list[str]:
        """Titles of the pack's nodes that the search box offers, opened by a double click."""
        self.run("() => app.graph.clear()")
        older, newer = (
            "[id^='comfy-vue-node-search-box-input']",
            "[role=search] input[role=combobox]",
        )
        box = self.page.locator(f"{older}, {newer}")
        for _ in range(3):  # just after the box was closed, a double click may only focus
            self.page.mouse.dblclick(1100, 600)
            self.page.wait_for_timeout(SECONDS)
            if box.is_visible():
                break
        box.fill(text)
        self.page.wait_for_timeout(SECONDS)
        rows = self.page.locator("[role=option]").all_inner_texts()
        while box.is_visible():  # the first one closes the list below it
            self.page.keyboard.press("Escape")
            self.page.wait_for_timeout(SECONDS // 2)
        own = [row.replace("\xa0", " ") for row in rows if PACK_NAME in row]
        return [row.splitlines()[0].strip() for row in own]
