"""What a training run consists of, and the value in which it is frozen at one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..base_model.facts import BaseModelFacts
from ..base_model.frozen import FrozenLayer
from ..base_model.precision import MixedPrecision, setting_for
from ..dataset.fit import Placement
from ..dataset.samples import ImageDataset
from ..errors import require_number
from ..memory.allocations import Allocations
from ..memory.estimate import MemoryEstimate, estimate_memory
from ..network.build import CPU, NetworkSpec, build_network
from ..network.targets import TargetLayer
from ..objective.objective import NoiseSchedule, ObjectiveSpec
from ..optimizers.lr_scheduler import LRSchedulerSpec
from ..optimizers.optimizer import OptimizerSpec
from .adapter_precision import AdapterPrecision
from .batches import BatchPlan, Draw
from .examples import Conditioning, EncodedDataset, Example, Items, items
from .guard import OnDivergence
from .validation import HeldOut, ValidationPoint, steps_between

Predict = Callable[[Tensor, Tensor, list[Conditioning], list[Placement]], Tensor]
"""``predict(noisy_latents [B, C, …], sigmas [B], conditioning [B], placements [B]) -> [B, C, …]``
float32: the model's raw answer, differentiable in the adapters. The placements are for models that
are told the size and the cut of a picture (SDXL)."""


class DiffusionModel(Protocol):
    """The host's frozen model, as far as the engine knows it."""

    device: torch.device
    schedule: NoiseSchedule

    def layers(self, spec: NetworkSpec) -> Mapping[str, TargetLayer]:
        """Name in the LoRA file -> layer that gets an adapter."""
        ...

    def frozen_layers(self) -> AbstractContextManager[Mapping[str, FrozenLayer]]:
        """The layers by their names in the file, able to lend their weights."""
        ...

    def compute_dtype(self, choice: MixedPrecision) -> torch.dtype: ...

    def stored_bytes(self) -> tuple[int, int]:
        """Of the weights of the model, and of the text encoders that are trained beside it."""
        ...

    def training(
        self,
        network: Mapping[str, nn.Module],
        dtype: torch.dtype,
        memory_required: Callable[[], int] = ...,
    ) -> AbstractContextManager[Predict]:
        """Lend a prediction function; leave the model untouched afterwards.

        Args:
            memory_required: asked where memory is scarce, for the bytes to leave free.
        """
        ...

    def rehearsing(
        self, network: Mapping[str, nn.Module], dtype: torch.dtype, memory: Allocations
    ) -> AbstractContextManager[Predict]:
        """As ``training``, on tensors without numbers and of weights that nobody loads.

        Args:
            memory: counts what is made; not the weights that a loaded model would hold.
        """
        ...


@dataclass(frozen=True)
class TrainingSpec:
    """Every choice that decides the result of a run."""

    network: NetworkSpec = field(default_factory=NetworkSpec)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    lr_scheduler: LRSchedulerSpec = field(default_factory=LRSchedulerSpec)
    objective: ObjectiveSpec = field(default_factory=ObjectiveSpec)
    mixed_precision: MixedPrecision = MixedPrecision.AUTO
    max_train_steps: int = 1000
    """Optimizer steps; the horizon of the learning-rate schedule."""
    train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    seed: int = 0
    adapter_precision: AdapterPrecision = AdapterPrecision.FP32
    gradient_checkpointing: bool = False
    compile_blocks: bool = False
    on_divergence: OnDivergence = OnDivergence.STOP
    validate_every_n_steps: int = 0
    """0 = about 20 times in a run, but not more often than every 10 steps; -1 = never."""

    def __post_init__(self) -> None:
        require_number(
            "max_train_steps", self.max_train_steps, 1, 10_000_000, "1000 to 3000 is usual."
        )
        require_number("train_batch_size", self.train_batch_size, 1, 4096, "1 to 8 is usual.")
        require_number(
            "gradient_accumulation_steps", self.gradient_accumulation_steps, 1, 4096, "1 = off."
        )
        every = self.validate_every_n_steps
        require_number("validate_every_n_steps", every, -1, 10_000_000, "0 = automatic, -1 = off.")

    @property
    def samples(self) -> int:
        """Pictures the whole run looks at, repeats counted."""
        pictures_a_step = self.train_batch_size * self.gradient_accumulation_steps
        return self.max_train_steps * pictures_a_step

    @property
    def steps_between_validations(self) -> int | None:
        """None = never."""
        return steps_between(self.validate_every_n_steps, self.max_train_steps)


@dataclass(frozen=True)
class Ingredients:
    """Digests of everything a run is made from; "" where one cannot be told."""

    model: str = ""
    clip: str = ""
    vae: str = ""
    dataset: str = ""
    conditioning: str = ""
    """In place of ``clip``, where the graph gave it ready-made."""
    latents: str = ""
    """In place of ``vae``, likewise."""

    @property
    def are_known(self) -> bool:
        texts, pictures = self.clip or self.conditioning, self.vae or self.latents
        return all((self.model, texts, pictures, self.dataset))

    def differences(self, other: Ingredients) -> list[str]:
        """Names of what is not the same, for people; what cannot be told is passed over."""
        mine, theirs = asdict(self), asdict(other)
        told = [name for name in mine if mine[name] and theirs[name]]
        once_ready = [n for n in ("conditioning", "latents") if bool(mine[n]) != bool(theirs[n])]
        return [name for name in told if mine[name] != theirs[name]] + once_ready


@dataclass(frozen=True)
class TrainingRun:
    """What stays the same from the first step of a run to the last."""

    spec: TrainingSpec
    data: EncodedDataset
    model: DiffusionModel
    ingredients: Ingredients = Ingredients()
    identity: str = ""
    """Equal identities give equal weights (:mod:`training.runs.identity`); "" = unknown."""
    models: Any = None
    """MODEL, CLIP and VAE of the graph; opaque to the engine."""
    base: BaseModelFacts = BaseModelFacts()
    """Names of the base model's family, for the LoRA's metadata."""
    resolved_precision: MixedPrecision = MixedPrecision.AUTO
    """What ``auto`` came to when the run began, where a state remembers it."""

    @property
    def mixed_precision(self) -> MixedPrecision:
        """The choice, and for ``auto`` what it comes to: the same from the first step to the
        last."""
        return setting_for(self.compute_dtype)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of activations."""
        chosen = self.spec.mixed_precision
        if chosen is MixedPrecision.AUTO:
            chosen = self.resolved_precision
        return self.model.compute_dtype(chosen)

    @property
    def dataset(self) -> ImageDataset:
        """The pictures that train, without those that turned out to be broken."""
        return self.data.dataset

    @cached_property
    def plan(self) -> BatchPlan:
        """Which items are seen when."""
        return BatchPlan(
            self._items.num_repeats,
            self._items.buckets,
            self.spec.train_batch_size,
            self.spec.seed,
        )

    @cached_property
    def held_out(self) -> HeldOut:
        """What is validated."""
        return HeldOut(self.dataset, self.spec.train_batch_size)

    @cached_property
    def memory(self) -> MemoryEstimate:
        """What the run will need; the first time this takes a second or two."""
        return estimate_memory(self)

    def memory_required(self) -> int:
        """Bytes that training needs beside the weights of the models."""
        return self.memory.beside_weights

    def new_network(self, device: torch.device = CPU) -> nn.ModuleDict:
        """The adapters as they begin, for want of what they take over from the weights."""
        network = self.spec.network
        return build_network(self.model.layers(network), network, self.spec.seed, device)

    def example(self, draw: Draw) -> Example:
        """What the model sees at one place of the run."""
        sample, resolution = self._items.views[draw.item]
        return self.data.example(sample, resolution, self.spec.seed, draw)

    @cached_property
    def _items(self) -> Items:
        return items(self.dataset)


@dataclass(frozen=True)
class StepRecord:
    """One line of a run's history."""

    step: int
    """1 for the first optimizer step."""
    epoch: int
    loss: float
    learning_rate: float
    """The rate this step was taken with; times the step size ``d`` for optimizers that find one."""
    grad_norm: float
    """Length of the gradient before clipping."""
    skipped: bool = False
    """float16 only: the loss scaler found an overflow and left the weights as they were."""


@dataclass(frozen=True)
class TrainingState:
    """A run frozen at one step; training on from it is a pure function of it.

    There is no random-number state: noise, order and initial weights are functions of the seed
    and the position (:mod:`training.random_streams`).
    """

    run: TrainingRun
    step: int
    network: Mapping[str, Tensor]
    """The adapters as in the LoRA file, the ones to use, float32, on the CPU."""
    optimizer: Mapping[str, Any] | None = None
    """State dicts of optimizer, schedule and loss scaler; None before the first step."""
    history: tuple[StepRecord, ...] = ()
    training_weights: Mapping[str, Tensor] | None = None
    """The adapters that training goes on from, where ``network`` is an average of them."""
    validations: tuple[ValidationPoint, ...] = ()

    def get_ram_usage(self) -> int:
        """Bytes; asked by ComfyUI's RAM-pressure cache. Latents and texts lie on disk."""
        tensors = [
            *self.network.values(),
            *_tensors(self.optimizer),
            *_tensors(self.training_weights),
        ]
        return sum(t.numel() * t.element_size() for t in tensors)


@torch.inference_mode(False)
def start(run: TrainingRun) -> TrainingState:
    """The run at step 0: adapters that change nothing yet, or those of the LoRA to continue."""
    network = run.new_network()
    targets = run.model.layers(run.spec.network)
    fresh = [n for n, a in network.items() if a.needs_weights and targets[n].start is None]
    if fresh:
        with run.model.frozen_layers() as layers:
            for name in fresh:
                network[name].begin(layers[name])
    return TrainingState(run, 0, dict(network.state_dict()))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in _tensors(item)]
    if isinstance(value, list | tuple):
        return [t for item in value for t in _tensors(item)]
    return []
