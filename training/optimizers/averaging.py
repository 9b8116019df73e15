"""Weights to use that are not the weights being trained.

A LoRA may be a moving average of what the steps give (``ema_decay``), and some optimizers keep an
average of their own (schedule-free). Training goes on from the raw weights, bit for bit.

    ema ← ema + (1 − d) · (weights − ema),   d = min(decay, (1 + step) / (10 + step))

The growing decay keeps the start, where the LoRA is still nothing, from weighing on the average
(as TensorFlow's ExponentialMovingAverage does with ``num_updates``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """Exponential moving average of a network's parameters."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step number ``step`` (1 is the first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in network.named_parameters():
            self.values[name].lerp_(parameter.detach(), 1 - decay)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from these."""
        for name, value in self.values.items():
            value.copy_(values[name])


def keeps_an_average(optimizer: torch.optim.Optimizer) -> bool:
    """True for optimizers whose weights to use come from their own ``eval()``."""
    return callable(getattr(optimizer, "eval", None))


@contextmanager
def weights_to_use(
    network: nn.Module, optimizer: torch.optim.Optimizer, average: MovingAverage | None
) -> Iterator[None]:
    """Put the weights to use into ``network``; afterwards the raw ones are back, bit for bit.

    An optimizer's own way there and back (``eval()``, ``train()``) rounds, so the raw weights are
    kept beside it.
    """
    raw = {name: p.detach().clone() for name, p in network.named_parameters()}
    own = average is None and keeps_an_average(optimizer)
    if average is not None:
        _put(network, average.values)
    elif own:
        optimizer.eval()
    try:
        yield
    finally:
        if own:
            optimizer.train()
        _put(network, raw)


@torch.no_grad()
def _put(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    for name, parameter in network.named_parameters():
        parameter.copy_(values[name])
