"""The weights that the host lends for training are those it samples with."""

from __future__ import annotations

from functools import partial
from typing import Any

import comfy.ops
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from torch import Tensor, nn

from four_bit import BareNF4, nf4
from lora_atelier.training.base_model.frozen import FrozenLayer, is_linear
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.lent_weights import lend_weights
from lora_atelier.training.network.adapters.base import weight_shape
from tiny_training import normal

OUT, IN = 16, 64


def weight() -> Tensor:
    return normal(0, OUT, IN) * 0.02


def bias() -> Tensor:
    return normal(1, OUT)


def frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def scaled_fp8() -> nn.Module:
    """Its numbers mean nothing without `scale_weight`, which the host applies in its forward."""
    if not hasattr(comfy.ops, "scaled_fp8_ops"):
        pytest.skip("newer hosts turn such files into their own quantised layers")
    scale = weight().abs().max() / 448  # the largest e4m3 number
    layer = comfy.ops.scaled_fp8_ops(override_dtype=torch.float8_e4m3fn).Linear(IN, OUT)
    layer.weight = frozen((weight() / scale).to(torch.float8_e4m3fn))
    layer.bias = frozen(bias())
    layer.scale_weight = frozen(scale.clone())
    return layer


def mixed_precision(kind: str) -> nn.Module:
    """The host's own quantised layers, which are no `nn.Linear`."""
    if kind not in QUANT_ALGOS:
        pytest.skip(f"a host without {kind}")
    ops = comfy.ops.mixed_precision_ops({"": {"format": kind}}, torch.float32, True)
    layer = ops.Linear(IN, OUT)
    scale = {"scale": weight().abs().max() / 448} if kind == "float8_e4m3fn" else {}
    layout = QUANT_ALGOS[kind]["comfy_tensor_layout"]
    packed = QuantizedTensor.from_float(weight(), layout, **scale)
    layer.weight, layer.bias = frozen(packed), frozen(bias())
    return layer


class Smoothed(comfy.ops.manual_cast.Linear):
    """As newer hosts read files of ModelOpt's AWQ: the input is scaled before the product."""

    def __init__(self) -> None:
        super().__init__(IN, OUT)
        self.pre_quant_scale = frozen(1 + 0.5 * normal(7, IN).abs())
        self.weight, self.bias = frozen(weight() / self.pre_quant_scale), frozen(bias())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.pre_quant_scale)


def eight_bit() -> nn.Module:
    """Linear8bitLt of bitsandbytes, before its first forward."""
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    layer = Linear8bitLt(IN, OUT, has_fp16_weights=False)
    layer.weight = Int8Params(weight(), requires_grad=False, has_fp16_weights=False)
    layer.bias = frozen(bias())
    return layer.to("cpu")


def eight_bit_in_use() -> nn.Module:
    """After it, when the scales have moved from the weight to the layer."""
    layer = eight_bit()
    layer(normal(5, 1, IN))
    assert layer.weight.SCB is None
    return layer


class Packed(comfy.ops.manual_cast.Linear):
    """As GGUF loaders bring it: bytes as the weight, and a `cast_bias_weight` of its own."""

    def __init__(self) -> None:
        super().__init__(IN, OUT)
        self.step = float(weight().abs().max() / 7)
        levels = ((weight() / self.step).round() + 8).to(torch.uint8).flatten()
        self.weight = frozen(levels[::2] * 16 + levels[1::2])
        self.bias = frozen(bias())

    def cast_bias_weight(self, like: Tensor) -> tuple[Tensor, Tensor]:
        levels = torch.stack([self.weight >> 4, self.weight & 15], 1).view(OUT, IN)
        return (levels.to(like) - 8) * self.step, self.bias.to(like)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, *self.cast_bias_weight(x))


class Buffered(Packed):
    """With a buffer of its own, as the host has them for weights that it brings from RAM."""

    buffer: Tensor | None = None

    def cast_bias_weight(self, like: Tensor) -> tuple[Tensor, Tensor]:
        numbers, bias = super().cast_bias_weight(like)
        self.buffer = torch.empty_like(numbers) if self.buffer is None else self.buffer
        return self.buffer.copy_(numbers), bias


# (a layer, how far its forward may be from ours and ours from the unpacked weight). Bitsandbytes
# and the host quantise the input of 8-bit layers, too, which ours does not: 1/254 of the largest
# number.
LAYERS = {
    "scaled fp8": (scaled_fp8, 1e-5, 0.05),
    "fp8": (partial(mixed_precision, "float8_e4m3fn"), 1e-5, 0.05),
    "nvfp4": (partial(mixed_precision, "nvfp4"), 1e-5, 0.15),
    "mxfp8": (partial(mixed_precision, "mxfp8"), 1e-5, 0.05),
    "int8 of the host": (partial(mixed_precision, "int8_tensorwise"), 0.02, 0.02),
    "nf4": (lambda: nf4(weight(), bias()), 1e-5, 0.15),
    "nf4, bare": (lambda: BareNF4(weight(), bias()), 1e-5, 0.15),
    "int8": (eight_bit, 0.02, 0.01),
    "int8, in use": (eight_bit_in_use, 0.02, 0.01),
    "pre_quant_scale": (Smoothed, 1e-5, 1e-5),
    "own cast_bias_weight": (Packed, 1e-5, 0.25),
}


def error(x: Tensor, expected: Tensor) -> float:
    """In standard deviations of what is expected."""
    return float((x - expected).square().mean().sqrt() / expected.std())


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_lent_as_it_computes(kind: str) -> None:
    make, to_its_forward, to_the_weight = LAYERS[kind]
    with torch.inference_mode():
        layer = make()
    assert is_linear(layer) and weight_shape(layer) == (OUT, IN)
    stored = layer.weight.clone() if kind == "own cast_bias_weight" else layer.weight.data.clone()
    x = normal(2, 8, IN).requires_grad_()
    y = FrozenLayer(layer, lend_weights)(x)
    with torch.no_grad():
        assert error(y - bias(), layer(x) - bias()) <= to_its_forward
    assert error(y - bias(), x @ weight().T) <= to_the_weight
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    with lend_weights(layer, x) as (lent, _):
        assert (lent.shape, lent.dtype) == ((OUT, IN), torch.float32)
        torch.testing.assert_close(gradient, 2 * y.detach() @ lent)
    assert_same(layer.weight.data, stored)


def assert_same(now: Any, before: Any) -> None:
    """The stored weight is in no other form than it was."""
    assert (now.dtype, now.shape) == (before.dtype, before.shape)
    assert torch.equal(now.view(torch.uint8), before.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_lent_in_the_type_that_is_asked_for(kind: str, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        layer = LAYERS[kind][0]()
    x = normal(2, 8, IN)
    y = FrozenLayer(layer, lend_weights)(x.to(dtype))
    assert y.dtype is dtype
    assert error(y.float(), FrozenLayer(layer, lend_weights)(x)) < 0.02


def test_a_buffer_that_sampling_has_made_can_be_lent_from() -> None:
    """Between two steps a preview is drawn, in inference mode."""
    layer, x = Buffered(), normal(4, 3, IN).requires_grad_()
    with torch.inference_mode():
        expected = layer(x)
    y = FrozenLayer(layer, lend_weights)(x)
    y.sum().backward()
    assert error(y.detach(), expected) < 1e-5
    assert error(x.grad, Packed().cast_bias_weight(x.detach())[0].sum(0)) < 1e-5


def test_an_8_bit_weight_without_its_scales_is_refused() -> None:
    layer = eight_bit()
    layer.weight.SCB = None
    with pytest.raises(AtelierError, match="8-bit weights came without their scales"):
        FrozenLayer(layer, lend_weights)(normal(2, 8, IN))
