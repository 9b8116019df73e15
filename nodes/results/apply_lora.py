"""The node that puts a LoRA of the graph on MODEL and CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ...training.errors import require_number
from ...training.results.block_weights import parse_block_weights
from ..graph.checks import verdict
from ..live.progress import show_text

STRENGTHS = (-10.0, 10.0)


class ApplyTrainedLoRA(io.ComfyNode):
    """MODEL, CLIP and LORA_MODEL -> MODEL and CLIP with the LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierApplyLoRA",
            display_name="Apply Trained LoRA",
            category="training/atelier/results",
            description=(
                "Puts a LoRA of the graph on the models, as LoraLoader does with its file, so "
                "that you can draw with it at once. Text encoder and blocks can have strengths "
                "of their own."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The base model; it stays as it is."),
                io.LoraModel.Input(
                    "lora",
                    tooltip="From Train LoRA, Merge and Resize LoRA or a core training node.",
                ),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    min=STRENGTHS[0],
                    max=STRENGTHS[1],
                    step=0.05,
                    round=0.001,
                    tooltip=(
                        "How strong it is in the diffusion model. 1 is as it was trained; less if "
                        "pictures look overdone."
                    ),
                ),
                io.Float.Input(
                    "strength_clip",
                    default=1.0,
                    min=STRENGTHS[0],
                    max=STRENGTHS[1],
                    step=0.05,
                    round=0.001,
                    tooltip="The same for the text encoder, if the LoRA changes that too.",
                ),
                io.String.Input(
                    "block_weights",
                    default="",
                    multiline=True,
                    placeholder="1, 0, 0, 0, 1, 1, …\nIN04=0.5, OUT*=0",
                    tooltip=(
                        "Factors for single blocks; empty = 1 for all. Either a row of numbers as "
                        "LoRA Block Weight has them (17 for SD1.5, 12 for SDXL), or name=number "
                        "such as MID=0.5 or double_blocks.*=0. Turns off what a LoRA should not "
                        "change, often composition."
                    ),
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder; without it only the diffusion model is changed.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    "patched_model",
                    display_name="patched_model",
                    tooltip="The model with the LoRA, for KSampler.",
                ),
                io.Clip.Output(
                    "patched_clip",
                    display_name="patched_clip",
                    tooltip="The text encoder with the LoRA; empty when clip is not connected.",
                ),
                io.String.Output(
                    "text",
                    display_name="text",
                    tooltip="How much was changed, and which layers do not fit the model.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, block_weights: str | None = None) -> bool | str:
        return verdict(parse_block_weights, block_weights)

    @classmethod
    def execute(
        cls,
        model: Any,
        lora: Mapping[str, Tensor],
        strength_model: float,
        strength_clip: float,
        block_weights: str,
        clip: Any = None,
    ) -> io.NodeOutput:
        from ...training.host.weighted_lora import apply_weighted

        weights = parse_block_weights(block_weights)
        for name, value in (("strength_model", strength_model), ("strength_clip", strength_clip)):
            require_number(name, value, *STRENGTHS, "1 is as it was trained.")
        if strength_model == 0 and strength_clip == 0:  # as LoraLoader: nothing is patched
            return _shown(model, clip, "off: both strengths are 0")
        applied = apply_weighted(model, clip, lora, (strength_model, strength_clip), weights)
        return _shown(applied.model, applied.clip, "\n".join(applied.notes))


def _shown(model: Any, clip: Any, text: str) -> io.NodeOutput:
    show_text(text)
    return io.NodeOutput(model, clip, text, ui=ui.PreviewText(text))
