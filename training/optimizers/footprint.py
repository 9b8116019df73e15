"""How much memory an optimizer takes for each number that it trains, measured on a small LoRA."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ..memory.allocations import Allocations, storages_in
from ..network.adapters.lora import LoRA
from ..random_streams import generator, global_stream
from .optimizer import OptimizerSpec, build_optimizer

WIDTH, RANK = 512, 16
"""8192 numbers a matrix: 8-bit optimizers leave those of less than 4096 in float32."""


class Footprint(NamedTuple):
    """Bytes for each trained number."""

    state: float
    """What the optimizer keeps from step to step."""
    step: float
    """What it takes for the time of a step, beside that."""


@torch.inference_mode(False)
@torch.enable_grad()
def footprint(spec: OptimizerSpec, device: torch.device) -> Footprint:
    """Let the optimizer take two steps where it will train: the first one makes its state.

    Raises:
        AtelierError: as :func:`training.optimizers.optimizer.build_optimizer`.
    """
    with global_stream(device, 0, "footprint"), torch.device("cpu"):
        toy = nn.ModuleDict({"toy": LoRA(nn.Linear(WIDTH, WIDTH), RANK, 1.0, generator(0, "toy"))})
        toy.to(device)
        optimizer = build_optimizer(toy, spec)
        for parameter in toy.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer.step()
        with Allocations() as memory:
            optimizer.step()
    numbers = sum(p.numel() for p in toy.parameters())
    given = {id(s) for s in storages_in([list(toy.parameters())])}
    kept = {id(s): s.nbytes() for s in storages_in([optimizer.state, optimizer.param_groups])}
    state = sum(size for key, size in kept.items() if key not in given)
    return Footprint(state / numbers, memory.peak / numbers)
