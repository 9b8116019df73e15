"""Frozen Linear and Conv layers through autograd, without saving their weights.

Backward needs the weight only for the gradient of the *input*, ``dx = dy · W``. Ordinary autograd
would keep the weight alive for that, which fails on ComfyUI's weights (they are inference tensors),
keeps a full-precision copy of an fp8 or quantised base, and pins weights that the host wants to
move. So these functions remember the *layer*, and ask for its weight again in backward.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Weights = Callable[[nn.Module, Tensor], AbstractContextManager[tuple[Tensor, Tensor | None]]]
"""``weights(layer, like)``: a context that lends (weight, bias) in the dtype and on the device of
``like``. The weight is not used after the context is left, so the host may take it back."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes ``x Wᵀ + b``. Those of quantised models need not be of
    ``nn.Linear``'s kind: then they say their sizes, or bitsandbytes does."""
    if isinstance(module, nn.Linear):
        return True
    has_sizes = hasattr(module, "in_features") and hasattr(module, "out_features")
    has_weight = isinstance(getattr(module, "weight", None), Tensor)
    return has_weight and (has_sizes or four_bit_state(module) is not None)


def is_frozen_layer(module: nn.Module) -> bool:
    """Whether a module's weight is lent instead of kept: all that are large."""
    return is_linear(module) or isinstance(module, CONVOLUTIONS)


def four_bit_state(layer: nn.Module) -> Any:
    """How bitsandbytes packed a layer's weight into four bits, with its ``shape``; else None."""
    state = getattr(layer.weight, "quant_state", None)
    return getattr(layer, "quant_state", None) if state is None else state


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, layer: nn.Module, weights: Weights) -> Tensor:
        ctx.layer, ctx.weights = layer, weights
        with weights(layer, x) as (weight, bias):
            # Rows of several dimensions come back as a view, to which no model could add in place
            # (Flux does); the bare numbers are none.
            return nn.functional.linear(x, *bare(weight, bias)).data

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        with ctx.weights(ctx.layer, grad) as (weight, _):
            return grad @ weight.data, None, None


class _FrozenConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, padding: Any, layer: nn.Module, weights: Weights) -> Tensor:
        ctx.layer, ctx.weights, ctx.padding, ctx.shape = layer, weights, padding, x.shape
        convolve = getattr(nn.functional, f"conv{x.ndim - 2}d")
        with weights(layer, x) as (weight, bias):
            return convolve(
                x, *bare(weight, bias), layer.stride, padding, layer.dilation, layer.groups
            )

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        layer = ctx.layer
        input_gradient = getattr(nn.grad, f"conv{grad.ndim - 2}d_input")
        with ctx.weights(layer, grad) as (weight, _):
            dx = input_gradient(
                ctx.shape,
                weight.data,
                grad,
                layer.stride,
                ctx.padding,
                layer.dilation,
                layer.groups,
            )
        return dx, None, None, None


def bare(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The numbers without their history.

    A weight made in inference mode and moved to a GPU outside it (``.data`` is assigned) is no
    inference tensor any more, but has no version counter either, and even views of it are refused.
    """
    return weight.data, None if bias is None else bias.data


@dataclass(frozen=True)
class FrozenLayer:
    """A Linear or Conv layer as an adapter sees it."""

    layer: nn.Module
    weights: Weights

    def __call__(self, x: Tensor) -> Tensor:
        """What the layer computes on ``x``, differentiable in ``x`` alone."""
        if is_linear(self.layer):
            return _FrozenLinear.apply(x, self.layer, self.weights)
        return _FrozenConv.apply(*padded(self.layer, x), self.layer, self.weights)

    def lend(self, like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        """(weight, bias) for the time of the context; no gradient flows into them."""
        return self.weights(self.layer, like)


def convolve(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` convolved with any ``weight`` in the manner of ``layer``: stride, padding, groups."""
    x, padding = padded(layer, x)
    function = getattr(nn.functional, f"conv{weight.ndim - 2}d")
    return function(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)


def padded(layer: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
    """(input, padding in numbers).

    Padding in words (nn.grad takes numbers only; 'same' is lopsided under an even kernel) and
    padding with other than zeros (circular, for seamless textures) is added here.
    """
    padding = layer.padding
    if isinstance(padding, str) or layer.padding_mode != "zeros":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode), 0
    return x, padding
