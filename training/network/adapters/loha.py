"""LoHa: the product, place by place, of two low-rank matrices.

``ΔW = (alpha / dim) · (w1_a w1_b) ⊙ (w2_a w2_b)``, of rank up to dim² (Hyeon-Woo et al. 2021,
FedPara, arXiv:2108.06098). ``w2_a`` starts at zero; initial deviations are those of LyCORIS
(lycoris/modules/loha.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .base import Adapter, weight_shape


class LoHa(Adapter):
    """Hadamard-product update of a Linear or convolution layer (without Tucker factors)."""

    def __init__(self, layer: nn.Module, dim: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__()
        self.shape = weight_shape(layer)
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        for name, shape, deviation in (
            ("hada_w1_a", (rows, dim), 0.1),
            ("hada_w1_b", (dim, columns), 1.0),
            ("hada_w2_a", (rows, dim), 0.0),
            ("hada_w2_b", (dim, columns), 1.0),
        ):
            numbers = torch.randn(shape, generator=rng) * deviation
            self.register_parameter(name, nn.Parameter(numbers))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.scale = alpha / dim

    def delta_weight(self) -> Tensor:
        w1 = self.hada_w1_a.float() @ self.hada_w1_b.float()
        product = w1 * (self.hada_w2_a.float() @ self.hada_w2_b.float())
        return product.view(self.shape) * self.scale

    def shrink(self, factor: float) -> None:
        self.hada_w2_a *= factor
