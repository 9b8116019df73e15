"""The node that trains."""

from __future__ import annotations

import logging
import time
from typing import Any

from comfy_api.latest import io

from ..training.dataset.samples import ImageDataset
from ..training.dataset.summary import left_out
from ..training.errors import AtelierError
from ..training.loop import train
from ..training.lora_file import SavePrecision, save_lora, trained_lora
from ..training.loss_chart import smoothed
from ..training.lr_scheduler import LRSchedulerSpec
from ..training.network import NetworkSpec
from ..training.objective import ObjectiveSpec
from ..training.optimizer import OptimizerSpec
from ..training.precision import MixedPrecision
from ..training.preflight import preflight
from ..training.run import StepRecord, TrainingSpec, TrainingState
from .checks import verdict
from .outputs import cache_folder, checkpoint_prefix, new_file, output_folder, shown
from .progress import StepReporter, duration, show_text
from .wires import (
    AtelierDataset,
    AtelierNetwork,
    AtelierObjective,
    AtelierOptimizer,
    AtelierScheduler,
    AtelierState,
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
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "Base model. LoRAs and samplings already on it stay, are trained on top "
                        "of, and are not part of the new LoRA."
                    ),
                ),
                io.Clip.Input("clip", tooltip="Text encoder that reads the captions."),
                io.Vae.Input("vae", tooltip="VAE of the base model; turns pictures into latents."),
                AtelierDataset.Input("dataset", tooltip="Pictures and captions to learn from."),
                io.Int.Input(
                    "max_train_steps",
                    default=1000,
                    min=1,
                    max=10_000_000,
                    tooltip=(
                        "Optimizer steps. 500 to 3000 for most sets of 15 to 100 pictures. Too "
                        "few: no effect; too many: every picture looks like a training picture."
                    ),
                ),
                io.Int.Input(
                    "train_batch_size",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip=(
                        "Pictures looked at together in one pass, each under its own caption. "
                        "Larger is steadier, and needs that much more memory. When memory runs "
                        "out, go down to 1."
                    ),
                ),
                io.Int.Input(
                    "gradient_accumulation_steps",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip=(
                        "Passes that together make one step: 4 with a batch of 1 trains like a "
                        "batch of 4 in the memory of 1, at a quarter of the steps per minute."
                    ),
                ),
                io.Combo.Input(
                    "mixed_precision",
                    options=MixedPrecision,
                    default=MixedPrecision.AUTO,
                    tooltip=(
                        "Number format inside the model; the LoRA itself is always trained in "
                        "fp32. Leave it on auto, which fits the model and the card. bf16 suits "
                        "models of 10 B and more; bf16 and fp16 (with loss scaling) save memory; "
                        "no = fp32, exact and slow."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip=(
                        "Decides the LoRA's first weights, the order of the pictures and the "
                        "noise. The same seed and settings give the same LoRA."
                    ),
                ),
                AtelierNetwork.Input(
                    "network",
                    optional=True,
                    tooltip="From LoRA Network. Not connected: rank 16, alpha 16.",
                ),
                AtelierOptimizer.Input(
                    "optimizer",
                    optional=True,
                    tooltip="From Optimizer. Not connected: AdamW, learning rate 1e-4.",
                ),
                AtelierScheduler.Input(
                    "scheduler",
                    optional=True,
                    tooltip="From LR Scheduler. Not connected: cosine with 5 % warm-up.",
                ),
                AtelierObjective.Input(
                    "objective",
                    optional=True,
                    tooltip=(
                        "From Loss and Noise or Prior Preservation. Not connected: the squared "
                        "error, with min-SNR gamma 5 for models that predict noise or velocity."
                    ),
                ),
            ],
            outputs=[
                AtelierState.Output(
                    "state",
                    display_name="state",
                    tooltip="The run frozen at its last step: weights, optimizer, history.",
                ),
                io.Model.Output(
                    "trained_model",
                    display_name="model",
                    tooltip="The base model with the LoRA at strength 1.",
                ),
                io.Clip.Output(
                    "trained_clip", display_name="clip", tooltip="The text encoder to use with it."
                ),
                io.LoraModel.Output(
                    "lora", display_name="lora", tooltip="The LoRA alone, for Save LoRA."
                ),
                io.LossMap.Output(
                    "loss_map",
                    display_name="loss_map",
                    tooltip="The loss of every step, for Loss Chart.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        max_train_steps: int | None = None,
        train_batch_size: int | None = None,
        gradient_accumulation_steps: int | None = None,
    ) -> bool | str:
        return verdict(
            TrainingSpec,
            max_train_steps=max_train_steps,
            train_batch_size=train_batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: ImageDataset,
        max_train_steps: int,
        train_batch_size: int,
        gradient_accumulation_steps: int,
        mixed_precision: str,
        seed: int,
        network: NetworkSpec | None = None,
        optimizer: OptimizerSpec | None = None,
        scheduler: LRSchedulerSpec | None = None,
        objective: ObjectiveSpec | None = None,
    ) -> io.NodeOutput:
        # The host's models: not at start-up.
        from ..training.host.session import describe, start_run

        spec = TrainingSpec(
            network=network or NetworkSpec(),
            optimizer=optimizer or OptimizerSpec(),
            lr_scheduler=scheduler or LRSchedulerSpec(),
            objective=objective or ObjectiveSpec(),
            mixed_precision=MixedPrecision(mixed_precision),
            max_train_steps=max_train_steps,
            train_batch_size=train_batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            seed=seed,
        )
        advice = preflight(spec)
        for sentence in advice:
            log.warning(sentence)
        network_line = describe(model, spec)
        log.info("%s", network_line)
        show_text(f"{network_line}\nencoding pictures and captions …")
        started = time.monotonic()
        state = start_run(model, clip, vae, dataset, spec, cache_folder())
        state = train_steps(state, max_train_steps)
        show_text("\n".join([summary(state, time.monotonic() - started), network_line, *advice]))
        return io.NodeOutput(state, *results(state, model, clip))


def results(state: TrainingState, model: Any, clip: Any) -> tuple[Any, Any, Any, dict]:
    """MODEL and CLIP with the LoRA on them, LORA_MODEL and LOSS_MAP of a state."""
    from ..training.host.result import apply_lora

    lora = trained_lora(state)
    model, clip = apply_lora(model, clip, lora)
    return model, clip, lora, {"loss": [record.loss for record in state.history]}


def summary(state: TrainingState, seconds: float) -> str:
    """What stays on the node: single steps scatter, so the loss is the chart's moving average."""
    loss = smoothed([record.loss for record in state.history])[-1]
    epochs = state.history[-1].epoch + 1
    text = f"{state.step} steps, {epochs} epochs in {duration(seconds)} · loss {loss:.4f} (average)"
    return "\n".join([text, *left_out(state.run.dataset)])


def train_steps(state: TrainingState, steps: int) -> TrainingState:
    """Train on under the eyes of the person at the graph."""
    return train(state, steps, _GraphListener(state, steps))


class _GraphListener:
    """Progress and Cancel of the running node; on the way out, the work so far is kept."""

    def __init__(self, state: TrainingState, steps: int) -> None:
        from ..training.host.progress import raise_if_cancelled

        self.first_step = state.step
        self.reporter = StepReporter(state.step, state.step + steps)
        self.on_micro_step = raise_if_cancelled

    def on_step(self, record: StepRecord, last_step: int) -> None:
        self.reporter.step(record, last_step)

    def on_interrupted(self, state: TrainingState) -> None:
        if state.step == self.first_step:
            return
        prefix = checkpoint_prefix(state.run.dataset.name, state.step)
        try:
            path = new_file(prefix, ".safetensors", output_folder())
            save_lora(path, trained_lora(state), SavePrecision.FLOAT)
        except AtelierError as error:  # why the run ended must not be hidden by this
            text = f"stopped at step {state.step}; the LoRA so far could not be saved: {error}"
        else:
            text = f"stopped at step {state.step}; the LoRA so far is in {shown(path)}"
        show_text(text)
        log.warning("Training %s", text)
