"""DoRA: length and direction of the weight's columns are trained apart.

``W' = m ⊙ (W + ΔW) / ‖W + ΔW‖``, ``ΔW`` as in LoRA, one length ``m`` for each *input* of the layer,
which begins as ``‖W‖``. The norm counts as a constant in the gradient (Liu et al. 2024,
arXiv:2402.09353, section 4.3). In the file ``m`` is ``dora_scale`` [1, in, …]: ComfyUI
(comfy/weight_adapter/base.py, ``weight_decompose``) computes with ``‖W + ΔW‖`` for that shape
alone; for one length an output it would take ``‖W‖``, which is another layer than was trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...base_model.frozen import FrozenLayer, is_linear
from ...errors import require
from .base import weight_shape
from .lora import LoRA

EPSILON = torch.finfo(torch.float32).eps
"""As the host adds to the norm: it patches weights in float32."""


class DoRA(LoRA):
    """Weight-decomposed low-rank update of a Linear or convolution layer."""

    needs_weights = True
    # Few, and it begins at the base's own lengths, which a rounding would change at step 0.
    stays_float32 = frozenset({"dora_scale"})

    def __init__(self, layer: nn.Module, dim: int, alpha: float, rng: torch.Generator) -> None:
        super().__init__(layer, dim, alpha, rng)
        out_width, in_width, *kernel = weight_shape(layer)
        require(
            out_width > 1,
            "algorithm is dora: a layer with a single output is among the chosen ones, whose file "
            "ComfyUI would read in another way. Leave it out with target_modules.",
        )
        self.dora_scale = nn.Parameter(torch.ones(1, in_width, *[1] * len(kernel)))

    @torch.no_grad()
    def begin(self, frozen: FrozenLayer) -> None:
        with frozen.lend(self.dora_scale) as (weight, _):
            self.dora_scale.copy_(column_norms(weight.data))

    def forward(self, frozen: FrozenLayer, x: Tensor) -> Tensor:
        if self.dropped_out():
            return self.idle(frozen(x))
        factors = (self.dora_scale / self.current_norms(frozen)).to(x.dtype)
        if is_linear(frozen.layer):
            factors = factors.flatten()
        scaled = x * factors
        return frozen(scaled) + self.side_path(frozen, scaled)

    @torch.no_grad()
    def current_norms(self, frozen: FrozenLayer) -> Tensor:
        """[1, in, …] ``‖W + ΔW‖``, from float32 weights, as the host will have them."""
        with frozen.lend(self.dora_scale) as (weight, _):
            return column_norms(weight.data + self.delta_weight()) + EPSILON


def column_norms(weight: Tensor) -> Tensor:
    """[out, in, …] -> [1, in, …]: length of what leaves each input."""
    return torch.linalg.vector_norm(weight, dim=(0, *range(2, weight.ndim)), keepdim=True)
