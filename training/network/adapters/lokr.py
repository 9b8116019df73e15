"""LoKr: the Kronecker product of a small matrix and a larger, low-rank one.

``ΔW = (alpha / dim) · w1 ⊗ (w2_a w2_b)``; where dim is no saving, ``w2`` is one full matrix and the
scale is 1 (Yeh et al. 2023, LyCORIS, arXiv:2309.14859; lycoris/modules/lokr.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .base import Adapter, weight_shape


class LoKr(Adapter):
    """Kronecker-product update of a Linear or convolution layer (``w1`` full, no Tucker factor).

    Args:
        factor: size of ``w1`` at most, -1 = as square as the layer's sides allow.
    """

    def __init__(
        self, layer: nn.Module, dim: int, alpha: float, rng: torch.Generator, factor: int = -1
    ) -> None:
        super().__init__()
        self.shape = weight_shape(layer)
        rows_1, rows_2 = factors(self.shape[0], factor)
        columns_1, columns_2 = factors(self.shape[1], factor)
        kernel = self.shape[2:]
        self.lokr_w1 = nn.Parameter(torch.empty(rows_1, columns_1))
        nn.init.kaiming_uniform_(self.lokr_w1, a=math.sqrt(5), generator=rng)
        self.low_rank = dim < max(rows_2, columns_2) / 2
        if self.low_rank:
            self.lokr_w2_a = nn.Parameter(torch.empty(rows_2, dim))
            self.lokr_w2_b = nn.Parameter(torch.zeros(dim, columns_2 * math.prod(kernel)))
            nn.init.kaiming_uniform_(self.lokr_w2_a, a=math.sqrt(5), generator=rng)
        else:
            self.lokr_w2 = nn.Parameter(torch.zeros(rows_2, columns_2, *kernel))
        self.full_shape = (rows_2, columns_2, *kernel)
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.scale = alpha / dim if self.low_rank else 1.0

    def delta_weight(self) -> Tensor:
        if self.low_rank:
            w2 = self.lokr_w2_a.float() @ self.lokr_w2_b.float()
        else:
            w2 = self.lokr_w2.float()
        w1 = self.lokr_w1.float().view(*self.lokr_w1.shape, *[1] * (len(self.shape) - 2))
        return torch.kron(w1, w2.view(self.full_shape)).view(self.shape) * self.scale

    def shrink(self, factor: float) -> None:
        self.lokr_w1 *= factor


def factors(size: int, limit: int = -1) -> tuple[int, int]:
    """Two whole numbers, the smaller first, whose product is ``size``.

    The smaller is the largest divisor up to √size, and up to ``limit`` when that is positive; a
    ``limit`` that divides ``size`` is taken itself.
    """
    if limit > 0 and size % limit == 0 and size >= limit * limit:
        return (limit, size // limit)
    most = min(math.isqrt(size), limit if limit > 0 else size)
    small = max(n for n in range(1, most + 1) if size % n == 0)
    return (small, size // small)
