"""Full update: ``ΔW`` itself is trained, as many numbers as the layer has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Adapter, weight_shape


class FullDiff(Adapter):
    """The whole difference of a Linear or convolution layer; the file's key is ``….diff``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.diff = nn.Parameter(torch.zeros(weight_shape(layer)))

    def delta_weight(self) -> Tensor:
        return self.diff.float()

    def shrink(self, factor: float) -> None:
        self.diff *= factor
