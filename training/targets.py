"""Which layers of a diffusion model get an adapter.

In a U-Net: every Linear and 1×1 convolution inside its transformer blocks, that is the attention
and MLP layers with their projections (the choice of kohya-ss/sd-scripts, networks/lora.py, target
``Transformer2DModel``). In a diffusion transformer, whose blocks are the members of a ModuleList:
every Linear inside those blocks.
"""

from __future__ import annotations

from torch import nn

UNET_TRANSFORMERS = ("SpatialTransformer", "SpatialVideoTransformer", "Transformer2DModel")


def attention_and_mlp_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path inside ``model`` -> layer, in the model's own order."""
    unet_blocks = [p for p, m in model.named_modules() if type(m).__name__ in UNET_TRANSFORMERS]
    if unet_blocks:
        return _layers_below(model, unet_blocks)
    lists = [p for p, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    return {p: m for p, m in _layers_below(model, lists).items() if isinstance(m, nn.Linear)}


def _layers_below(model: nn.Module, roots: list[str]) -> dict[str, nn.Module]:
    prefixes = tuple(f"{root}." for root in roots)
    return {
        path: module
        for path, module in model.named_modules()
        if path.startswith(prefixes) and _is_linear_map(module)
    }


def _is_linear_map(module: nn.Module) -> bool:
    one_by_one = isinstance(module, nn.Conv2d) and tuple(module.kernel_size) == (1, 1)
    return isinstance(module, nn.Linear) or (one_by_one and module.groups == 1)
