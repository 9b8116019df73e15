"""A real, tiny diffusion model for the engine's tests: an MLP on 4×2×2 latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from in_memory import encoded_dataset
from lora_atelier.training.base_model.frozen import FrozenLayer
from lora_atelier.training.base_model.precision import MixedPrecision, compute_dtype
from lora_atelier.training.base_model.training_context import training_context
from lora_atelier.training.memory.allocations import Allocations
from lora_atelier.training.memory.rehearsal import SHAPES
from lora_atelier.training.network.build import NetworkSpec
from lora_atelier.training.network.targets import TargetLayer
from lora_atelier.training.objective.objective import NoiseSchedule, PredictionType
from lora_atelier.training.runs.listener import Listener
from lora_atelier.training.runs.run import StepRecord, TrainingRun, TrainingSpec, TrainingState
from lora_atelier.training.runs.validation import ValidationPoint

LATENT = (4, 2, 2)
WIDTH = 64
CAPTION_WIDTH = 4


class Denoiser(nn.Module):
    """[B, 16] latent, [B] noise level and [B, 4] caption -> [B, 16]."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(math.prod(LATENT) + 1 + CAPTION_WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.outside = nn.Linear(WIDTH, math.prod(LATENT))

    def forward(self, noisy: Tensor, sigmas: Tensor, captions: Tensor) -> Tensor:
        scaled = noisy.flatten(1) / (1 + sigmas.square()).sqrt().unsqueeze(1)
        x = torch.cat([scaled, sigmas.log().unsqueeze(1) / 4, captions], dim=1)
        return self.outside(nn.functional.silu(self.norm(self.inside(x)))).view(noisy.shape)


@contextmanager
def lend(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A layer's own weight and bias, in the type of `like`."""
    yield layer.weight.to(like), None if layer.bias is None else layer.bias.to(like)


class SmallDiffusionModel:
    """Satisfies `training.runs.run.DiffusionModel`; `answer` may change each prediction."""

    def __init__(self, answer: Callable[[Tensor], Tensor] = lambda prediction: prediction) -> None:
        with torch.inference_mode(), torch.random.fork_rng():  # as the host makes its weights
            torch.manual_seed(1234)
            self.net = Denoiser()
        self.answer = answer
        self.device = torch.device("cpu")
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
        products = (1 - betas).cumprod(0)
        sigmas = ((1 - products) / products).sqrt().float()
        self.schedule = NoiseSchedule(PredictionType.EPSILON, sigmas)

    def layers(self, spec: NetworkSpec) -> dict[str, TargetLayer]:
        return {
            f"lora_unet_{name}": TargetLayer(getattr(self.net, name), name, name)
            for name in ("inside", "outside")
        }

    @contextmanager
    def frozen_layers(self) -> Iterator[dict[str, FrozenLayer]]:
        layers = self.layers(NetworkSpec())
        yield {name: FrozenLayer(target.layer, lend) for name, target in layers.items()}

    def compute_dtype(self, choice: MixedPrecision) -> torch.dtype:
        return compute_dtype(choice, torch.float32, self.device, bf16_is_fast=False)

    def stored_bytes(self) -> tuple[int, int]:
        return sum(p.numel() * p.element_size() for p in self.net.parameters()), 0

    @contextmanager
    def rehearsing(
        self, network: Mapping[str, nn.Module], dtype: torch.dtype, memory: Allocations
    ) -> Iterator[Any]:
        with self._differentiable(network, dtype, SHAPES) as predict:
            yield predict

    @contextmanager
    def training(
        self,
        network: Mapping[str, nn.Module],
        dtype: torch.dtype,
        memory_required: Callable[[], int] = lambda: 0,
    ) -> Iterator[Any]:
        self.memory_required = memory_required
        with self._differentiable(network, dtype, self.device) as predict:
            yield predict

    @contextmanager
    def _differentiable(
        self, network: Mapping[str, nn.Module], dtype: torch.dtype, device: torch.device
    ) -> Iterator[Any]:
        adapters = {name.removeprefix("lora_unet_"): network[name] for name in network}

        def predict(noisy: Tensor, sigmas: Tensor, conditioning: list, placements: list) -> Tensor:
            captions = torch.stack(conditioning).to(device, dtype)
            return self.answer(self.net(noisy.to(dtype), sigmas.to(dtype), captions).float())

        with training_context(self.net, adapters, lend, torch.float32, dtype, device):
            yield predict


class RecordingListener(Listener):
    """Keeps what the loop says; raises `error` before micro-step or after step number `at`.

    Args:
        finish: the step after which it asks for the end.
    """

    def __init__(
        self,
        *,
        micro_step: int = 0,
        step: int = 0,
        error: BaseException | None = None,
        finish: int = 0,
    ):
        self.micro_step, self.step, self.error, self.finish = micro_step, step, error, finish
        self.micro_steps = 0
        self.records: list[tuple[StepRecord, int]] = []
        self.validations: list[ValidationPoint] = []
        self.interrupted: list[TrainingState] = []
        self.rolled_back: list[tuple[TrainingState, str]] = []

    def on_rolled_back(self, state: TrainingState, message: str) -> None:
        self.rolled_back.append((state, message))

    def on_micro_step(self) -> None:
        self.micro_steps += 1
        if self.error and self.micro_steps == self.micro_step:
            raise self.error

    def on_step(self, record: StepRecord, last_step: int, freeze: Any) -> None:
        self.records.append((record, last_step))
        if self.error and record.step == self.step:
            raise self.error

    def on_validation(self, point: ValidationPoint) -> None:
        self.validations.append(point)

    def finish_requested(self) -> bool:
        return len(self.records) == self.finish

    def on_interrupted(self, state: TrainingState) -> None:
        self.interrupted.append(state)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small_run(
    repeats: tuple[int, ...] = (1, 1, 1, 1, 1),
    model: SmallDiffusionModel | None = None,
    **choices: Any,
) -> TrainingRun:
    count = len(repeats)
    choices.setdefault("network", NetworkSpec(4, 4.0))
    choices.setdefault("max_train_steps", 6)
    return TrainingRun(
        spec=TrainingSpec(**choices),
        data=encoded_dataset(
            [normal(100 + i, *LATENT) for i in range(count)],
            {f"caption {i}": normal(200 + i, CAPTION_WIDTH) for i in range(count)},
            num_repeats=repeats,
        ),
        model=model or SmallDiffusionModel(),
    )


@pytest.fixture
def make_run() -> Callable[..., TrainingRun]:
    return small_run


@pytest.fixture
def make_model() -> type[SmallDiffusionModel]:
    return SmallDiffusionModel


@pytest.fixture
def make_listener() -> type[RecordingListener]:
    return RecordingListener


@pytest.fixture
def lend_weights() -> Callable[..., Any]:
    return lend
