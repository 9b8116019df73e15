"""Nested lists and dicts of tensors and plain values, as a file of named tensors can hold them."""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

PLAIN = (str, int, float, bool, type(None))


class NotATree(Exception):
    """Something inside is neither tensor nor plain value."""


def take_apart(tree: Any) -> tuple[dict[str, Tensor], str]:
    """(tensors by name, JSON of everything else).

    Raises:
        NotATree: names the kind of value that cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, json.dumps(_form(tree, tensors))


def put_together(tensors: Mapping[str, Tensor], form: str) -> Any:
    """What :func:`take_apart` was given."""
    return _value(json.loads(form), tensors)


def _form(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A plain value stays; every other becomes ``[kind, content]``."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return ["tensor", name]
    if type(value) in (list, tuple):
        return [type(value).__name__, [_form(item, tensors) for item in value]]
    if type(value) is dict and all(type(key) is str for key in value):
        return ["dict", {key: _form(item, tensors) for key, item in value.items()}]
    if type(value) in (dict, OrderedDict, defaultdict) and all(type(k) in PLAIN for k in value):
        return ["items", [[key, _form(item, tensors)] for key, item in value.items()]]
    raise NotATree(type(value).__name__)


def _value(form: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(form, list):
        return form
    kind, content = form
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _value(item, tensors) for key, item in content.items()}
    if kind == "items":  # keys that are no texts, such as the numbers of an optimizer's parameters
        return {key: _value(item, tensors) for key, item in content}
    items = [_value(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
