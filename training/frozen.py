"""Frozen Linear and Conv layers through autograd, without saving their weights.

Backward needs the weight only for the gradient of the *input*, ``dx = dy · W``. Ordinary autograd
would keep the weight alive for that, which fails on ComfyUI's weights (they are inference tensors),
keeps a full-precision copy of an fp8 or quantised base, and pins weights that the host wants to
move. So these functions remember the *layer*, and ask for its weight again in backward.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Weights = Callable[[nn.Module, Tensor], AbstractContextManager[tuple[Tensor, Tensor | None]]]
"""``weights(layer, like)``: a context that lends (weight, bias) in the dtype and on the device of
``like``. The weight is not used after the context is left, so the host may take it back."""

FROZEN_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, layer: nn.Module, weights: Weights) -> Tensor:
        ctx.layer, ctx.weights = layer, weights
        with weights(layer, x) as (weight, bias):
            return nn.functional.linear(x, *_bare(weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        with ctx.weights(ctx.layer, grad) as (weight, _):
            return grad @ weight.data, None, None


class _FrozenConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, layer: nn.Module, weights: Weights, padding) -> Tensor:
        ctx.layer, ctx.weights, ctx.padding, ctx.shape = layer, weights, padding, x.shape
        convolve = getattr(nn.functional, f"conv{x.ndim - 2}d")
        with weights(layer, x) as (weight, bias):
            return convolve(
                x, *_bare(weight, bias), layer.stride, padding, layer.dilation, layer.groups
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


def _bare(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The numbers without their history.

    A weight made in inference mode and moved to a GPU outside it (``.data`` is assigned) is no
    inference tensor any more, but has no version counter either, and even views of it are refused.
    """
    return weight.data, None if bias is None else bias.data


def frozen_forward(layer: nn.Module, weights: Weights, x: Tensor) -> Tensor:
    """What ``layer`` computes on ``x``, differentiable in ``x`` alone."""
    if isinstance(layer, nn.Linear):
        return _FrozenLinear.apply(x, layer, weights)
    padding = layer.padding
    # Padding in words (nn.grad takes numbers only; 'same' is lopsided under an even kernel) and
    # padding with other than zeros (circular, for seamless textures) is added here.
    if isinstance(padding, str) or layer.padding_mode != "zeros":
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = nn.functional.pad(x, layer._reversed_padding_repeated_twice, mode)
        padding = 0
    return _FrozenConv.apply(x, layer, weights, padding)
