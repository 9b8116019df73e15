"""The LoRA network: small trainable matrices beside the frozen layers they adapt.

              x ──────────── frozen W ────────────┐
              │                                   +──> y = W x + (alpha / dim) · up(down(x))
              └── down [dim,in] ── up [out,dim] ──┘

``down`` starts Kaiming-uniform (a = √5), ``up`` at zero, so step 0 is the base model exactly
(Hu et al. 2021, arXiv:2106.09685; the initialisation of kohya-ss/sd-scripts, networks/lora.py).
The state dict of a network *is* the LoRA file: keys ``<layer>.lora_down.weight``,
``<layer>.lora_up.weight`` and ``<layer>.alpha``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import require, require_number
from .random_streams import generator

MAX_NETWORK_DIM = 1024


@dataclass(frozen=True)
class NetworkSpec:
    """What to train: the size of the adapters. Which layers, is said by ``training.targets``."""

    network_dim: int = 16
    """Rank of the two matrices."""
    network_alpha: float = 16.0
    """Adapter strength; the update is scaled by ``network_alpha / network_dim``."""

    def __post_init__(self) -> None:
        require(
            isinstance(self.network_dim, int) and 1 <= self.network_dim <= MAX_NETWORK_DIM,
            f"network_dim is {self.network_dim}: the rank must be a whole number from 1 to "
            f"{MAX_NETWORK_DIM}. 16 suits most styles, 32 an anime style, 128 a character.",
        )
        require_number(
            "network_alpha", self.network_alpha, 1e-3, 1e4, "Half the rank or the rank is usual."
        )


class LoRALinear(nn.Module):
    """Low-rank side path of a Linear layer: ``[..., in] -> [..., out]``."""

    def __init__(self, layer: nn.Module, spec: NetworkSpec, rng: torch.Generator) -> None:
        super().__init__()
        self.lora_down = nn.Linear(layer.in_features, spec.network_dim, bias=False)
        self.lora_up = nn.Linear(spec.network_dim, layer.out_features, bias=False)
        _initialise(self, spec, rng)

    def forward(self, x: Tensor) -> Tensor:
        down = nn.functional.linear(x, self.lora_down.weight.to(x.dtype))
        return nn.functional.linear(down, self.lora_up.weight.to(x.dtype)) * self.scale


class LoRAConv2d(nn.Module):
    """Low-rank side path of a 2-D convolution: ``[B, in, H, W] -> [B, out, H', W']``.

    ``down`` keeps the layer's kernel, stride and padding; ``up`` is 1×1.
    """

    def __init__(self, layer: nn.Conv2d, spec: NetworkSpec, rng: torch.Generator) -> None:
        super().__init__()
        self.lora_down = nn.Conv2d(
            layer.in_channels,
            spec.network_dim,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            bias=False,
        )
        self.lora_up = nn.Conv2d(spec.network_dim, layer.out_channels, 1, bias=False)
        _initialise(self, spec, rng)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.lora_down
        down = nn.functional.conv2d(
            x, conv.weight.to(x.dtype), None, conv.stride, conv.padding, conv.dilation
        )
        return nn.functional.conv2d(down, self.lora_up.weight.to(x.dtype)) * self.scale


def _initialise(adapter: nn.Module, spec: NetworkSpec, rng: torch.Generator) -> None:
    adapter.scale = spec.network_alpha / spec.network_dim
    adapter.register_buffer("alpha", torch.tensor(float(spec.network_alpha)))
    nn.init.kaiming_uniform_(adapter.lora_down.weight, a=math.sqrt(5), generator=rng)
    nn.init.zeros_(adapter.lora_up.weight)


def build_network(layers: Mapping[str, nn.Module], spec: NetworkSpec, seed: int) -> nn.ModuleDict:
    """Make one adapter a layer, in float32 on the CPU.

    Args:
        layers: file name of the adapter (``lora_unet_…``, no dots) -> the frozen layer.
        seed: each adapter's start depends on it and on its own name alone, so choosing other
            layers does not change how these begin.
    """
    require(len(layers) > 0, "No layer of this model can be trained with the chosen network.")
    network = nn.ModuleDict()
    # nn.Linear draws its first weights from the global stream, which is the host's: give it back.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        for name, layer in layers.items():
            kind = LoRAConv2d if isinstance(layer, nn.Conv2d) else LoRALinear
            network[name] = kind(layer, spec, generator(seed, "network", name))
    return network
