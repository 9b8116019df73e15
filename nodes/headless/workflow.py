"""A workflow as the browser saves it -> the prompt that ComfyUI runs.

    prompt = to_prompt(json.loads(path.read_text("utf-8")), object_info)

A saved graph keeps the values of a node's widgets as a bare list, in the order of the node's
inputs; the prompt names them. Follows graphToPrompt of ComfyUI's frontend (1.32); subgraphs and
group nodes, whose values only the browser knows how to gather, are refused. Imports nothing of the
pack: the tools for developers read this file by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

NEVER, BYPASS = 2, 4
"""LiteGraph's modes of a node: muted, and passed by."""

NOTES = ("Note", "MarkdownNote")
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
"""Nodes of the browser alone: one passes a link on, the other holds the value of a widget."""
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
SEEDS = ("seed", "noise_seed")


class WorkflowError(ValueError):
    """A graph that cannot be run here; names the node."""


def is_saved_graph(content: object) -> bool:
    """Whether it is a workflow as the browser saves it, and not a prompt in API format."""
    return isinstance(content, Mapping) and isinstance(content.get("nodes"), list)


def node_types(ui: Mapping[str, Any]) -> set[str]:
    """Of the nodes that a server would know."""
    return {node["type"] for node in ui["nodes"]} - {*NOTES, REROUTE, PRIMITIVE}


def to_prompt(ui: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, Any]:
    """Node id -> {"class_type", "inputs", "_meta"}, as POST /prompt takes it.

    Args:
        ui: the saved graph (nodes and links, version 0.4).
        object_info: the schemas, as GET /object_info gives them.

    Raises:
        WorkflowError: a node this server does not have, a subgraph, or values that do not fit a
            node's widgets.
    """
    groups = {group["id"] for group in ui.get("definitions", {}).get("subgraphs", [])}
    nodes = {node["id"]: node for node in ui["nodes"] if node["type"] not in NOTES}
    links = {link[0]: link for link in ui["links"]}
    prompt: dict[str, Any] = {}
    for node in nodes.values():
        if node.get("mode", 0) in (NEVER, BYPASS) or node["type"] in (REROUTE, PRIMITIVE):
            continue
        if node["type"] in groups or node["type"].startswith(("workflow>", "workflow/")):
            raise WorkflowError(
                f"{_name(node)}: this graph holds a group of nodes in one node. Open it in the "
                "browser and save it by Workflow > Export (API)."
            )
        schema = object_info.get(node["type"])
        if schema is None:
            raise WorkflowError(f"{_name(node)}: this server has no such node.")
        inputs = widget_values(node, schema)
        for slot in node.get("inputs", []):
            source = _source(slot.get("link"), slot["type"], links, nodes)
            if source is not None:
                inputs[slot["name"]] = _value(source, nodes)
        title = node.get("title") or schema["display_name"]
        prompt[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": title},
        }
    return prompt


def widget_values(node: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Input name -> the value in its widget.

    A graph saved after a run holds further values behind these: what a node showed on itself. One
    saved by an older version may lack the last ones, which then are the node's own defaults. Some
    packs save names and values.

    Raises:
        WorkflowError: fewer values than the schema demands.
    """
    names = list(widget_names(schema))
    values = node.get("widgets_values") or []
    if isinstance(values, Mapping):
        return {name: values[name] for name in names if name in values}
    if not {*filter(None, names[len(values) :])} <= schema["input"].get("optional", {}).keys():
        raise WorkflowError(
            f"{_name(node)}: {len(values)} saved values for {len(names)} widgets "
            f"({', '.join(names)}). Save the workflow again with this version."
        )
    return {name: value for name, value in zip(names, values, strict=False) if name}


def widget_names(schema: Mapping[str, Any]) -> Iterator[str]:
    """Names in the order of the saved values; "" for the control below a seed, which is not sent.

    Python does not know the control below a seed: the browser adds it to every INT input called
    seed or noise_seed, unless the schema says otherwise.
    """
    for group in ("required", "optional"):
        for name, definition in schema["input"].get(group, {}).items():
            kind, options = definition[0], definition[1] if len(definition) > 1 else {}
            if options.get("forceInput") or not (isinstance(kind, list | tuple) or kind in WIDGETS):
                continue
            yield name
            if kind == "INT" and options.get("control_after_generate", name in SEEDS):
                yield ""


def _source(
    link: int | None, kind: str, links: Mapping[int, list], nodes: Mapping[int, Any]
) -> list[Any] | None:
    """[node id, output] a link comes from, past reroutes and bypassed nodes; None if nothing
    arrives."""
    while link is not None:
        _, origin, output, *_ = links[link]
        node = nodes[origin]
        mode = node.get("mode", 0)
        if mode == NEVER:
            return None
        if node["type"] == REROUTE:
            link = node["inputs"][0].get("link")
        elif mode == BYPASS:
            link = _bypassed(node, output, kind)
        else:
            return [origin, output]
    return None


def _value(source: list[Any], nodes: Mapping[int, Any]) -> Any:
    """What arrives from there: a link for the server, or the value that a primitive holds."""
    origin, output = source
    if nodes[origin]["type"] == PRIMITIVE:
        return nodes[origin]["widgets_values"][0]
    return [str(origin), output]


def _bypassed(node: Mapping[str, Any], output: int, kind: str) -> int | None:
    """The link into a bypassed node that takes the place of its output: same place, else type."""
    inputs = node.get("inputs", [])
    same_place = inputs[output : output + 1]
    for slot in [*same_place, *inputs]:
        if slot["type"] == kind:
            return slot.get("link")
    return None


def _name(node: Mapping[str, Any]) -> str:
    return f"node {node['id']} ({node['type']})"
