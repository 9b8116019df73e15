"""Nodes that keep a training state in a file and bring it back."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ...training.cache import digest_of
from ...training.dataset.samples import ImageDataset
from ...training.errors import AtelierError, require
from ...training.network.existing_lora import ExistingLora
from ...training.runs.preflight import preflight
from ...training.runs.run import TrainingState
from ...training.runs.state_file import (
    StateHeader,
    load_state,
    read_header,
    read_network,
    save_state,
)
from ..graph.checks import verdict
from ..graph.outputs import cache_folder, new_file, output_folder, shown, states_in
from ..graph.wires import AtelierDataset, AtelierState
from ..live.progress import show_text
from .training_inputs import ready_inputs

CATEGORY = "training/atelier"
NO_FILE = "none"


class SaveTrainingState(io.ComfyNode):
    """ATELIER_STATE -> file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSaveState",
            display_name="Save Training State",
            category=CATEGORY,
            is_output_node=True,
            description=(
                "Writes a state with all that training needs to go on from it exactly: the LoRA, "
                "what the optimizer remembers, the history, the settings. About three times as "
                "large as the LoRA in fp32. It holds no pictures and no base model."
            ),
            inputs=[
                AtelierState.Input(
                    "state", tooltip="From Train Steps, Train LoRA or Start Training."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="atelier/saved/run",
                    tooltip=(
                        "Name of the file below ComfyUI's output folder; a number is added so that "
                        "nothing is overwritten. Load Training State lists what lies below "
                        "output/atelier."
                    ),
                ),
            ],
            outputs=[],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return verdict(
            lambda prefix: new_file(prefix, ".safetensors", output_folder()), filename_prefix
        )

    @classmethod
    def execute(cls, state: TrainingState, filename_prefix: str) -> io.NodeOutput:
        path = new_file(filename_prefix, ".safetensors", output_folder())
        save_state(path, state, is_end=True)
        text = f"state at step {state.step}: {shown(path)}"
        show_text(text)
        return io.NodeOutput(ui={"text": (text,)})


class LoadTrainingState(io.ComfyNode):
    """A file, models and dataset -> ATELIER_STATE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadState",
            display_name="Load Training State",
            category=CATEGORY,
            description=(
                "Brings back a state that Save Training State or a run has written, for Train "
                "Steps. Settings come from the file; models and pictures from the graph. If they "
                "are not those the state was trained with, the node says what differs."
            ),
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[NO_FILE, *states_in(output_folder())],
                    tooltip=(
                        "A state below output/atelier: those of Save Training State, and the "
                        "checkpoints of runs. Press R to refresh the list."
                    ),
                ),
                io.Model.Input("model", tooltip="The base model it was trained on."),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Its text encoder. Leave it open only if conditioning is wired.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The VAE of that base model. Leave it open only if latents are wired.",
                ),
                AtelierDataset.Input("dataset", tooltip="The pictures and captions to go on with."),
                *ready_inputs(),
            ],
            outputs=[
                AtelierState.Output(
                    "state", display_name="state", tooltip="The state, for Train Steps."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        return verdict(_path, file)

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **others: Any) -> str:
        """A file that was written anew under its old name is another one."""
        if file is None or file == NO_FILE:
            return ""
        stat = _path(file).stat()
        return hashlib.sha256(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()

    @classmethod
    def execute(
        cls,
        file: str,
        model: Any,
        dataset: ImageDataset,
        clip: Any = None,
        vae: Any = None,
        conditioning: Any = None,
        latents: Any = None,
    ) -> io.NodeOutput:
        from ...training.host.session import Ready, start_run  # the host's models: not at start-up

        ready = Ready(conditioning, latents)
        path = _path(file)
        header = read_header(path)
        spec = header.training_spec()
        if spec.network.existing is not None:  # its layers and sizes are those of the state
            existing = ExistingLora(read_network(path), spec.network.existing.name)
            spec = replace(spec, network=replace(spec.network, existing=existing))
        advice = preflight(spec)
        begun = start_run(model, clip, vae, dataset, spec, cache_folder(), ready)
        advice += begun.run.model.notes() + ready.notes(begun.run.models, dataset)
        differences = _differences(header, begun)
        identity = header.identity
        if differences:  # another run from here on, unless it cannot be told which
            both = (identity, begun.run.identity)
            identity = digest_of("loaded", header.step, *both) if all(both) else ""
        state = load_state(path, replace(begun.run, identity=identity))
        _require_same_network(path, begun, state)
        show_text("\n".join([f"state at step {state.step}", *differences, *advice]))
        return io.NodeOutput(state)


def _path(file: str) -> Path:
    """The file that was chosen.

    Raises:
        AtelierError: none was, or it is not below output/atelier.
    """
    require(file != NO_FILE, "file is none: choose a state. Press R to refresh the list.")
    require(
        file in states_in(output_folder()),
        f'file: there is no state "{file}" below output/atelier. Press R to refresh the list.',
    )
    return output_folder() / "atelier" / file


def _differences(header: StateHeader, begun: TrainingState) -> list[str]:
    """What is not as it was when the state was made, a sentence each."""
    lines = []
    for name in header.made_from().differences(begun.run.ingredients):
        text = f"{name}: not the one this state was trained with"
        if name == "dataset":
            now = len(begun.run.dataset.samples)
            text += f' ("{header.dataset_name}", {header.samples} pictures; now {now})'
        lines.append(f"{text}. Training goes on with what is connected.")
    return lines


def _require_same_network(path: Path, begun: TrainingState, state: TrainingState) -> None:
    mine = {name: tensor.shape for name, tensor in begun.network.items()}
    theirs = {name: tensor.shape for name, tensor in state.network.items()}
    if mine != theirs:
        raise AtelierError(
            f'file: "{path.name}" holds adapters for {len(theirs)} tensors, which do not fit the '
            f"{len(mine)} of this model. It was trained on another kind of model."
        )
