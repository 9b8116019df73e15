"""ComfyUI without its server: its packs loaded, its executor at hand, nobody listening on a port.

Nodes still find a ``PromptServer.instance``; what it would send to browsers goes to a function.
ComfyUI's ``main`` must have been imported, which reads the command line and sets its folders.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import execution
import folder_paths
import nodes as host_nodes
from comfy.cli_args import args
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...training.errors import AtelierError

PACK = Path(__file__).resolve().parents[2]
OWN_NODE = "AtelierTrainLoRA"
CATCH = "AtelierHandOver"
"""Only inside this process, and in no menu."""

Hear = Callable[[Any, Any], None]
"""Called with the name of an event and its data."""
Prompt = Mapping[str, Mapping[str, Any]]


class GraphFailed(AtelierError):
    """A graph was refused, or a node of it raised."""


class GraphStopped(Exception):
    """A graph was cancelled."""


class QuietServer(PromptServer):
    """ComfyUI's server as nodes know it, out of reach: nothing is served, nothing piles up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hear: Hear) -> None:
        super().__init__(loop)
        self._hear = hear

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        self._hear(event, data)


def start_host(hear: Hear) -> None:
    """Load the nodes of ComfyUI and of all its packs.

    ComfyUI's own ``start_comfyui`` would also empty the temporary folder and open the database,
    which may be those of a server at work, or of the other processes of a run.
    """
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    QuietServer(loop, hear)
    loop.run_until_complete(_load_packs())
    comfy.utils.set_progress_bar_global_hook(_progress)
    os.makedirs(folder_paths.get_temp_directory(), exist_ok=True)


async def _load_packs() -> None:
    wanted = not args.disable_all_custom_nodes or bool(getattr(args, "whitelist_custom_nodes", ()))
    await host_nodes.init_extra_nodes(
        init_custom_nodes=wanted, init_api_nodes=not args.disable_api_nodes
    )
    if OWN_NODE not in host_nodes.NODE_CLASS_MAPPINGS:  # this folder is not in custom_nodes
        await host_nodes.load_custom_node(str(PACK))


def _progress(
    value: float, total: float, preview: Any, prompt_id: Any = None, node_id: Any = None
) -> None:
    """As main.py's own: the place where long work is cancelled."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    context = get_executing_context()
    node = node_id or (context.node_id if context is not None else None)
    PromptServer.instance.send_sync("progress", {"value": value, "max": total, "node": node})


def run_graph(
    prompt: Prompt, workflow: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Run a prompt in API format with ComfyUI's own executor, as the server does.

    Args:
        workflow: the graph as the browser saves it, for the files that nodes write; None: there is
            none.

    Returns:
        What the output nodes show, by the nodes' ids.

    Raises:
        GraphFailed: it was refused, or a node raised; in ComfyUI's own words.
        GraphStopped: it was cancelled.
    """
    prompt_id = uuid.uuid4().hex
    nodes = {node: dict(content) for node, content in prompt.items()}
    valid, error, outputs, node_errors = asyncio.run(
        execution.validate_prompt(prompt_id, nodes, None)
    )
    if not valid or node_errors:
        raise GraphFailed(_refusal(error if not valid else None, node_errors))
    executor = execution.PromptExecutor(
        PromptServer.instance,
        cache_type=execution.CacheType.CLASSIC,
        cache_args={"lru": 0, "ram": 0, "ram_inactive": 0},  # the last: 0.33
    )
    extra = {} if workflow is None else {"extra_pnginfo": {"workflow": workflow}}
    with in_queue(nodes, prompt_id, extra, outputs):
        executor.execute(nodes, prompt_id, extra, outputs)
    messages = dict(executor.status_messages)
    if "execution_interrupted" in messages:
        raise GraphStopped
    if "execution_success" not in messages:
        raise GraphFailed(_failure(messages.get("execution_error", {})))
    return executor.history_result["outputs"]


@contextmanager
def in_queue(
    nodes: Prompt, prompt_id: str, extra: Mapping[str, Any], outputs: Sequence[str]
) -> Iterator[None]:
    """Where nodes look for the graph they run in, to write it into their pictures."""
    queue = PromptServer.instance.prompt_queue
    queue.put((0, prompt_id, nodes, extra, outputs))
    _, number = queue.get()
    try:
        yield
    finally:
        queue.task_done(number, {}, None)


def models_of(base: Mapping[str, Any]) -> tuple[Any, Any]:
    """MODEL and CLIP that a part of a graph gives.

    Args:
        base: ``{"prompt": nodes, "model": [id, output], "clip": [id, output] or None}``.

    Raises:
        GraphFailed, GraphStopped: as :func:`run_graph`.
    """
    caught: list[tuple[Any, Any]] = []

    class HandOver:
        """Takes two values out of the graph, whatever a version of ComfyUI keeps them in."""

        CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "", "catch", (), True

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"model": ("MODEL",)}, "optional": {"clip": ("CLIP",)}}

        def catch(self, model: Any, clip: Any = None) -> dict[str, Any]:
            caught.append((model, clip))
            return {}

    links = {name: base[name] for name in ("model", "clip")}
    inputs = {name: list(link) for name, link in links.items() if link is not None}
    prompt = {**base["prompt"], CATCH: {"class_type": CATCH, "inputs": inputs}}
    host_nodes.NODE_CLASS_MAPPINGS[CATCH] = HandOver
    try:
        run_graph(prompt)
    finally:
        del host_nodes.NODE_CLASS_MAPPINGS[CATCH]
    return caught[0]


def object_info(types: set[str]) -> dict[str, Any]:
    """Of each type that this ComfyUI has, what :func:`nodes.headless.workflow.to_prompt` asks of
    GET /object_info."""
    known = {name: host_nodes.NODE_CLASS_MAPPINGS.get(name) for name in types}
    titles = host_nodes.NODE_DISPLAY_NAME_MAPPINGS
    return {
        name: {"input": node.INPUT_TYPES(), "display_name": titles.get(name, name)}
        for name, node in known.items()
        if node is not None
    }


def titles(prompt: Prompt) -> dict[str, str]:
    """What a person calls its nodes."""
    names = host_nodes.NODE_DISPLAY_NAME_MAPPINGS
    found = {}
    for node, content in prompt.items():
        kind = content.get("class_type", "")
        found[node] = content.get("_meta", {}).get("title") or names.get(kind, kind)
    return found


def in_words(shown: Mapping[str, Any]) -> str:
    """What an output node shows: texts, and the files it has written."""
    texts = [str(item) for item in shown.get("text", ())]
    lists = [items for items in shown.values() if isinstance(items, list | tuple)]
    files = [i for items in lists for i in items if isinstance(i, Mapping) and "filename" in i]
    places = ["/".join(filter(None, (f.get("subfolder"), f["filename"]))) for f in files]
    return ", ".join([*texts, *places]) or "done"


def _refusal(error: Mapping[str, Any] | None, node_errors: Mapping[str, Any]) -> str:
    lines = ["ComfyUI refuses this graph."]
    if error is not None:
        lines.append(_sentence(error))
    for node, report in node_errors.items():
        for problem in report["errors"]:
            lines.append(f"node {node} ({report['class_type']}): {_sentence(problem)}")
    return "\n".join(lines)


def _sentence(error: Mapping[str, Any]) -> str:
    return ": ".join(part for part in (error.get("message"), error.get("details")) if part)


def _failure(error: Mapping[str, Any]) -> str:
    if not error:
        return "ComfyUI did not run this graph to its end, and did not say why."
    kind = error["exception_type"].rpartition(".")[2]
    what = f"{kind}: {error['exception_message'].strip()}"
    return f"node {error['node_id']} ({error['node_type']}): {what}"
