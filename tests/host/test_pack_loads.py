"""The pack inside ComfyUI: it loads fast and light, and every node explains itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bootstrap import comfyui_path
from host import PACK_NAME, HostServer

ROOT = Path(__file__).resolve().parents[2]
NODE_IDS = {
    "AtelierLoadDataset",
    "AtelierDatasetFromImages",
    "AtelierFitImages",
    "AtelierCombineDatasets",
    "AtelierSaveDataset",
    "AtelierNetwork",
    "AtelierOptimizer",
    "AtelierScheduler",
    "AtelierTrainLoRA",
    "AtelierSaveLoRA",
    "AtelierLossChart",
}
HEAVY = {
    "accelerate",
    "bitsandbytes",
    "diffusers",
    "lycoris",
    "matplotlib",
    "onnxruntime",
    "peft",
    "pytorch_optimizer",
    "scipy",
    "transformers",
}


MOST_OF_COMFYUI = 1 / 15
"""Of the time that ComfyUI takes for its own modules."""


@pytest.fixture(scope="module")
def schemas(server: HostServer) -> dict[str, Any]:
    """What /object_info says of the pack's nodes, by node id."""
    module = f"custom_nodes.{PACK_NAME}"
    found = server.object_info().items()
    return {name: info for name, info in found if info["python_module"] == module}


def _inputs(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for group in ("required", "optional"):
        for name, definition in schema["input"].get(group, {}).items():
            yield name, definition[1] if len(definition) > 1 else {}


def test_every_node_is_there(schemas: dict[str, Any]) -> None:
    assert set(schemas) >= NODE_IDS
    assert all(name.startswith("Atelier") for name in schemas)


def test_every_node_says_what_it_does_and_where_it_belongs(schemas: dict[str, Any]) -> None:
    assert [name for name, schema in schemas.items() if not schema["description"].strip()] == []
    places = {name: schema["category"] for name, schema in schemas.items()}
    wrong = {n: c for n, c in places.items() if f"{c}/".find("training/atelier/") != 0}
    assert wrong == {}


def test_what_is_there_to_be_looked_at_runs_with_nothing_wired_to_it(
    schemas: dict[str, Any],
) -> None:
    """Else a graph that only wants to read a file would have no output."""
    looked_at = ("AtelierDatasetReport", "AtelierLoadLoRA", "AtelierLossChart")
    assert [name for name in looked_at if not schemas[name]["output_node"]] == []


def test_every_input_has_a_tooltip(schemas: dict[str, Any]) -> None:
    silent = [
        f"{name}.{input_name}"
        for name, schema in schemas.items()
        for input_name, options in _inputs(schema)
        if not str(options.get("tooltip") or "").strip()
    ]
    assert silent == []


LOADING = """
import asyncio, importlib.util, json, sys, time

comfyui, root = sys.argv[1], sys.argv[2]
sys.argv = sys.argv[:1]
sys.path.insert(0, comfyui)
began = time.process_time()
from comfy.cli_args import args
args.cpu = True
# What ComfyUI itself loads before a pack is not the pack's doing. The order is main.py's.
import utils.extra_config, server, nodes, comfy_api.latest
before, alone = set(sys.modules), time.process_time()
spec = importlib.util.spec_from_file_location(
    "pack", root + "/__init__.py", submodule_search_locations=[root]
)
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
extension = asyncio.run(pack.comfy_entrypoint())
count = len([node.GET_SCHEMA() for node in asyncio.run(extension.get_node_list())])
assert count > 0
packages = sorted({name.split(".")[0] for name in set(sys.modules) - before})
seconds = {"comfyui": alone - began, "pack": time.process_time() - alone}
sys.stdout.write(json.dumps({"packages": packages, "seconds": seconds}))
"""


def loading(folder: Path) -> dict[str, Any]:
    """What the import of the pack, in a process of its own after ComfyUI's modules, brings and
    takes (CPU seconds)."""
    command = [sys.executable, "-I", "-c", LOADING, str(comfyui_path()), str(ROOT)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_loading_the_pack_imports_no_heavy_library_and_takes_little_of_the_start_up(
    tmp_path: Path,
) -> None:
    """0.2 s on a desktop of today, whose ComfyUI needs some 3 s for its own modules. The first
    time may have to compile."""
    shares = []
    for _ in range(3):
        found = loading(tmp_path)
        assert HEAVY.isdisjoint(found["packages"])
        shares.append(found["seconds"]["pack"] / found["seconds"]["comfyui"])
        if shares[-1] < MOST_OF_COMFYUI:
            break
    assert min(shares) < MOST_OF_COMFYUI, shares
