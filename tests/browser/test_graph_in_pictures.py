"""Pictures of the pack carry the graph: dropped on the canvas, they bring its nodes back."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from frontend import SECONDS, Frontend
from training_graph import TRAIN, Prompt, node, training

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHART, PREVIEW = "20", "21"
DROP = """([name, data]) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, { type: 'image/png' }));
    app.canvas.canvas.dispatchEvent(new DragEvent(
        'drop',
        { dataTransfer: transfer, bubbles: true, cancelable: true, clientX: 900, clientY: 500 },
    ));
}"""
TYPES = "() => app.graph._nodes.map(node => node.type).sort()"


def graph() -> Prompt:
    prompt = training("glossy", steps=2)
    prompt[PREVIEW] = node(
        "AtelierPreview",
        **{"prompts": "a fox", "negative": "", "seeds": "1", "width": 64, "height": 64},
        **{"steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"},
        **{"every_n_steps": 2, "every_n_epochs": 0, "base_row": False, "guidance": 0.0},
    )
    prompt[TRAIN]["inputs"]["preview"] = [PREVIEW, 0]
    prompt[CHART] = node("AtelierLossChart", loss_map=[TRAIN, 4], title="")
    return prompt


@pytest.fixture(scope="module")
def base(english: Frontend) -> Path:
    """ComfyUI's folders after the graph has run, queued from the browser."""
    english.run("prompt => app.loadApiJson(prompt, 'shown')", graph())
    english.page.wait_for_timeout(SECONDS)
    english.run("() => app.queuePrompt(0)")
    english.page.wait_for_function(
        "id => (app.graph.getNodeById(id).imgs ?? []).length === 1",
        arg=CHART,
        timeout=240 * SECONDS,
    )
    return english.server.base


def newest(base: Path, pattern: str) -> Path:
    return max(base.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize(
    "pattern",
    [
        "temp/ComfyUI_temp_*.png",
        "output/atelier/runs/glossy-*/previews/step*.png",
        "output/atelier/runs/glossy-*/previews.png",
    ],
    ids=["loss chart", "preview", "contact sheet"],
)
def test_a_picture_dropped_on_the_canvas_brings_the_graph_back(
    english: Frontend, base: Path, pattern: str
) -> None:
    file = newest(base, pattern)
    expected = sorted(part["class_type"] for part in graph().values())
    with Image.open(file) as picture:
        told: dict[str, Any] = {
            name: json.loads(picture.info[name]) for name in ("prompt", "workflow")
        }
    assert sorted(part["class_type"] for part in told["prompt"].values()) == expected
    assert sorted(part["type"] for part in told["workflow"]["nodes"]) == expected
    english.run("() => app.graph.clear()")
    assert english.run(TYPES) == []
    english.run(DROP, [file.name, base64.b64encode(file.read_bytes()).decode()])
    english.page.wait_for_function("() => app.graph._nodes.length > 0", timeout=60 * SECONDS)
    assert english.run(TYPES) == expected
    assert english.own_errors() == []
