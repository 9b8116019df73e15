"""Learning-rate schedules, from ``transformers``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

from .errors import require_number


class LRSchedulerType(str, Enum):
    """Shape of the rate after warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"


_TRANSFORMERS_NAMES = {
    LRSchedulerType.CONSTANT: "constant_with_warmup",
    LRSchedulerType.COSINE: "cosine",
}


@dataclass(frozen=True)
class LRSchedulerSpec:
    """How the learning rate moves over the run."""

    lr_scheduler: LRSchedulerType = LRSchedulerType.COSINE
    lr_warmup_ratio: float = 0.05
    """Share of the steps in which the rate climbs from 0 to its full value."""

    def __post_init__(self) -> None:
        require_number(
            "lr_warmup_ratio",
            self.lr_warmup_ratio,
            0,
            1,
            "0.05 suits small sets, 0.1 to 0.2 very large ones.",
        )

    def warmup_steps(self, max_train_steps: int) -> int:
        return round(self.lr_warmup_ratio * max_train_steps)


def build_lr_scheduler(
    optimizer: torch.optim.Optimizer, spec: LRSchedulerSpec, max_train_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """A schedule whose horizon is ``max_train_steps`` optimizer steps."""
    from transformers import get_scheduler  # heavy: not at start-up

    return get_scheduler(
        _TRANSFORMERS_NAMES[spec.lr_scheduler],
        optimizer,
        num_warmup_steps=spec.warmup_steps(max_train_steps),
        num_training_steps=max_train_steps,
    )
