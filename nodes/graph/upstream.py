"""What a file can tell of the graph it was made with: the graph itself, and widgets before a node.

A node that wants it has the hidden inputs prompt, extra_pnginfo and unique_id.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths

from ...training.host.progress import HostProgress
from ...training.host.settings import may_tell_graph
from ...training.results.known_hashes import KnownHashes
from ...training.results.safetensors_hashes import legacy_hash_of_file
from ..live.progress import show_text
from .outputs import cache_folder

BASE_FILES = {"ckpt_name": "checkpoints", "unet_name": "diffusion_models"}
"""Widgets of the loaders in which the base model's file stands -> the host's folder for it."""

PICTURES = ("preview",)
"""Inputs of the node itself that say nothing of the training: another base may have made them."""


FROM_FILE = ("AtelierLoadLoRA",)
"""Nodes whose wires tell nothing of how the LoRA was made: its file does."""


class Found(NamedTuple):
    """A widget and what it is set to."""

    widget: str
    value: str


def nearest(prompt: Mapping[str, Any], node_id: str, widgets: Collection[str]) -> Found | None:
    """The first text that is not empty, in one of these widgets, on the way back from a node.

    Args:
        prompt: the graph in API format.
        node_id: where to begin; the node itself is not looked at.
    """
    waiting, seen = deque([node_id]), {node_id}
    while waiting:
        current = waiting.popleft()
        if current != node_id and prompt.get(current, {}).get("class_type") in FROM_FILE:
            continue
        inputs = prompt.get(current, {}).get("inputs", {})
        for name in widgets if current != node_id else ():
            if isinstance(inputs.get(name), str) and inputs[name].strip():
                return Found(name, inputs[name].strip())
        for name, value in inputs.items():
            if current == node_id and name in PICTURES:
                continue
            if isinstance(value, list) and len(value) == 2 and str(value[0]) not in seen:
                seen.add(str(value[0]))
                waiting.append(str(value[0]))
    return None


def graph_metadata(hidden: Any) -> dict[str, str]:
    """The base model's file with its hashes, as sd-scripts writes them (train_network.py), and the
    graph unless ComfyUI is told to keep it to itself.

    Args:
        hidden: the node's hidden inputs; None when it does not run in a graph.
    """
    prompt = getattr(hidden, "prompt", None) or {}
    known = {}
    found = nearest(prompt, str(getattr(hidden, "unique_id", "")), BASE_FILES)
    if found is not None:
        known["ss_sd_model_name"] = Path(found.value).name
        file = folder_paths.get_full_path(BASE_FILES[found.widget], found.value)
        if file is not None:
            known["ss_sd_model_hash"] = legacy_hash_of_file(Path(file))
            known["ss_new_sd_model_hash"] = _sha256(Path(file))
    if prompt and may_tell_graph():
        known["prompt"] = json.dumps(prompt)
        extra = getattr(hidden, "extra_pnginfo", None) or {}
        known |= {name: json.dumps(value) for name, value in extra.items()}
    return known


def _sha256(file: Path) -> str:
    """Read once at the speed of the disk: half a minute for 12 GB, then kept. A node that is
    cancelled meanwhile stops."""
    size = file.stat().st_size
    bar = HostProgress(max(size, 1))

    def read(count: int) -> None:
        bar.update(count)
        show_text(f"hash of {file.name}: {count / 1e9:.1f} of {size / 1e9:.1f} GB")

    return KnownHashes(cache_folder() / "hashes").sha256(file, read)
