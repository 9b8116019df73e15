"""The weights of ComfyUI's layers, lent for one use, whatever they are stored in.

Quantised bases stay quantised: a weight gets its numbers back for the time of the lending, one
layer at a time. Beside the host's own types there are

    bitsandbytes 4 bit    w = code[index] · absmax[block]   (NF4: Dettmers 2023, arXiv:2305.14314)
    bitsandbytes 8 bit    w = q · SCB[row] / 127            (LLM.int8: Dettmers 2022, 2208.07339)
    ``pre_quant_scale``   W (s ∘ x) = (W diag s) x         (AWQ by ModelOpt, in newer hosts)
    layers with a ``cast_bias_weight`` of their own         (GGUF loaders)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import comfy.ops
import torch
from torch import Tensor, nn

from ..base_model.frozen import four_bit_state
from ..errors import needed_package, require

INT8_MAX = 127
QUANTISED = getattr(comfy.ops, "QuantizedTensor", ())
"""The host's own quantised weights, where it has them."""


@contextmanager
def lend_weights(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A layer's weight and bias as the host would use them now: moved, cast, patched.

    Raises:
        AtelierError: the weight is an 8-bit one without its scales.
    """
    # As in sampling: hosts have buffers for weights that they bring from RAM, and one that was made
    # in inference mode, for a preview, can be written in no other.
    with torch.inference_mode():
        weight, bias, give_back = _borrowed(layer, like)
    try:
        yield weight, bias
    finally:
        give_back()


def _borrowed(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None, Callable[[], None]]:
    """(weight, bias, what to call when they are not used any more)."""
    if hasattr(layer, "cast_bias_weight"):
        weight, bias, *_ = layer.cast_bias_weight(like)
        return weight, bias, _nothing
    if not hasattr(layer, "comfy_cast_weights") or _by_bitsandbytes(layer):
        bias = None if layer.bias is None else layer.bias.to(like)
        return unpacked(layer, like), bias, _nothing
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
    give_back = partial(comfy.ops.uncast_bias_weight, layer, weight, bias, stream)
    scale = getattr(layer, "scale_weight", None)  # scaled fp8: the host applies it in its forward
    plain = weight.dequantize() if isinstance(weight, QUANTISED) else weight
    plain = plain.to(like)  # it comes in a type of its own choice
    if scale is not None:
        plain = plain * scale.to(plain)
    smoothing = getattr(layer, "pre_quant_scale", None)
    if smoothing is not None:
        plain = plain * smoothing.to(plain)
    return plain, bias, give_back


def _nothing() -> None:
    """Where the host need not be told."""


def copies_made(layer: nn.Module, like: Tensor) -> int:
    """How many weights of full size exist at once while a loaded layer lends its own."""
    scales = (getattr(layer, name, None) for name in ("scale_weight", "pre_quant_scale"))
    if any(scale is not None for scale in scales):
        return 2
    patched = getattr(layer, "weight_function", None) or hasattr(layer, "cast_bias_weight")
    packed = isinstance(layer.weight, QUANTISED) or layer.weight.dtype != like.dtype
    return int(bool(patched) or packed)


def unpacked(layer: nn.Module, like: Tensor) -> Tensor:
    """The weight of a plain layer, or of one by bitsandbytes, in the type and place of ``like``.

    What packs a weight may lie on the weight or, after the layer's first forward, on the layer.
    """
    weight = layer.weight.data
    if (state := four_bit_state(layer)) is not None:
        functional = needed_package("bitsandbytes.functional", "A 4-bit model")
        return functional.dequantize_4bit(weight, state).to(like)  # where both of them lie
    if weight.dtype is torch.int8:
        scales = getattr(layer.weight, "SCB", None)
        scales = getattr(getattr(layer, "state", None), "SCB", None) if scales is None else scales
        require(
            scales is not None,
            "model: its 8-bit weights came without their scales. Load the fp16, bf16 or fp8 "
            "version of this model.",
        )
        return (weight * (scales.float() / INT8_MAX).unsqueeze(1)).to(like)
    return weight.to(like)


def _by_bitsandbytes(layer: nn.Module) -> bool:
    return four_bit_state(layer) is not None or layer.weight.dtype is torch.int8
