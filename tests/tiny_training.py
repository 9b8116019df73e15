"""Training runs on the tiny SD1.5 model, for tests that run inside ComfyUI's modules.

Import it after `comfy_modules.make_importable()`, as every test under tests/host is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import torch
from torch import Tensor, nn

from in_memory import encoded_dataset
from lora_atelier.nodes.live.monitor import RunMonitor, watched
from lora_atelier.nodes.train.run_in_graph import RunOptions, train_in_graph
from lora_atelier.training.base_model.precision import MixedPrecision
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.encoders import encode_captions
from lora_atelier.training.network.adapters.dora import DoRA
from lora_atelier.training.network.build import NetworkSpec, build_network
from lora_atelier.training.objective.batch_losses import batch_losses
from lora_atelier.training.optimizers.lr_scheduler import LRSchedulerSpec, LRSchedulerType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.runs.listener import Listener
from lora_atelier.training.runs.run import (
    Predict,
    StepRecord,
    TrainingRun,
    TrainingSpec,
    TrainingState,
)

CAPTIONS = ("a red fox", "two grey cats on a wall", "a glass of water", "one old blue bicycle")
LATENT = (4, 8, 8)
"""Shape of the latent of a 64 px picture."""


@dataclass(frozen=True)
class Parts:
    """What the three outputs of a checkpoint loader give."""

    model: Any
    clip: Any
    vae: Any


@torch.inference_mode()  # as nodes run: the weights become inference tensors
def load_parts(checkpoint: Path, dtype: torch.dtype | None = None) -> Parts:
    """MODEL, CLIP and VAE; `dtype` is the type in which the UNet is stored, as the loader's."""
    options = {} if dtype is None else {"dtype": dtype}
    return Parts(*comfy.sd.load_checkpoint_guess_config(str(checkpoint), model_options=options)[:3])


@torch.inference_mode()
def load_model(weights: Mapping[str, Tensor]) -> Any:
    """The MODEL of a checkpoint that lies in memory."""
    return comfy.sd.load_state_dict_guess_config(dict(weights), output_vae=False)[0]


@torch.inference_mode()
def encode(clip: Any, captions: Sequence[str]) -> dict[str, Any]:
    """Caption -> conditioning, through the pack's own encoder."""
    return encode_captions(clip, captions, lambda: None)


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers that autograd accepts."""
    with torch.inference_mode(False):
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quick_spec(**changes: Any) -> TrainingSpec:
    """A run whose first step already moves the weights: no warm-up, a high constant rate."""
    settings: dict[str, Any] = {
        "network": NetworkSpec(4, 2.0),
        "optimizer": OptimizerSpec(unet_lr=1e-3),
        "lr_scheduler": LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.0),
        "mixed_precision": MixedPrecision.NO,
        "max_train_steps": 6,
        "seed": 7,
    }
    return TrainingSpec(**{**settings, **changes})


def make_run(
    model: Any, conditioning: Mapping[str, Any], spec: TrainingSpec | None = None
) -> TrainingRun:
    """A run over one picture a caption, whose latents are random numbers."""
    latents = [normal(1000 + i, *LATENT) for i in range(len(conditioning))]
    data = encoded_dataset(latents, conditioning)
    return TrainingRun(spec or quick_spec(), data, HostDiffusionModel(model))


class Recorder(Listener):
    """Keeps what it hears."""

    def __init__(self, on_micro_step: Callable[[], None] = lambda: None) -> None:
        self.on_micro_step = on_micro_step
        self.records: list[StepRecord] = []
        self.interrupted: list[TrainingState] = []

    def on_step(self, record: StepRecord, last_step: int, freeze: Any) -> None:
        self.records.append(record)

    def on_interrupted(self, state: TrainingState) -> None:
        self.interrupted.append(state)


def train_as_node(
    state: TrainingState, steps: int, monitor: RunMonitor | None = None
) -> TrainingState:
    """Train on as the nodes do it, with their files, progress and Cancel."""
    with nullcontext(monitor) if monitor else watched(state.history) as watching:
        return train_in_graph(state, state.step + steps, RunOptions(), watching)


def worked_network(model: HostDiffusionModel, spec: NetworkSpec) -> nn.ModuleDict:
    """Adapters as after a long training: what begins at zero is not, so every factor matters."""
    with torch.inference_mode(False), torch.no_grad():
        network = build_network(model.layers(spec), spec, seed=3)
        with model.frozen_layers() as layers:
            for name, adapter in network.items():
                adapter.begin(layers[name])
        for i, adapter in enumerate(network.values()):
            for parameter in adapter.parameters():
                if not parameter.any():
                    parameter.copy_(normal(2000 + i, *parameter.shape) * 0.02)
            if isinstance(adapter, DoRA):
                adapter.dora_scale *= 1 + 0.1 * normal(3000 + i, *adapter.dora_scale.shape)
        return network


@contextmanager
def predicting(
    model: HostDiffusionModel,
    network: Mapping[str, nn.Module] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Predict]:
    """Lend the raw prediction of the model with `network` on it, with autograd on."""
    with torch.inference_mode(False), torch.enable_grad():
        with model.training(network or {}, dtype) as predict:
            yield predict


def first_losses(run: TrainingRun, dtype: torch.dtype = torch.float32) -> Tensor:
    """[B] losses of the first micro-batch of a run, before anything was learned."""
    with predicting(run.model, dtype=dtype) as predict:
        return batch_losses(run, run.plan.batch(0), predict)
