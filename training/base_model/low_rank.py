"""A frozen Linear layer with a low-rank side path as one step of autograd.

    y = W x + b + s · up(down(x))            h = down(x), [rows, rank]

    dx    = dy W + s · (dy up) down          d_up   = s · dyᵀ h
    d_down = s · (dy up)ᵀ x

Written as separate layers, the side path makes four tensors of the layer's full size that only wait
to be added (its answer, that answer scaled, the sum, and its part of ``dx``). Here each product is
added where it belongs while it is computed, and backward keeps nothing but ``x`` and the thin
``h``. The weight is lent twice, as in :mod:`training.base_model.frozen`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .frozen import FrozenLayer, Weights, bare


def low_rank_linear(
    frozen: FrozenLayer, x: Tensor, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    """``frozen(x) + scale · up(down(x))``, differentiable in ``x``, ``down`` and ``up``.

    Args:
        frozen: a Linear layer.
        x: [..., in].
        down: [rank, in], in the type of ``x``.
        up: [out, rank], likewise.
    """
    return _LowRankLinear.apply(x, down, up, scale, frozen.layer, frozen.weights)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x: Tensor, down: Tensor, up: Tensor, scale: float, layer: nn.Module, weights: Weights
    ) -> Tensor:
        ctx.scale, ctx.layer, ctx.weights = scale, layer, weights
        rows = x.reshape(-1, x.shape[-1])
        thin = rows @ down.T
        ctx.save_for_backward(x, thin, down, up)
        with weights(layer, x) as (weight, bias):
            y = nn.functional.linear(rows, *bare(weight, bias))
        y.addmm_(thin, up.T, alpha=scale)
        return y.view(*x.shape[:-1], y.shape[-1]).data  # no view: the model may add to it in place

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, thin, down, up = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        dx = d_down = d_up = None
        narrow = rows @ up
        if ctx.needs_input_grad[0]:
            with ctx.weights(ctx.layer, grad) as (weight, _):
                dx = rows @ weight.data
            dx = dx.addmm_(narrow, down, alpha=ctx.scale).view(x.shape)
        if ctx.needs_input_grad[1]:
            d_down = (narrow.T @ x.reshape(-1, x.shape[-1])).mul_(ctx.scale)
        if ctx.needs_input_grad[2]:
            d_up = (rows.T @ thin).mul_(ctx.scale)
        return dx, d_down, d_up, None, None, None
