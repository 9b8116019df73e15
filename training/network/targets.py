"""Which layers of a diffusion model get an adapter.

In a U-Net the usual choice is every Linear and 1×1 convolution inside its transformer blocks, that
is the attention and MLP layers with their projections (kohya-ss/sd-scripts, networks/lora.py,
target ``Transformer2DModel``). In a diffusion transformer, whose blocks are the members of a
ModuleList, it is every Linear inside those blocks. The 3×3 convolutions that make a LoRA a LoCon
are those of residual, down- and upsampling blocks (the same file, ``ResnetBlock2D`` and others).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from torch import Tensor, nn

from ..base_model.frozen import is_frozen_layer, is_linear
from ..errors import AtelierError, require

UNET_TRANSFORMERS = ("SpatialTransformer", "SpatialVideoTransformer", "Transformer2DModel")
CONVOLUTION_BLOCKS = (
    *("ResBlock", "VideoResBlock", "Downsample", "Upsample"),
    *("ResnetBlock2D", "Downsample2D", "Upsample2D"),
)
ATTENTION_NAME = re.compile(r"attn|attention|^(to|add)_[qkv](_proj)?$|^to_(out|add_out)$")
"""What the part of a path is called below which attention layers lie."""
FUSED_BLOCKS = ("SingleStreamBlock",)
"""Blocks that compute attention and MLP in the same layers (Flux, HunyuanVideo, Chroma)."""
FUSED_LAYERS = ("linear1", "linear2")
EMBEDDERS = ("distilled_guidance_layer",)
"""Parts made of lists that are no blocks of the model: Chroma's makes the modulation of all blocks
from the timestep."""


class TargetModules(str, Enum):
    """Which layers of the model are trained."""

    ATTENTION = "attention"
    ATTENTION_MLP = "attention_mlp"
    ALL_LINEAR = "all_linear"
    ALL_LINEAR_CONV = "all_linear_conv"
    REGEX = "regex"
    NONE = "none"
    """None of the diffusion model's: the text encoders alone are trained."""


class TextEncoders(str, Enum):
    """Which of the text encoders are trained beside the diffusion model, or instead of it."""

    NONE = "none"
    CLIP = "clip"
    """CLIP-L, CLIP-G, CLIP-H."""
    ALL = "all"
    """T5 too."""


@dataclass(frozen=True, eq=False)
class TargetLayer:
    """A frozen layer that gets an adapter."""

    layer: nn.Module
    path: str = ""
    """Inside the diffusion model."""
    block: str = ""
    """The block of the model in which it lies, see :func:`block_of`; "" in a text encoder."""
    start: Mapping[str, Tensor] | None = None
    """What a LoRA file holds for it, under the adapter's own names; None = begin anew."""


def trainable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path inside ``model`` -> every layer that can have an adapter, in the model's own order."""
    return {path: module for path, module in model.named_modules() if _is_trainable(module)}


def choose_layers(
    model: nn.Module,
    names: Mapping[str, str],
    target_modules: TargetModules,
    target_regex: str = "",
    convolutions: bool = False,
) -> dict[str, nn.Module]:
    """Path inside ``model`` -> layer that is to be trained, in the model's own order.

    Args:
        names: path -> name in the LoRA file; the regular expression may match either.
        convolutions: also the convolutions of residual, down- and upsampling blocks (LoCon).

    Raises:
        AtelierError: the choice finds nothing in this model.
    """
    layers = trainable_layers(model)
    if target_modules is TargetModules.REGEX:
        chosen = _matching(layers, names, target_regex)
    elif target_modules is TargetModules.ALL_LINEAR:
        chosen = {p: m for p, m in layers.items() if is_linear(m)}
    elif target_modules is TargetModules.ALL_LINEAR_CONV:
        chosen = layers
    else:
        chosen = attention_and_mlp_layers(model)
        require(
            len(chosen) > 0,
            "model: none of its layers can be trained. It may be stored in a format that is not "
            "supported yet; load the fp16, bf16, fp8 or nf4 version of this model.",
        )
        if target_modules is TargetModules.ATTENTION:
            chosen = _attention_only(model, chosen)
    require(
        len(chosen) > 0,
        f"target_modules is {target_modules.value}: this model has no such layers. Choose "
        "attention_mlp.",
    )
    if convolutions:
        spatial = convolutions_of_blocks(model)
        require(
            len(spatial) > 0,
            "conv_dim is set, but this model has no convolutions in residual blocks (only U-Nets "
            "such as SD1.5 and SDXL have). Set conv_dim to 0.",
        )
        chosen = {p: m for p, m in layers.items() if p in chosen or p in spatial}
    return chosen


def attention_and_mlp_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Path inside ``model`` -> layer, in the model's own order."""
    unet_blocks = [p for p, m in model.named_modules() if type(m).__name__ in UNET_TRANSFORMERS]
    if unet_blocks:
        below = _layers_below(model, unet_blocks)
        return {p: m for p, m in below.items() if not is_spatial(m)}
    lists = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and not path.startswith(EMBEDDERS)
    ]
    return {p: m for p, m in _layers_below(model, lists).items() if is_linear(m)}


def convolutions_of_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> convolution wider than 1×1 of a residual, down- or upsampling block."""
    blocks = [p for p, m in model.named_modules() if type(m).__name__ in CONVOLUTION_BLOCKS]
    return {p: m for p, m in _layers_below(model, blocks).items() if is_spatial(m)}


def is_spatial(layer: nn.Module) -> bool:
    """True for a convolution that looks at more than one place: conv_dim counts for it."""
    return not is_linear(layer) and max(layer.kernel_size) > 1


def block_of(model: nn.Module, path: str) -> str:
    """The block of ``model`` in which a layer lies: a member of one of its lists, such as
    ``input_blocks.4`` or ``double_blocks.0``, or another part of it (``middle_block``)."""
    first, *rest = path.split(".")
    in_list = isinstance(getattr(model, first), nn.ModuleList | nn.ModuleDict)
    return f"{first}.{rest[0]}" if in_list else first


def blocks_of(layers: Mapping[str, TargetLayer]) -> tuple[str, ...]:
    """The blocks that hold layers to train, in the model's own order."""
    return tuple(dict.fromkeys(target.block for target in layers.values()))


def compiled(target_regex: str) -> re.Pattern[str]:
    """The widget's regular expression.

    Raises:
        AtelierError: it is empty or no regular expression.
    """
    require(
        target_regex.strip() != "",
        "target_regex is empty: write what a layer's path has to contain, such as "
        r"attn2|middle_block, or choose another target_modules.",
    )
    try:
        return re.compile(target_regex)
    except re.error as error:
        raise AtelierError(
            f'target_regex is "{target_regex}", which is no regular expression: {error}.'
        ) from error


def _matching(
    layers: Mapping[str, nn.Module], names: Mapping[str, str], target_regex: str
) -> dict[str, nn.Module]:
    pattern = compiled(target_regex)
    chosen = {
        path: layer
        for path, layer in layers.items()
        if pattern.search(path) or pattern.search(names.get(path, ""))
    }
    examples = list(layers)[:: max(1, len(layers) // 3)][:3]
    require(
        len(chosen) > 0,
        f'target_regex is "{target_regex}", which matches no layer of this model. Its layers have '
        f"paths such as {', '.join(examples)}.",
    )
    return chosen


def _attention_only(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    fused = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if type(module).__name__ in FUSED_BLOCKS
        for name in FUSED_LAYERS
    }
    return {
        path: layer
        for path, layer in layers.items()
        if path in fused or any(ATTENTION_NAME.search(part) for part in path.split("."))
    }


def _layers_below(model: nn.Module, roots: list[str]) -> dict[str, nn.Module]:
    prefixes = tuple(f"{root}." for root in roots)
    return {p: m for p, m in trainable_layers(model).items() if p.startswith(prefixes)}


def _is_trainable(module: nn.Module) -> bool:
    # Convolutions in groups have no low-rank side path of the same kind.
    return is_frozen_layer(module) and getattr(module, "groups", 1) == 1
