"""The weights that the host lends for training are those it samples with."""

from __future__ import annotations

import comfy.ops
import torch

from lora_atelier.training.frozen import FrozenLayer
from lora_atelier.training.host.lent_weights import lend_weights


def test_a_scaled_fp8_layer_trains_with_its_scale() -> None:
    """Its numbers mean nothing without `scale_weight`, which the host applies in its forward."""
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 32, generator=rng) * 0.02
    scale = weight.abs().max() / 448  # the largest e4m3 number
    with torch.inference_mode():
        layer = comfy.ops.scaled_fp8_ops(override_dtype=torch.float8_e4m3fn).Linear(32, 16)
        layer.weight = torch.nn.Parameter((weight / scale).to(torch.float8_e4m3fn), False)
        layer.bias = torch.nn.Parameter(torch.randn(16, generator=rng), False)
        layer.scale_weight = torch.nn.Parameter(scale.clone(), False)
    x = torch.randn(4, 32, generator=rng)
    with torch.no_grad():
        expected = layer(x)
        ours = FrozenLayer(layer, lend_weights)(x)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    exact = torch.nn.functional.linear(x, weight, layer.bias.data)
    torch.testing.assert_close(ours, exact, rtol=0.1, atol=0.05)
