"""The part of a graph that loads the base model of a state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from comfy_execution.graph_utils import is_link

from ...training.errors import AtelierError, require

BEGIN = (
    *("AtelierStartTraining", "AtelierTrainLoRA"),
    *("AtelierLoadState", "AtelierLoadJob"),
)
"""Nodes that make a state from their inputs model and clip."""

TRAIN = (*BEGIN, "AtelierTrainSteps", "TrainLoraNode")
"""Nodes whose MODEL no other machine could make without training first; the last is ComfyUI's."""

KEPT = ("class_type", "inputs", "_meta")
"""Of a node; the host puts notes of its own beside them, some of which are no JSON."""

Prompt = Mapping[str, Mapping[str, Any]]


def base_of_state(prompt: Prompt, node_id: str) -> dict[str, Any]:
    """As :attr:`training.jobs.job_folder.Job.base_prompt`, for the input ``state`` of a node.

    Args:
        prompt: the graph in API format.
        node_id: of the node whose state it is.

    Raises:
        AtelierError: the graph does not tell where the base comes from, or it is trained there.
    """
    begun = set(_beginnings(prompt, node_id))
    models = {(_link(prompt, n, "model"), _link(prompt, n, "clip")) for n in begun}
    require(
        len(models) > 0,
        "state: the graph does not tell which node began it. Wire it from Start Training, Train "
        "Steps, Train LoRA, Load Training State or Load Training Job.",
    )
    require(
        len(models) == 1,
        f"state: it may come from any of {len(begun)} nodes that work with different models, and "
        "a job holds one. Wire it without the switch between them.",
    )
    ((model, clip),) = models
    if model is None:
        raise AtelierError(f"model: node {min(begun)}, which began the state, has none wired.")
    ends = [link for link in (model, clip) if link is not None]
    nodes = sorted({node for link in ends for node in _upstream(prompt, link[0])})
    for node in nodes:
        kind = prompt[node].get("class_type")
        if kind in TRAIN:
            raise AtelierError(
                f"model: it comes from {kind} (node {node}), which the job would have to repeat "
                "before it begins. Save that LoRA, load it with LoraLoader in its place, and "
                "train on that."
            )
    kept = {node: {k: v for k, v in prompt[node].items() if k in KEPT} for node in nodes}
    return {"prompt": kept, "model": list(model), "clip": None if clip is None else list(clip)}


def _beginnings(prompt: Prompt, node_id: str) -> Iterator[str]:
    """The nodes in which the state of a node may have begun, past those that pass it on."""
    waiting, seen = [node_id], set()
    while waiting:
        current = waiting.pop()
        if current in seen or current not in prompt:
            continue
        seen.add(current)
        if prompt[current].get("class_type") in BEGIN:
            yield current
            continue
        inputs = prompt[current].get("inputs", {})
        links = [inputs["state"]] if is_link(inputs.get("state")) else inputs.values()
        waiting += [str(link[0]) for link in links if is_link(link)]


def _link(prompt: Prompt, node: str, name: str) -> tuple[str, int] | None:
    """Where an input comes from; None: it is not wired."""
    link = prompt[node]["inputs"].get(name)
    return (str(link[0]), link[1]) if is_link(link) else None


def _upstream(prompt: Prompt, node_id: str) -> set[str]:
    """A node and all that its inputs come from.

    Raises:
        AtelierError: the graph lacks one of them, as where nodes were made while it ran.
    """
    waiting, seen = [node_id], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        require(
            current in prompt,
            f"model: it comes from a node ({current}) that was made while the graph ran, so no "
            "job can load it again. Load the base model with nodes of the graph itself.",
        )
        seen.add(current)
        inputs = prompt[current].get("inputs", {}).values()
        waiting += [str(link[0]) for link in inputs if is_link(link)]
    return seen
