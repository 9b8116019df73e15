"""A MODEL whose Linear layers are stored in four bits, as loaders for bitsandbytes make it.

Import it after `comfy_modules.make_importable()`, as every test under tests/host is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


@torch.inference_mode()
def store_in_nf4(patcher: Any) -> Any:
    """Exchange every Linear of the diffusion model for one of bitsandbytes; returns ``patcher``."""
    from bitsandbytes.nn import LinearNF4, Params4bit

    for module in list(patcher.model.diffusion_model.modules()):
        for name, layer in list(module.named_children()):
            if not isinstance(layer, nn.Linear):
                continue
            packed = LinearNF4(layer.in_features, layer.out_features, layer.bias is not None)
            packed.weight = Params4bit(
                layer.weight.clone(), requires_grad=False, quant_type="nf4", module=packed
            )
            if layer.bias is not None:
                packed.bias = nn.Parameter(layer.bias.clone(), requires_grad=False)
            setattr(module, name, packed.to("cpu"))  # this packs the weight
    patcher.size = 0  # the patcher remembers how large it was
    return patcher
