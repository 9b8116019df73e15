"""Gradient checkpointing: what a block saved for backward is forgotten, and computed again there.

Only the arguments of a block stay in memory between forward and backward, at the price of a second
forward pass. Source: Chen et al. 2016, arXiv:1604.06174. ``torch.utils.checkpoint`` is not used:
where a block writes in place to what backward needs, as ComfyUI's blocks may, it gives wrong
gradients without a word; and it forgets the random stream of a GPU whose tensors are passed by
keyword.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ..errors import AtelierError, require
from ..random_streams import Streams, global_streams, rewound
from .blocks import Manner

_DIFFERS = (
    "gradient_checkpointing is on, but a block of the model computes something else the second "
    "time, as with a patch that changes from call to call. Switch it off, or remove the patch."
)


def checkpointing(device: torch.device) -> Manner:
    """The manner of calling a block that computes it again in backward.

    Args:
        device: from whose random stream blocks draw, besides the CPU's.
    """
    return partial(checkpointed, global_streams(device))


def checkpointed(
    streams: Streams, forward: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """``forward(*args, **kwargs)``, of which autograd keeps nothing but the arguments.

    Tensors are handed on as copies, so that ``forward`` may write to them. Dicts and lists are the
    caller's own, who may look for what is written there; the second pass gets them as they are now.
    """
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    again = partial(_call, forward, _rebuilt(args, _same, copy.copy), _of(kwargs, _same, copy.copy))
    replay = _Replay(again, [*_tensors(args), *_tensors(kwargs.values())], streams)
    with saved_tensors_hooks(replay.forget, replay.recall):
        return forward(*_rebuilt(args, Tensor.clone, _same), **_of(kwargs, Tensor.clone, _same))


class _Enough(BaseException):
    """All that backward needs is there: the rest of the block need not run."""


class _Kept:
    """A tensor that backward needs."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # its history is kept elsewhere
        self.version = self.tensor._version  # counts what is written to the original, too

    def get(self) -> Tensor:
        """The tensor as it was.

        Raises:
            AtelierError: it was written to.
        """
        require(
            self.tensor._version == self.version,
            "model: it, or a patch on it, overwrites in place what its gradient needs, a tensor of "
            f"shape {list(self.tensor.shape)}. Remove the patches, or train another base model.",
        )
        return self.tensor


class _Replay:
    """One call of a block, which can be made again."""

    def __init__(self, again: Callable[[], Any], arguments: list[Tensor], streams: Streams) -> None:
        self.again = again
        self.arguments = [_Kept(tensor) for tensor in arguments if not tensor.is_inference()]
        # On a GPU backward runs in a thread of its own, in which no ContextVar is set.
        self.context = copy_context()
        self.streams = streams
        self.states = [get() for get, _ in streams]
        self.forgotten: list[tuple[torch.Size, torch.dtype]] = []
        self.kept: dict[int, _Kept] = {}

    def forget(self, tensor: Tensor) -> int:
        self.forgotten.append((tensor.shape, tensor.dtype))
        return len(self.forgotten) - 1

    def recall(self, index: int) -> Tensor:
        if index not in self.kept:
            self._run()
        tensor = self.kept.pop(index).get()
        require((tensor.shape, tensor.dtype) == self.forgotten[index], _DIFFERS)
        return tensor

    def _run(self) -> None:
        for argument in self.arguments:
            argument.get()
        self.kept = {}

        def keep(tensor: Tensor) -> None:
            self.kept[len(self.kept)] = _Kept(tensor)
            if len(self.kept) == len(self.forgotten):
                raise _Enough

        with (
            torch.enable_grad(),
            rewound(self.streams, self.states),
            saved_tensors_hooks(keep, _unused),
        ):
            try:
                self.context.copy().run(self.again)
            except _Enough:
                return
        raise AtelierError(_DIFFERS)


def _unused(_: None) -> Tensor:
    raise RuntimeError("the second run of a block has no backward of its own")


def _call(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return forward(*_rebuilt(args, Tensor.clone, copy.copy), **_of(kwargs, Tensor.clone, copy.copy))


def _of(kwargs: dict[str, Any], *how: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: _rebuilt(value, *how) for name, value in kwargs.items()}


def _rebuilt(value: Any, tensor: Callable[[Any], Any], container: Callable[[Any], Any]) -> Any:
    """An argument, with tensors (in tuples too) and dicts and lists replaced."""
    if isinstance(value, Tensor):
        return tensor(value)
    if isinstance(value, dict | list):
        return container(value)
    if type(value) is tuple:
        return tuple(_rebuilt(item, tensor, container) for item in value)
    return value


def _same(value: Any) -> Any:
    return value


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments and directly inside their containers."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from (item for item in value.values() if isinstance(item, Tensor))
