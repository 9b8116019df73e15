"""Pictures carry the graph of the node that made them, unless ComfyUI is told to keep it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import pytest
import torch
from comfy.cli_args import args
from comfy_api.latest import io
from comfy_execution.utils import CurrentNodeContext
from execution import PromptQueue
from PIL import Image
from server import PromptServer

from hidden_inputs import prepared
from lora_atelier.nodes.headless.host import in_queue
from lora_atelier.nodes.live.browsers import running_graph
from lora_atelier.nodes.results.loss_chart import LossChart

GRAPH = {"3": {"class_type": "AtelierTrainLoRA", "inputs": {}}}
WORKFLOW = {"nodes": [{"id": 3, "title": "训练"}]}


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[PromptQueue]:
    """The host's queue, of which one prompt runs and one waits."""
    server = SimpleNamespace(queue_updated=lambda: None)
    server.prompt_queue = queue = PromptQueue(server)
    monkeypatch.setattr(PromptServer, "instance", server, raising=False)
    queue.put((0, "runs", GRAPH, {"extra_pnginfo": {"workflow": WORKFLOW}}, []))
    queue.put((1, "waits", {"4": {}}, {"extra_pnginfo": None}, []))
    queue.get()
    yield queue


def test_it_is_that_of_the_prompt_that_runs(running: PromptQueue) -> None:
    with CurrentNodeContext("runs", "3"):
        texts = running_graph()
    assert {name: json.loads(text) for name, text in texts.items()} == {
        "prompt": GRAPH,
        "workflow": WORKFLOW,
    }
    assert all(text.isascii() for text in texts.values())  # as PNG's plain texts must be
    with CurrentNodeContext("waits", "4"):
        assert running_graph() == {}
    assert running_graph() == {}


def test_it_is_told_without_a_server_too(running: PromptQueue) -> None:
    told = {"extra_pnginfo": {"workflow": WORKFLOW}}
    with in_queue({"5": {}}, "headless", told, []), CurrentNodeContext("headless", "5"):
        assert json.loads(running_graph()["workflow"]) == WORKFLOW
        assert running_graph()["prompt"] == '{"5": {}}'
    with CurrentNodeContext("headless", "5"):
        assert running_graph() == {}


def test_what_a_program_queued_is_told_without_a_workflow(running: PromptQueue) -> None:
    running.get()
    with CurrentNodeContext("waits", "4"):
        assert running_graph() == {"prompt": '{"4": {}}'}


def test_it_stays_out_of_pictures_when_comfyui_is_told_so(
    running: PromptQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(args, "disable_metadata", True)
    with CurrentNodeContext("runs", "3"):
        assert running_graph() == {}


@pytest.mark.parametrize("disabled", [False, True])
def test_the_loss_chart_on_the_node_carries_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disabled: bool
) -> None:
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    monkeypatch.setattr(args, "disable_metadata", disabled)
    hidden: dict[Any, Any] = {
        io.Hidden.prompt: GRAPH,
        io.Hidden.extra_pnginfo: {"workflow": WORKFLOW},
    }
    with torch.inference_mode():
        shown = prepared(LossChart, hidden).execute({"loss": [0.3, 0.2, 0.1]}, "").ui
    with Image.open(tmp_path / shown["images"][0]["filename"]) as picture:
        told = {name: json.loads(text) for name, text in picture.info.items()}
    assert told == ({} if disabled else {"prompt": GRAPH, "workflow": WORKFLOW})
