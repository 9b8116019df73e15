"""What a graph in API format tells of where a value comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL_SUFFIXES = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin")


def base_model_file(graph: Mapping[str, Any] | None, node_id: str | None) -> str:
    """Name of the file that a node's MODEL was loaded from; "" when the graph does not tell.

    Follows the wires called ``model`` to the loader, past LoRAs and patches.
    """
    node = (graph or {}).get(node_id or "")
    found, seen = "", set()
    while node is not None:
        inputs = node.get("inputs", {})
        link = inputs.get("model")
        if not isinstance(link, list):
            files = [v for v in inputs.values() if isinstance(v, str)]
            found = next((v for v in files if v.lower().endswith(MODEL_SUFFIXES)), "")
            break
        if link[0] in seen:
            break
        seen.add(link[0])
        node = graph.get(link[0])
    return found
