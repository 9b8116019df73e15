"""The node that says what a run leaves on disk, and when."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...training.errors import needed_package
from ...training.results.lora_file import SavePrecision
from ...training.runs.checkpoints import CheckpointSpec, OnSaveError
from ..graph.checks import choice, verdict
from ..graph.wires import AtelierCheckpoints


class TrainingCheckpoints(io.ComfyNode):
    """When to save and what to keep -> ATELIER_CHECKPOINTS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierCheckpoints",
            display_name="Training Checkpoints",
            category="training/atelier/config",
            description=(
                "What a run leaves in output/atelier/runs while it trains. From a state a run "
                "goes on after a crash or Cancel, exactly as if nothing had happened. Whatever "
                "these widgets say, a state is saved at the end and on Cancel."
            ),
            inputs=[
                io.Int.Input(
                    "save_every_n_steps",
                    default=0,
                    min=0,
                    max=10_000_000,
                    tooltip="A checkpoint each time so many steps are done. 0 = not by steps.",
                ),
                io.Int.Input(
                    "save_every_n_epochs",
                    default=0,
                    min=0,
                    max=10_000_000,
                    tooltip="A checkpoint each time so many epochs are done. 0 = not by epochs.",
                ),
                io.Float.Input(
                    "save_every_n_minutes",
                    default=10.0,
                    min=0.0,
                    max=100_000.0,
                    step=1.0,
                    round=0.01,
                    tooltip=(
                        "A checkpoint each time so many minutes have passed since the last one: "
                        "what a crash may cost at most. 0 = not by time."
                    ),
                ),
                io.Int.Input(
                    "save_last_n",
                    default=1,
                    min=1,
                    max=10_000,
                    tooltip=(
                        "How many of them stay on disk; older ones are deleted. A state is about "
                        "three times as large as the LoRA in fp32."
                    ),
                ),
                io.Boolean.Input(
                    "keep_best",
                    default=True,
                    tooltip=(
                        "Also keeps the one with the lowest loss on the validation pictures, where "
                        "the dataset has any (validation_fraction on Load Image Dataset)."
                    ),
                ),
                io.Boolean.Input(
                    "save_lora",
                    default=False,
                    tooltip=(
                        "Also writes a LoRA file at each checkpoint, to try how far to train: "
                        "compare them in LoraLoader."
                    ),
                ),
                io.Combo.Input(
                    "save_precision",
                    options=SavePrecision,
                    default=SavePrecision.FP16,
                    tooltip=(
                        "Number format of these LoRA files: fp16 is what everyone shares. States "
                        "are always exact."
                    ),
                ),
                io.Combo.Input(
                    "on_save_error",
                    options=OnSaveError,
                    default=OnSaveError.CONTINUE,
                    tooltip=(
                        "When a checkpoint cannot be written, for instance because the disk is "
                        "full. continue: says so and trains on. stop: ends the run; older "
                        "checkpoints stay either way."
                    ),
                ),
                io.Boolean.Input(
                    "tensorboard",
                    default=False,
                    tooltip=(
                        "Also writes loss, learning rate and gradient norm for TensorBoard into "
                        "the run's folder. Needs the package tensorboardX."
                    ),
                ),
            ],
            outputs=[
                AtelierCheckpoints.Output(
                    "checkpoints",
                    display_name="checkpoints",
                    tooltip="When to save, for Train LoRA and Train Steps.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        save_every_n_steps: int | None = None,
        save_every_n_epochs: int | None = None,
        save_every_n_minutes: float | None = None,
        save_last_n: int | None = None,
    ) -> bool | str:
        return verdict(
            CheckpointSpec,
            save_every_n_steps,
            save_every_n_epochs,
            save_every_n_minutes,
            save_last_n,
        )

    @classmethod
    def execute(
        cls, save_precision: str, on_save_error: str, tensorboard: bool, **widgets: Any
    ) -> io.NodeOutput:
        if tensorboard:  # before hours of training
            needed_package("tensorboardX", "tensorboard on Training Checkpoints")
        return io.NodeOutput(
            CheckpointSpec(
                **widgets,
                save_precision=choice("save_precision", save_precision, SavePrecision),
                on_save_error=choice("on_save_error", on_save_error, OnSaveError),
                tensorboard=tensorboard,
            )
        )
