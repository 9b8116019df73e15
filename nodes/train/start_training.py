"""The node that begins a run: everything is encoded, nothing is trained yet."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ...training.dataset.samples import ImageDataset
from ...training.runs.preflight import preflight
from ...training.runs.run import TrainingSpec, TrainingState
from ..graph.checks import verdict
from ..graph.outputs import cache_folder
from ..graph.wires import AtelierState
from ..live.progress import show_text
from .training_inputs import compile_input, ready_inputs, run_inputs, spec_from

log = logging.getLogger("lora_atelier")


class StartTraining(io.ComfyNode):
    """MODEL, CLIP, VAE and a dataset -> a training run at step 0."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierStartTraining",
            display_name="Start Training",
            category="training/atelier",
            description=(
                "Encodes pictures and captions and sets up the network: a run at step 0, for Train "
                "Steps. With these two nodes you train in pieces, look at pictures in between, or "
                "try several learning rates from one state. max_train_steps is what the "
                "learning-rate schedule is laid out for. Train LoRA does both in one node."
            ),
            inputs=[*run_inputs(), *ready_inputs(), compile_input()],
            outputs=[
                AtelierState.Output(
                    "state", display_name="state", tooltip="The run at step 0, for Train Steps."
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        max_train_steps: int | None = None,
        train_batch_size: int | None = None,
        gradient_accumulation_steps: int | None = None,
        validate_every_n_steps: int | None = None,
    ) -> bool | str:
        return verdict(
            TrainingSpec,
            max_train_steps=max_train_steps,
            train_batch_size=train_batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            validate_every_n_steps=validate_every_n_steps,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        dataset: ImageDataset,
        clip: Any = None,
        vae: Any = None,
        conditioning: Any = None,
        latents: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        state, lines = begin(
            model, clip, vae, dataset, spec_from(**settings), conditioning, latents
        )
        show_text("\n".join(["ready at step 0", *lines]))
        return io.NodeOutput(state)


def begin(
    model: Any,
    clip: Any,
    vae: Any,
    dataset: ImageDataset,
    spec: TrainingSpec,
    conditioning: Any = None,
    latents: Any = None,
) -> tuple[TrainingState, list[str]]:
    """The run at step 0, and what a person should know of it.

    Args:
        conditioning, latents: what is ready, in place of what ``clip`` and ``vae`` would make.

    Raises:
        AtelierError: the settings cannot train, or not on these models and pictures.
    """
    # The host's models: not at start-up.
    from ...training.host.memory import describe_memory
    from ...training.host.session import Ready, describe, start_run

    ready = Ready(conditioning, latents)
    advice = preflight(spec)
    for sentence in advice:
        log.warning(sentence)
    network_line = describe(model, clip, spec)
    log.info("%s", network_line)
    show_text(f"{network_line}\nencoding pictures and captions …")
    state = start_run(model, clip, vae, dataset, spec, cache_folder(), ready)
    memory_line, memory_advice = describe_memory(state)
    log.info("%s", memory_line)
    for sentence in memory_advice:
        log.warning(sentence)
    advice += state.run.model.notes() + ready.notes(state.run.models, dataset)
    show_text("\n".join([network_line, memory_line, *memory_advice]))
    return state, [network_line, memory_line, *memory_advice, *advice]
