"""The grid in a real server: what it shows, how it goes, and Cancel."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from host import HostServer
from training_graph import LOADER, PROGRESS_TEXT, Prompt, node

GRID = "grid"
LAYER = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k"


@pytest.fixture(autouse=True)
def lora(server: HostServer) -> None:
    put(server, "grid-1")


def put(server: HostServer, name: str) -> None:
    random = np.random.default_rng(1)
    down, up = random.standard_normal((2, 768)), random.standard_normal((320, 2))
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": np.array(2.0)}
    tensors = {f"{LAYER}.{key}": value.astype(np.float32) for key, value in tensors.items()}
    save_file(tensors, server.base / "models/loras" / f"{name}.safetensors")


def graph(steps: int, **changes: Any) -> Prompt:
    """Two pictures with a LoRA, one without."""
    return {
        LOADER: node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors"),
        "preview": node(
            "AtelierPreview",
            **{"prompts": "a fox", "negative": "", "seeds": "1", "width": 64, "height": 64},
            **{"steps": steps, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal"},
            **{"every_n_steps": 200, "every_n_epochs": 0, "base_row": True, "guidance": 0.0},
        ),
        GRID: node(
            "AtelierCompareGrid",
            **{"model": [LOADER, 0], "clip": [LOADER, 1], "vae": [LOADER, 2]},
            preview=["preview", 0],
            **{"lora_files": "grid-*", "strengths": "0.5, 1", "layout": "strengths_across"},
            **{"picture_size": 128, "label_size": 1.0, **changes},
        ),
        "save": node("SaveImage", images=[GRID, 0], filename_prefix="grid"),
    }


def test_the_sheet_is_shown_with_its_graph_and_the_time_that_is_left(server: HostServer) -> None:
    texts: list[str] = []
    values: list[float] = []

    def listen(name: str, data: Any) -> None:
        if name == "binary" and int.from_bytes(data[:4], "big") == PROGRESS_TEXT:
            texts.append(data[8 + int.from_bytes(data[4:8], "big") :].decode())
        if name == "progress" and data["node"] == GRID:
            assert data["max"] == 120
            values.append(data["value"])

    prompt = graph(steps=40)
    result = server.queue(prompt, on_event=listen).check()
    (shown,), (saved,) = (
        [Image.open(io.BytesIO(server.image(r))) for r in result.images(n)] for n in (GRID, "save")
    )
    assert np.array_equal(np.asarray(shown), np.asarray(saved))
    for picture in (shown, saved):
        told = json.loads(picture.info["prompt"])
        assert {k: v["inputs"] for k, v in told.items()} == {k: prompt[k]["inputs"] for k in prompt}
    assert values == sorted(values) and values[-1] == 120
    assert any(re.fullmatch(r"picture [123]/3 · \d+:\d\d left", text) for text in texts)
    assert re.match(r"3 pictures in 0:\d\d on 1 sheet of \d+ × \d+ px$", texts[-1])
    assert GRID in server.queue(prompt).check().cached
    put(server, "grid-2")
    again = server.queue(prompt).check()
    assert GRID not in again.cached and "5 pictures" in again.outputs[GRID]["text"][0]


def test_cancel_stops_between_two_steps_of_the_sampler(server: HostServer) -> None:
    values: list[float] = []

    def cancel(name: str, data: Any) -> None:
        if name == "progress" and data["node"] == GRID:
            values.append(data["value"])
            if data["value"] == 70:
                server.interrupt()

    assert server.queue(graph(steps=50, label_size=1.1), on_event=cancel).status == "interrupted"
    assert 70 <= values[-1] < 90
    assert server.queue(graph(steps=2)).check().images(GRID)  # and the next one is drawn
