"""How many ranks are left of a LoRA.

The shares are reckoned as kohya-ss/sd-scripts does (networks/resize_lora.py, ``--dynamic_method``),
except that all of the ranks may be kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ..errors import require_number


class DynamicMethod(str, Enum):
    """How the rank of each layer is chosen."""

    NONE = "none"
    SV_FRO = "sv_fro"
    """The share of ‖ΔW‖ that is kept."""
    SV_CUMULATIVE = "sv_cumulative"
    """The share of the sum of the singular values that is kept."""
    SV_RATIO = "sv_ratio"
    """Singular values up to so many times smaller than the largest are kept."""


@dataclass(frozen=True)
class Resize:
    """The rank of the result."""

    network_dim: int = 0
    """At most; 0 = whatever comes out."""
    conv_dim: int = 0
    """The same for convolutions wider than 1×1; 0 = as network_dim."""
    method: DynamicMethod = DynamicMethod.NONE
    param: float = 0.9

    def __post_init__(self) -> None:
        for name in ("network_dim", "conv_dim"):
            require_number(name, getattr(self, name), 0, 4096, "0 = as it is; 4 to 32 is usual.")
        if self.method in (DynamicMethod.SV_FRO, DynamicMethod.SV_CUMULATIVE):
            advice = f"It is a share for {self.method.value}: 0.9 is usual."
            require_number("dynamic_param", self.param, 0.01, 1, advice)
        if self.method is DynamicMethod.SV_RATIO:
            advice = "For sv_ratio it is how many times smaller: 10 is usual."
            require_number("dynamic_param", self.param, 1.01, 1e6, advice)

    @property
    def changes_nothing(self) -> bool:
        """Whether every layer keeps its rank."""
        return self.method is DynamicMethod.NONE and not self.network_dim and not self.conv_dim

    def most(self, is_spatial: bool) -> int:
        """The highest rank of a layer; 0 = any."""
        return (self.conv_dim or self.network_dim) if is_spatial else self.network_dim


def chosen_rank(values: Tensor, resize: Resize, most: int) -> int:
    """How many of the singular values [n] are kept: at least one.

    Args:
        most: the highest rank; 0 = any.
    """
    largest = float(values[0])
    # What is left of an exact zero after rounding is no rank.
    rank = int((values > largest * len(values) * torch.finfo(values.dtype).eps).sum())
    doubles = values.double()
    if resize.method is DynamicMethod.SV_RATIO:
        rank = min(rank, int((doubles > largest / resize.param).sum()))
    elif resize.method is not DynamicMethod.NONE:
        is_fro = resize.method is DynamicMethod.SV_FRO
        sums = doubles.square().cumsum(0) if is_fro else doubles.cumsum(0)
        target = resize.param**2 if is_fro else resize.param
        rank = min(rank, int((sums < target * sums[-1]).sum()) + 1)
    return max(1, min(rank, most) if most else rank)
