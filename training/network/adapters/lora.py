"""LoRA, and LoCon for convolutions: ``ΔW = (alpha / dim) · up · down``.

              x ──────────── frozen W ────────────┐
              │                                   +──> y = W x + (alpha / dim) · up(down(x))
              └── down [dim,in] ── up [out,dim] ──┘

``down`` starts Kaiming-uniform (a = √5), ``up`` at zero, so step 0 is the base model exactly
(Hu et al. 2021, arXiv:2106.09685; the initialisation and the dropouts of kohya-ss/sd-scripts,
networks/lora.py). ``ΔW`` is never built while training.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...base_model.frozen import FrozenLayer, is_linear
from ...base_model.low_rank import low_rank_linear
from .base import Adapter, apply_weight, weight_shape


class LoRA(Adapter):
    """Low-rank side path of a Linear or convolution layer.

    For a convolution ``down`` keeps the layer's kernel, stride and padding; ``up`` is 1×1.
    """

    def __init__(self, layer: nn.Module, dim: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__()
        out_width, *rest = weight_shape(layer)
        ones = [1] * (len(rest) - 1)
        self.lora_down = _Matrix(dim, *rest)
        self.lora_up = _Matrix(out_width, dim, *ones)
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.scale = alpha / dim
        self.network_dropout = 0.0
        self.rank_dropout = 0.0
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5), generator=rng)
        nn.init.zeros_(self.lora_up.weight)

    def forward(self, frozen: FrozenLayer, x: Tensor) -> Tensor:
        if self.dropped_out():
            return self.idle(frozen(x))
        if is_linear(frozen.layer) and not self._drops_parts():
            down, up = self.lora_down.weight.to(x.dtype), self.lora_up.weight.to(x.dtype)
            return low_rank_linear(frozen, x, down, up, self.scale)
        return frozen(x) + self.side_path(frozen, x)

    def _drops_parts(self) -> bool:
        return self.training and (self.network_dropout > 0 or self.rank_dropout > 0)

    def side_path(self, frozen: FrozenLayer, x: Tensor) -> Tensor:
        """``ΔW x``, with whatever drops out."""
        down = apply_weight(frozen.layer, x, self.lora_down.weight.to(x.dtype))
        if self.training and self.network_dropout > 0:
            down = nn.functional.dropout(down, self.network_dropout)
        if self.training and self.rank_dropout > 0:
            down = _drop_ranks(down, self.rank_dropout, is_linear(frozen.layer))
        up = self.lora_up.weight.to(x.dtype)
        if is_linear(frozen.layer):
            side = nn.functional.linear(down, up)
        else:
            side = getattr(nn.functional, f"conv{up.ndim - 2}d")(down, up)
        return side * self.scale

    def delta_weight(self) -> Tensor:
        up, down = self.lora_up.weight.float(), self.lora_down.weight.float()
        product = up.flatten(1) @ down.flatten(1)
        return product.view(up.shape[0], *down.shape[1:]) * self.scale

    def shrink(self, factor: float) -> None:
        self.lora_up.weight *= math.sqrt(factor)
        self.lora_down.weight *= math.sqrt(factor)


class _Matrix(nn.Module):
    """A bare weight, so that the state dict has the file's key ``….weight``."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))


def _drop_ranks(down: Tensor, probability: float, channels_last: bool) -> Tensor:
    """Drop whole ranks, other ones for each picture, and scale up what is left."""
    rank = down.shape[-1] if channels_last else down.shape[1]
    keep = (torch.rand(down.shape[0], rank, device=down.device) > probability).to(down.dtype)
    shape = [down.shape[0], *[1] * (down.ndim - 2)]
    shape.insert(len(shape) if channels_last else 1, rank)
    return down * keep.view(shape) / (1 - probability)
