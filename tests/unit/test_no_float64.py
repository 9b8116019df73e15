"""Nothing of the loss is float64 on the device of the model: MPS, for one, has no such numbers."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_atelier.training.objective.loss_types import HuberSchedule, LossSpec, LossType
from lora_atelier.training.objective.noise_schedule import NoiseSchedule, PredictionType
from lora_atelier.training.objective.objective import ObjectiveSpec, add_noise, sample_losses
from lora_atelier.training.objective.weighting import Weighting

DEVICE = torch.device("meta")
"""Not the CPU, and there everywhere."""


class TypesOnDevice(TorchDispatchMode):
    """Keeps the types of all tensors that come into being on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        self.seen |= {tensor.dtype for tensor in made if tensor.device == DEVICE}
        return result


@pytest.mark.parametrize("kind", PredictionType)
def test_noise_target_and_loss_are_at_most_float32_on_the_device(kind: PredictionType) -> None:
    schedule = NoiseSchedule(kind, torch.linspace(0.01, 0.99, 1000))
    latents, sigmas = torch.empty(2, 4, 8, 8, device=DEVICE), torch.empty(2, device=DEVICE)
    weightings = [Weighting.NONE] if schedule.is_flow else list(Weighting)
    for weighting, loss_type, huber in product(weightings, LossType, HuberSchedule):
        spec = ObjectiveSpec(weighting=weighting, loss=LossSpec(loss_type, huber_schedule=huber))
        with TypesOnDevice() as types:
            noised = add_noise(latents, latents, sigmas, schedule, spec)
            sample_losses(latents, noised, torch.ones(2, 8, 8))
        assert torch.float32 in types.seen
        assert torch.float64 not in types.seen, (weighting, loss_type, huber)
