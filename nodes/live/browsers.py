"""The browsers that look at a running node: told of it, and looked for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...training.host.settings import may_tell_graph

GRACE_SECONDS = 20.0
"""How long nobody may be there: a page that is loaded anew is away for a moment."""


class HasId(Protocol):
    id: str


Item = TypeVar("Item", bound=HasId)


class Newest(Generic[Item]):
    """What this process keeps for the browser to ask for by its id; the oldest are forgotten."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._items: dict[str, Item] = {}
        self._lock = threading.Lock()

    def add(self, item: Item) -> None:
        with self._lock:
            self._items[item.id] = item
            while len(self._items) > self.limit:
                del self._items[next(iter(self._items))]

    def get(self, item_id: str) -> Item | None:
        with self._lock:
            return self._items.get(item_id)

    def newest_first(self) -> list[Item]:
        with self._lock:
            return list(reversed(self._items.values()))


class RunningNode(NamedTuple):
    """Where work belongs; empty texts outside a graph."""

    node: str = ""
    """Its id; "12:7" is node 7 in the subgraph node 12."""
    prompt: str = ""
    workflow: str = ""
    """The id of the graph that it was queued from; empty when a program queued it."""


def running_node() -> RunningNode:
    """The node that is running in this thread."""
    context = get_executing_context()
    if context is None:
        return RunningNode()
    return RunningNode(context.node_id, context.prompt_id, _workflow(context.prompt_id))


def running_graph() -> dict[str, str]:
    """The graph of the node that is running in this thread, in the texts that SaveImage puts into
    pictures: dropped on the canvas, they bring it back. Empty outside a graph, and where ComfyUI is
    told to keep the graph to itself."""
    context = get_executing_context()
    queued = None if context is None else _queued(context.prompt_id)
    if queued is None or not may_tell_graph():
        return {}
    prompt, told = queued
    return {name: json.dumps(value) for name, value in {"prompt": prompt, **told}.items()}


def tell(event: str, report: dict[str, Any]) -> None:
    """To every browser: a second tab follows, too."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.send_sync(event, report)


class Audience:
    """Whether somebody can see what the running node shows, and answer."""

    def __init__(self, grace: float = GRACE_SECONDS) -> None:
        self.grace = grace
        self._seen = time.monotonic()

    def there(self) -> bool:
        """False at once when a program queued the prompt that said nothing of a browser, and some
        seconds after the last browser is gone."""
        server = getattr(PromptServer, "instance", None)
        if server is None or server.client_id is None:
            return False
        if server.sockets:
            self._seen = time.monotonic()
        return time.monotonic() - self._seen < self.grace


def _workflow(prompt: str) -> str:
    queued = _queued(prompt)
    workflow = None if queued is None else queued[1].get("workflow")
    return str(workflow.get("id") or "") if isinstance(workflow, dict) else ""


def _queued(prompt: str) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """What is running under that id: the graph in API format, and what the browser sent with it for
    the headers of pictures."""
    server = getattr(PromptServer, "instance", None)
    if server is None or not prompt:
        return None
    for item in server.prompt_queue.get_current_queue()[0]:
        if item[1] == prompt:
            told = item[3].get("extra_pnginfo")
            return item[2], told if isinstance(told, dict) else {}
    return None
