"""Four passes over one picture and one pass over four have the same gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_atelier.training.objective.loss_types import LossSpec, LossType
from lora_atelier.training.objective.objective import ObjectiveSpec
from lora_atelier.training.optimizers.lr_scheduler import LRSchedulerSpec, LRSchedulerType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingRun, start

Make = Callable[..., Any]
PICTURES = 4
CONSTANT = LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.0)


@dataclass(frozen=True)
class DoubleRun(TrainingRun):
    """A run whose adapters are float64."""

    def new_network(self) -> nn.ModuleDict:
        return super().new_network().double()


@pytest.fixture
def double(make_run: Make, make_model: Make) -> Callable[..., DoubleRun]:
    """A run in float64 from the latents to the optimizer; the noise keeps float32's numbers."""

    class DoubleModel(make_model):
        def compute_dtype(self, choice: object) -> torch.dtype:
            return torch.float64

        @contextmanager
        def training(self, network: Mapping[str, nn.Module], dtype: torch.dtype, *rest: Any):
            wide: list[Tensor] = []
            with super().training(network, dtype, *rest) as predict:
                self.answer = lambda prediction: wide.append(prediction) or prediction

                def exactly(*inputs: Any) -> Tensor:
                    predict(*inputs)
                    return wide.pop()

                yield exactly

    def run(**choices: Any) -> DoubleRun:
        plain = make_run(model=DoubleModel(), **choices)
        images = {
            view: replace(image, latent=image.latent.double())
            for view, image in plain.data.images.items()
        }
        return DoubleRun(plain.spec, replace(plain.data, images=images), plain.model)

    return run


def gradients(make: Callable[..., TrainingRun], listener: Any, **choices: Any) -> list[Tensor]:
    """Of the step after the second, from AdamW's first moment with nothing remembered."""
    optimizer = OptimizerSpec(unet_lr=1e-2, betas="0.0, 0.999", max_grad_norm=0)
    run = make(repeats=(1,) * PICTURES, optimizer=optimizer, lr_scheduler=CONSTANT, **choices)
    state = train(start(run), 3, listener)
    return [moment["exp_avg"] for moment in state.optimizer["optimizer"]["state"].values()]


OBJECTIVES = [
    ObjectiveSpec(),
    ObjectiveSpec(loss=LossSpec(LossType.HUBER)),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["l2", "huber"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["fp32", "fp64"]
)
def test_four_passes_of_one_are_one_pass_of_four(
    make_run: Make,
    double: Make,
    make_listener: Make,
    dtype: torch.dtype,
    tolerance: float,
    objective: ObjectiveSpec,
) -> None:
    make = make_run if dtype is torch.float32 else double
    choices = {"objective": objective}
    one = gradients(make, make_listener(), train_batch_size=PICTURES, **choices)
    four = gradients(make, make_listener(), gradient_accumulation_steps=PICTURES, **choices)
    single = gradients(make, make_listener(), **choices)
    for a, b, other in zip(one, four, single, strict=True):
        assert a.dtype is b.dtype is dtype
        assert a.any()
        assert float((a - b).norm() / a.norm()) <= tolerance
        assert float((a - other).norm() / a.norm()) > 1e-2  # of one picture it is another
