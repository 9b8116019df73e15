"""A model of the graph as it will be when it is loaded, without loading it: shapes without numbers
take the place of its tensors, see :mod:`training.memory.rehearsal`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..base_model.frozen import Weights
from ..memory.allocations import Allocations
from ..memory.rehearsal import SHAPES
from ..network.adapters.base import weight_shape
from .lent_weights import copies_made

_OF_TORCH = frozenset(vars(nn.Module()))
"""What every module has."""


@contextmanager
def as_shapes(model: nn.Module) -> Iterator[None]:
    """Put shapes in place of embeddings and buffers; afterwards all is as it was.

    Also what the model kept from the calls in here, in its attributes or in the caches of its
    methods, is forgotten: those tensors have no numbers.
    """
    with ExitStack() as undo:
        for module in model.modules():
            undo.callback(_put_back, module, dict(vars(module)), _contents(module))
            undo.enter_context(_replaced(module))
        try:
            yield
        finally:
            for kind in {kind for module in model.modules() for kind in type(module).__mro__}:
                for method in vars(kind).values():
                    cached = getattr(method, "__func__", method)  # inside a staticmethod
                    if hasattr(cached, "cache_clear"):
                        cached.cache_clear()


def lend_shapes(memory: Allocations) -> Weights:
    """As :func:`training.host.lent_weights.lend_weights`, but weights without numbers.

    Args:
        memory: counts those for which the host makes a copy at every use.
    """

    loaded: dict[tuple[nn.Module, torch.dtype], tuple[Tensor, Tensor | None]] = {}

    @contextmanager
    def lend(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        key = (layer, like.dtype)
        if copies := copies_made(layer, like):
            held = [_shapes(layer, like) for _ in range(copies)]
            yield held[0]
        else:
            if key not in loaded:
                with memory.uncounted():
                    loaded[key] = _shapes(layer, like)
            yield loaded[key]

    return lend


def _shapes(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
    shape = weight_shape(layer)
    return like.new_empty(shape), None if layer.bias is None else like.new_empty(shape[0])


def _contents(module: nn.Module) -> list[tuple[dict | list, dict | list]]:
    """(dict or list that a module keeps for itself, copy of what is in it)."""
    own = {n: v for n, v in vars(module).items() if n not in _OF_TORCH}
    return [(value, value.copy()) for value in own.values() if type(value) in (dict, list)]


def _put_back(module: nn.Module, attributes: dict, contents: list) -> None:
    vars(module).clear()
    vars(module).update(attributes)
    for kept, before in contents:
        kept.clear()
        kept.update(before) if isinstance(kept, dict) else kept.extend(before)


@contextmanager
def _replaced(module: nn.Module) -> Iterator[None]:
    parameters, buffers = dict(module._parameters), dict(module._buffers)
    try:
        if isinstance(module, nn.Embedding):
            weight = torch.empty_like(module.weight.data, device=SHAPES)
            module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        for name, buffer in buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=SHAPES)
        yield
    finally:
        module._parameters.update(parameters)
        module._buffers.update(buffers)
