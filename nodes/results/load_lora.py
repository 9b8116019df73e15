"""The node that reads a LoRA file."""

from __future__ import annotations

import hashlib
from typing import Any

from comfy_api.latest import io, ui

from ...training.errors import AtelierError
from ...training.results.lora_file import TrainedLora
from ...training.results.lora_info import lora_info
from ...training.results.lora_reading import read_lora
from ..graph.checks import verdict
from ..live.progress import show_text
from .lora_files import NO_FILE, chosen_file, offered_files

FEW = 3
"""Layers named on the node; ``info`` names all."""


class LoadLoRAFile(io.ComfyNode):
    """.safetensors file -> LORA_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadLoRA",
            display_name="Load LoRA File",
            category="training/atelier/results",
            description=(
                "Reads a LoRA file into the graph with all that it says of itself, to look at it, "
                "merge or resize it, compare it, write it with other key names, or draw with it. "
                "With a model wired it also tells how much of it that model takes."
            ),
            inputs=[
                io.Combo.Input(
                    "lora_file",
                    options=[NO_FILE, *offered_files()],
                    tooltip=(
                        "A .safetensors file of models/loras, or one that this pack wrote below "
                        "output/atelier: those of Save LoRA, and the checkpoints of runs. Press R "
                        "to refresh the list."
                    ),
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "A model to hold the LoRA against: info says which of its layers ComfyUI "
                        "would put there. When all fit, Save LoRA and Merge need it no more."
                    ),
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Likewise: its text encoder, if the LoRA changes that too.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    tooltip=(
                        "The LoRA, for Apply Trained LoRA, Save LoRA, Merge and Resize LoRA or "
                        "Compare Grid."
                    ),
                ),
                io.String.Output(
                    "info",
                    display_name="info",
                    tooltip=(
                        "What the file says of itself: base model, rank, trigger words, tags, "
                        "training, licence; and how it fits the model."
                    ),
                ),
            ],
            is_output_node=True,  # to be looked at alone
        )

    @classmethod
    def validate_inputs(cls, lora_file: str | None = None) -> bool | str:
        return verdict(chosen_file, lora_file)

    @classmethod
    def fingerprint_inputs(cls, lora_file: str | None = None, **others: Any) -> str:
        """A file that was written anew under its old name is another one."""
        if lora_file is None:
            return "linked"
        try:
            stat = chosen_file(lora_file).path.stat()
        except (AtelierError, OSError) as error:
            return str(error)
        return hashlib.sha256(f"{lora_file} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()

    @classmethod
    def execute(cls, lora_file: str, model: Any = None, clip: Any = None) -> io.NodeOutput:
        file = chosen_file(lora_file)
        lora = read_lora(file.path, file.name)
        info = lora_info(lora, lora.metadata)
        few = every = []
        if model is not None or clip is not None:
            lora, few, every = _held_against(lora, model, clip)
        shown = "\n".join([*info, *few])
        show_text(shown)
        return io.NodeOutput(lora, "\n".join([*info, *every]), ui=ui.PreviewText(shown))


def _held_against(
    lora: TrainedLora, model: Any, clip: Any
) -> tuple[TrainedLora, list[str], list[str]]:
    """The LoRA, which knows the models if it is for them, and what is said of them: in short, and
    with every name."""
    from ...training.host.lora_check import fit
    from ...training.host.lora_formats import Models

    models = Models(model, clip)
    found = fit(lora, models)
    if found.is_whole:
        lora = TrainedLora(lora, lora.metadata, models)
    return lora, _about(found, FEW), _about(found, None)


def _about(found: Any, most: int | None) -> list[str]:
    """Args:
    found: :class:`training.host.lora_check.Fit`.
    most: how many layers to name; None = all.
    """
    fitting = found.layers - len(found.lost) - len(found.wrong)
    lines = [f"{fitting} of {found.layers} layers fit what is connected"]
    for names, what in (
        (found.lost, "are not in it"),
        (found.wrong, "have another size there: the LoRA is for another family"),
    ):
        if names:
            more = [] if most is None or len(names) <= most else ["…"]
            lines.append(f"{len(names)} layers {what}: {', '.join([*names[:most], *more])}")
    if found.unseen:
        lines.append(
            f"{found.unseen} other layers were not looked at: connect model and clip to see them"
        )
    return lines
