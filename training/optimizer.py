"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import nn

from .errors import needed_package, require_number


class OptimizerType(str, Enum):
    """Names as kohya-ss/sd-scripts spells them."""

    ADAMW = "AdamW"
    ADAMW_8BIT = "AdamW8bit"


@dataclass(frozen=True)
class OptimizerSpec:
    """The optimizer and its rates."""

    optimizer_type: OptimizerType = OptimizerType.ADAMW
    unet_lr: float = 1e-4
    """Learning rate of the diffusion model's adapters (U-Net or DiT)."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    """Gradients longer than this are scaled down to it; 0 = never."""

    def __post_init__(self) -> None:
        require_number("unet_lr", self.unet_lr, 0, 1e6, "1e-4 is a good start for AdamW.")
        require_number("weight_decay", self.weight_decay, 0, 10, "0.01 is usual, 0 = off.")
        require_number("max_grad_norm", self.max_grad_norm, 0, 1e6, "1 is usual, 0 = off.")


def build_optimizer(
    parameters: Iterable[nn.Parameter], spec: OptimizerSpec
) -> torch.optim.Optimizer:
    """Raises :class:`AtelierError` when the optimizer's package is not installed."""
    if spec.optimizer_type is OptimizerType.ADAMW:
        kind = torch.optim.AdamW
    else:
        kind = needed_package("bitsandbytes.optim", "optimizer_type AdamW8bit").AdamW8bit
    return kind(list(parameters), lr=spec.unet_lr, weight_decay=spec.weight_decay)
