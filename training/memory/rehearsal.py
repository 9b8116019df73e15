"""A training step on tensors that have shapes but no numbers (device ``meta``).

Nothing is computed and no weight is read, but autograd keeps exactly what it would keep, so the
memory of a step can be counted in advance through the model's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from .allocations import Allocations

SHAPES = torch.device("meta")


@contextmanager
def rehearsing() -> Iterator[Allocations]:
    """Count what comes into being; keep on ``meta`` what is there."""
    with ExitStack() as undo:
        undo.enter_context(_FusedAttention())
        yield undo.enter_context(_StayingAllocations())


class _StayingAllocations(Allocations):
    """Tensors without numbers cannot be brought to another device, as models do with results."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].is_meta:
            kwargs = {**(kwargs or {}), "device": SHAPES}
        return super().__torch_dispatch__(func, types, args, kwargs)


class _FusedAttention(TorchFunctionMode):
    """On ``meta`` torch takes attention apart, and would keep the [query × key] matrices; the fused
    kernels of CPU and GPU do not."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention and args[0].is_meta:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


def fused(forward: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """The manner in which blocks are called (:mod:`training.base_model.blocks`): those that are
    computed again in backward would take attention apart there, because torch lays function modes
    aside for it."""
    with _FusedAttention():
        return forward(*args, **kwargs)


class _Attention(torch.autograd.Function):
    """The tensors of flash attention (Dao et al. 2022, arXiv:2205.14135): it keeps its inputs, its
    output, and one float32 a query, the logarithm of the sum of exponentials."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)  # in the same order in memory, as the kernels give it
        if query.shape[-1] != value.shape[-1]:
            output = query.new_empty(*query.shape[:-1], value.shape[-1])
        logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
