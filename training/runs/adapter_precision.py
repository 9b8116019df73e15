"""Adapters in bfloat16 between the optimizer steps, in float32 during them.

A run needs most memory in backward, where activations live beside the adapters and their gradients.
In bfloat16 these take half. Steps at usual learning rates would be lost in its 8 bits, so two ways
are offered to come back from the float32 of the step (Zamirai et al. 2020, "Revisiting BFloat16
Training", arXiv:2010.06192):

    stochastic rounding   w ← one of the two neighbours of w, by chance, so that the mean is w
    Kahan                 w ← round(w + c),   c ← round(w + c − what that gave)

Rounding draws from the seed and the step alone, and what Kahan keeps is a function of w + c, so a
run that is stopped and goes on is the run that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum

import torch
from torch import Tensor

from ..network.adapters.base import Adapter
from ..random_streams import global_stream


class AdapterPrecision(str, Enum):
    """Widget values."""

    FP32 = "fp32"
    BF16_STOCHASTIC = "bf16_stochastic"
    BF16_KAHAN = "bf16_kahan"

    @property
    def is_narrow(self) -> bool:
        return self is not AdapterPrecision.FP32


class AdapterStorage:
    """How the adapters of a network are stored between steps; with ``fp32`` nothing happens.

    The Parameters stay the same objects, which the optimizer holds; their numbers are exchanged.

    Args:
        network: float32, ready on its device; narrow from now on.
        seed: of the run.
        step: last whole step of the run.
    """

    def __init__(
        self, network: Mapping[str, Adapter], precision: AdapterPrecision, seed: int, step: int
    ) -> None:
        self.precision = precision
        self.seed = seed
        self._lost: dict[torch.nn.Parameter, Tensor] = {}
        """bfloat16: what rounding took from a weight (Kahan's compensation)."""
        self._parameters = [
            parameter
            for adapter in network.values()
            for name, parameter in adapter.named_parameters()
            if precision.is_narrow and name not in adapter.stays_float32
        ]
        self._narrow(step)

    @contextmanager
    def widened(self, step: int) -> Iterator[None]:
        """Weights and gradients in float32; gradients are gone afterwards.

        Weights that nothing has changed come back as they were, bit for bit.

        Args:
            step: the step that is being taken.
        """
        self._widen()
        try:
            yield
        finally:
            self._narrow(step)

    @torch.no_grad()
    def _widen(self) -> None:
        for parameter in self._parameters:
            gradient, parameter.grad = parameter.grad, None
            parameter.data = parameter.data.float()
            if parameter in self._lost:
                parameter.data += self._lost.pop(parameter)
            if gradient is not None:
                parameter.grad = gradient.float()

    @torch.no_grad()
    def _narrow(self, step: int) -> None:
        if not self._parameters:
            return
        with global_stream(self._parameters[0].device, self.seed, "rounding", step):
            for parameter in self._parameters:
                parameter.grad = None
                if self.precision is AdapterPrecision.BF16_KAHAN:
                    parameter.data, self._lost[parameter] = with_compensation(parameter.data)
                else:
                    parameter.data = stochastically_rounded(parameter.data)


def stochastically_rounded(values: Tensor) -> Tensor:
    """float32 -> bfloat16, up or down with the chances that keep the mean.

    bfloat16 is the upper half of a float32: a random number of 16 bits is added, and the lower half
    cut off. What is a bfloat16 already stays itself. Draws from torch's own stream.
    """
    chance = torch.randint_like(values, 1 << 16, dtype=torch.int32)
    rounded = (values.view(torch.int32) + chance) & ~0xFFFF
    # The sum may carry through the bits of a NaN and make a number of it.
    return torch.where(values.isfinite(), rounded.view(torch.float32), values).bfloat16()


def with_compensation(values: Tensor) -> tuple[Tensor, Tensor]:
    """float32 -> two bfloat16 whose sum is as near to it as can be, the first of them rounded.

    The pair is the one that its own float32 sum would be divided into: where what is lost rounds to
    half a digit of the first, that sum is a tie, which may belong to the neighbour.
    """
    rounded = values.bfloat16()
    total = rounded.float() + (values - rounded.float()).bfloat16().float()
    rounded = total.bfloat16()
    return rounded, (total - rounded.float()).bfloat16()
