"""A small graph of the pack's own nodes, run in this process with any of its widgets changed.

    Load Image Dataset x 2 -> Combine -> Fit Images? -> Edit Captions? -> Train LoRA
    LoRA Network, Optimizer, LR Scheduler, Loss and Noise -> Prior Preservation? ------^
    Training Checkpoints?, Training Previews? -----------------------------------------^

Those with a question mark take part when a widget of theirs is set. When one of Start Training or
Load Training State is, it and Train Steps stand in for Train LoRA. Import it after
`comfy_modules.make_importable()`, as every test under tests/host is.
"""

from __future__ import annotations

import inspect
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy_extras.nodes_model_advanced as host_sampling
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lora_atelier.nodes import NODES
from lora_atelier.nodes.graph.outputs import runs_folder
from lora_atelier.nodes.train.run_in_graph import run_folder
from lora_atelier.training.errors import AtelierError
from tiny_training import Parts, load_parts
from widget_models import kl_autoencoder, small_flux
from widget_pictures import OTHERS, PICTURES, write_pictures

Settings = Mapping[str, Mapping[str, Any]]
"""Node -> its widgets that are not as they come."""

NODE = {node.define_schema().node_id: node for node in NODES}
LOAD, COMBINE, FIT, EDIT = (
    f"Atelier{name}" for name in ("LoadDataset", "CombineDatasets", "FitImages", "EditCaptions")
)
NETWORK, OPTIMIZER, SCHEDULER, OBJECTIVE, PRIOR = (
    f"Atelier{name}"
    for name in ("Network", "Optimizer", "Scheduler", "Objective", "PriorPreservation")
)
TRAIN, START, STEPS, LOAD_STATE, SAVE_STATE, CHECKPOINTS, PREVIEW = (
    f"Atelier{name}"
    for name in (
        *("TrainLoRA", "StartTraining", "TrainSteps", "LoadState", "SaveState"),
        *("Checkpoints", "Preview"),
    )
)
CONFIG = (LOAD, COMBINE, FIT, EDIT, NETWORK, OPTIMIZER, SCHEDULER, OBJECTIVE, PRIOR, TRAIN)
"""The nodes that decide what is learned."""
PIECES = (START, STEPS, LOAD_STATE, SAVE_STATE, CHECKPOINTS, PREVIEW)
"""The other nodes of the graph."""
EXISTING = "widgets.safetensors"
BASE: Settings = {
    LOAD: {"folder": PICTURES, "resolution": 64, "class_tokens": "sks"},
    OPTIMIZER: {"unet_lr": 1e-3},
    TRAIN: {"max_train_steps": 2, "mixed_precision": "no"},
}
"""Small and quick, where the defaults are not."""


@dataclass(frozen=True)
class Outcome:
    """What comes out of the graph."""

    losses: list[float]
    rates: list[float]
    weights: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    pictures: Mapping[str, Tensor]
    """Node -> what it draws on itself."""
    validations: list[int]
    """Steps after which the loss of the held-out pictures was measured."""
    resumed: bool
    """Whether the run went on from what an earlier one had left."""
    folder: Path
    """Of the run."""
    files: Mapping[str, int]
    """Name in that folder -> bytes; of states, whose size says nothing, 0."""
    previews: Mapping[str, Tensor]
    """Name -> pixels."""

    def part(self, name: str) -> Any:
        """One of the fields above, the picture of a node, or a line of the metadata."""
        if name in NODE:
            return self.pictures[name]
        return getattr(self, name) if hasattr(self, name) else self.metadata.get(name)


def widgets_of(node_id: str) -> dict[str, Any]:
    """Widget -> its default; inputs that only take a link are none."""
    inputs = NODE[node_id].define_schema().inputs
    return {i.id: _default(i) for i in inputs if isinstance(i, io.WidgetInput)}


def _default(widget: Any) -> Any:
    value = getattr(widget.default, "value", widget.default)
    return value if value is not None else getattr(widget, "options", [None])[0]


def merged(*settings: Settings) -> dict[str, dict[str, Any]]:
    """The later ones win."""
    nodes = {node for one in settings for node in one}
    return {
        node: {k: v for one in settings for k, v in one.get(node, {}).items()} for node in nodes
    }


@torch.inference_mode()  # as ComfyUI runs them
def call(node_id: str, widgets: Mapping[str, Any], **links: Any) -> tuple[Any, ...]:
    """The outputs of a node, if its widgets pass the queue.

    Raises:
        AtelierError: they do not.
    """
    node, known = NODE[node_id], widgets_of(node_id)
    assert widgets.keys() <= known.keys(), widgets.keys() - known.keys()
    values = known | dict(widgets)
    if "validate_inputs" in vars(node):
        judged = inspect.signature(node.validate_inputs).parameters
        verdict = node.validate_inputs(**{k: v for k, v in values.items() if k in judged})
        if verdict is not True:
            raise AtelierError(str(verdict))
    return node.execute(**values, **links).args


class Bench:
    """Models and pictures that all runs share, and the runs that were made."""

    def __init__(self, checkpoint: Path) -> None:
        self.parts = load_parts(checkpoint)
        self.runs: dict[str, Outcome] = {}
        self.configs: dict[str, tuple[Any, ...]] = {}
        write_pictures(Path(folder_paths.get_input_directory()))
        self.state: Any = None
        """Of the last run."""
        existing = self.run({})
        loras = Path(folder_paths.get_folder_paths("loras")[0])
        save_file({k: v * 1.5 for k, v in existing.weights.items()}, loras / EXISTING)

    def run(self, settings: Settings, model: str = "sd15") -> Outcome:
        """What the graph gives with these settings, computed once."""
        settings = merged(BASE, settings)
        key = f"{model} {sorted((node, sorted(w.items())) for node, w in settings.items())}"
        if key not in self.runs:
            self.runs[key] = self.compute(settings, getattr(self, model))
        return self.runs[key]

    def compute(self, settings: Settings, parts: Parts) -> Outcome:
        """Every node of the graph once."""

        def output(node_id: str, **links: Any) -> Any:
            return call(node_id, settings.get(node_id, {}), **links)[0]

        (others,) = call(LOAD, {**BASE[LOAD], "folder": OTHERS})
        dataset = output(COMBINE, dataset_1=output(LOAD), dataset_2=others)
        for node in (FIT, EDIT):
            dataset = output(node, dataset=dataset) if node in settings else dataset
        objective, objective_picture = self.config(OBJECTIVE, settings)
        if PRIOR in settings:
            objective = output(PRIOR, objective=objective)
        scheduler, scheduler_picture = self.config(SCHEDULER, settings)
        links = {"model": parts.model, "clip": parts.clip, "vae": parts.vae, "dataset": dataset}
        settings_links = {
            **{"network": output(NETWORK), "optimizer": output(OPTIMIZER)},
            **{"scheduler": scheduler, "objective": objective},
        }
        options = {
            wire: output(node)
            for node, wire in ((CHECKPOINTS, "checkpoints"), (PREVIEW, "preview"))
            if node in settings
        }
        if options:  # they say nothing of what is learned: the run would be resumed at its end
            shutil.rmtree(runs_folder(), ignore_errors=True)
        if LOAD_STATE in settings:
            (begun,) = call(LOAD_STATE, settings[LOAD_STATE], **links)
        elif START in settings:
            begun = call(START, BASE[TRAIN] | settings[START], **links, **settings_links)[0]
        else:
            begun = None
        with logged() as lines:
            if begun is None:
                outputs = call(TRAIN, settings[TRAIN], **links, **settings_links, **options)
            else:
                outputs = call(
                    STEPS, {"amount": 2} | settings.get(STEPS, {}), state=begun, **options
                )
        self.state, _, _, lora, loss_map = outputs
        folder = run_folder(self.state.run)
        return Outcome(
            losses=loss_map["loss"],
            rates=[record.learning_rate for record in self.state.history],
            weights=lora,
            metadata=lora.metadata,
            pictures={OBJECTIVE: objective_picture, SCHEDULER: scheduler_picture},
            validations=[point.step for point in self.state.validations],
            resumed=any("resumed at step" in line for line in lines),
            folder=folder,
            files=files_in(folder),
            previews={path.name: read_picture(path) for path in folder.glob("*/*.png")},
        )

    def config(self, node_id: str, settings: Settings) -> tuple[Any, ...]:
        """A node that draws, which takes longer than training: called once for some widgets."""
        key = f"{node_id} {sorted(settings.get(node_id, {}).items())}"
        if key not in self.configs:
            self.configs[key] = call(node_id, settings.get(node_id, {}))
        return self.configs[key]

    @property
    def sd15(self) -> Parts:
        return self.parts

    @cached_property
    def kl(self) -> Parts:
        """With a VAE that gives a distribution."""
        return replace(self.parts, vae=kl_autoencoder(4))

    @cached_property
    def v(self) -> Parts:
        with torch.inference_mode():
            sampling = host_sampling.ModelSamplingDiscrete()
            model = sampling.patch(self.parts.model, "v_prediction", zsnr=False)[0]
        return replace(self.parts, model=model)

    @cached_property
    def flow(self) -> Parts:
        with torch.inference_mode():
            model = host_sampling.ModelSamplingSD3().patch(self.parts.model, 3.0)[0]
        return replace(self.parts, model=model)

    @cached_property
    def flux(self) -> Parts:
        return replace(self.parts, model=small_flux(), vae=kl_autoencoder(16))


@contextmanager
def logged() -> Iterator[list[str]]:
    """What the pack says meanwhile."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("lora_atelier")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def files_in(folder: Path) -> dict[str, int]:
    """Name -> bytes, or 0 for a state."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): 0 if "state" in path.parts else path.stat().st_size
        for path in found
    }


def read_picture(path: Path) -> Tensor:
    """[H, W, 3], 0..255."""
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB"), np.float32))
