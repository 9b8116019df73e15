"""A MODEL whose Linear layers are stored in four bits, as loaders for bitsandbytes make it.

Import it after `comfy_modules.make_importable()`, as every test under tests/host is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def nf4(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Linear4bit of bitsandbytes. The weight may not be one that is needed any more."""
    from bitsandbytes.nn import LinearNF4, Params4bit

    layer = LinearNF4(weight.shape[1], weight.shape[0], bias is not None)
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer.to("cpu")  # this packs the weight


class BareNF4(nn.Module):
    """As ComfyUI_bitsandbytes_NF4 has it: no `nn.Linear`, its state on the layer as well."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        packed = nf4(weight, bias)
        self.weight, self.bias = packed.weight, packed.bias
        self.quant_state = packed.weight.quant_state
        self.weight.quant_state = None

    def forward(self, x: Tensor) -> Tensor:
        import bitsandbytes

        return bitsandbytes.matmul_4bit(x, self.weight.t(), self.quant_state, bias=self.bias)


@torch.inference_mode()
def store_in_nf4(patcher: Any, make: Callable[[Tensor, Tensor | None], nn.Module] = nf4) -> Any:
    """Exchange every Linear of the diffusion model for a packed one; returns ``patcher``."""
    for module in list(patcher.model.diffusion_model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear):
                bias = None if layer.bias is None else layer.bias.clone()
                setattr(module, name, make(layer.weight.clone(), bias))
    patcher.size = 0  # the patcher remembers how large it was
    return patcher
