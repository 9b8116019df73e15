"""The node that trains, from models and dataset to the LoRA."""

from __future__ import annotations

import logging
import time
from typing import Any

from comfy_api.latest import io

from ...training.dataset.samples import ImageDataset
from ...training.results.preview_spec import PreviewSpec
from ...training.runs.checkpoints import CheckpointSpec
from ...training.runs.run import TrainingSpec
from ..graph.checks import choice, verdict
from ..live.monitor import watched
from ..live.progress import show_text
from .run_in_graph import Resume, RunOptions, results, summary, train_in_graph
from .start_training import begin
from .training_inputs import (
    compile_input,
    keeping_inputs,
    ready_inputs,
    result_outputs,
    run_inputs,
    spec_from,
)

log = logging.getLogger("lora_atelier")


class TrainLoRA(io.ComfyNode):
    """MODEL, CLIP, VAE and a dataset -> a trained LoRA, in one node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierTrainLoRA",
            display_name="Train LoRA",
            category="training/atelier",
            description=(
                "Trains a LoRA on the model that the graph has loaded, which itself stays as it "
                "is. The outputs are the same model with the LoRA on it, ready for KSampler, and "
                "the LoRA itself for Save LoRA. Loss: the model's own objective, with min-SNR "
                "gamma 5 for SD models. Cancel keeps the LoRA as far as it got, in "
                "output/atelier."
            ),
            inputs=[*run_inputs(), *keeping_inputs(), *ready_inputs(), compile_input()],
            outputs=result_outputs(),
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
        resume: str = Resume.RESUME.value,
        checkpoints: CheckpointSpec | None = None,
        preview: PreviewSpec | None = None,
        conditioning: Any = None,
        latents: Any = None,
        **settings: Any,
    ) -> io.NodeOutput:
        options = RunOptions(
            choice("resume", resume, Resume), checkpoints or CheckpointSpec(), preview
        )
        with watched() as monitor:
            state, lines = begin(
                model, clip, vae, dataset, spec_from(**settings), conditioning, latents
            )
            started = time.monotonic()
            state = train_in_graph(state, state.run.spec.max_train_steps, options, monitor)
        show_text("\n".join([summary(state, time.monotonic() - started), *lines]))
        return io.NodeOutput(state, *results(state))
