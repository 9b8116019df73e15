"""Nodes that show and keep what was learned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..training.files import write_whole
from ..training.results.lora_file import SavePrecision, save_lora
from ..training.results.loss_chart import draw_loss_chart
from ..training.results.loss_history import read_loss_map
from ..training.results.verdict import judge
from ..training.results.verdict_text import explain, headline
from .checks import verdict
from .outputs import loras_folder, new_file, output_folder, shown
from .progress import show_text

CATEGORY = "training/atelier/results"


class SaveLoRA(io.ComfyNode):
    """LORA_MODEL -> .safetensors file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSaveLoRA",
            display_name="Save LoRA",
            category=CATEGORY,
            is_output_node=True,
            description=(
                "Writes the LoRA as a .safetensors file with kohya key names and its training "
                "settings. LoraLoader and diffusers load it; other programs that read kohya's "
                "LoRAs should too."
            ),
            inputs=[
                io.LoraModel.Input("lora", tooltip="From Train LoRA (or a core training node)."),
                io.String.Input(
                    "filename_prefix",
                    default="atelier/my_lora",
                    tooltip=(
                        "Name of the file below ComfyUI's output folder; a number is added so "
                        "that nothing is overwritten."
                    ),
                ),
                io.Combo.Input(
                    "save_precision",
                    options=SavePrecision,
                    default=SavePrecision.FP16,
                    tooltip=(
                        "fp16 is what everyone shares: half the size, no visible difference. bf16 "
                        "has more range, float (fp32) keeps every digit."
                    ),
                ),
                io.Boolean.Input(
                    "add_to_models_loras",
                    default=False,
                    tooltip=(
                        "Also put a copy into models/loras, where LoraLoader lists it (press R to "
                        "refresh the list)."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    "file",
                    display_name="file",
                    tooltip="Full path of the file in the output folder.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return verdict(new_file, filename_prefix, ".safetensors", output_folder())

    @classmethod
    def execute(
        cls,
        lora: Mapping[str, Tensor],
        filename_prefix: str,
        save_precision: str,
        add_to_models_loras: bool,
    ) -> io.NodeOutput:
        files = [new_file(filename_prefix, ".safetensors", output_folder())]
        save_lora(files[0], lora, SavePrecision(save_precision))
        if add_to_models_loras:
            copy = loras_folder() / files[0].relative_to(output_folder())
            taken = copy.exists()
            files.append(
                new_file(filename_prefix, ".safetensors", loras_folder()) if taken else copy
            )
            write_whole(files[1], files[0].read_bytes())  # the same bytes, so both hash alike
        show_text("\n".join(map(shown, files)))
        return io.NodeOutput(str(files[0]), ui=ui.PreviewText("\n".join(map(str, files))))


class LossChart(io.ComfyNode):
    """LOSS_MAP -> picture, and what became of the run in words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLossChart",
            display_name="Loss Chart",
            category=CATEGORY,
            is_output_node=True,
            description=(
                "Draws the loss of every step, its moving average and whatever else the run "
                "recorded, and says what became of it: converged, still falling, plateau, "
                "overfitting, diverging or not finite, with the figures behind it and what to "
                "change. Single steps always scatter, since easy and hard noise levels take turns."
            ),
            inputs=[
                io.LossMap.Input("loss_map", tooltip="From Train LoRA (or a core training node)."),
                io.String.Input(
                    "title",
                    default="",
                    placeholder="title (optional)",
                    tooltip=(
                        "Heading of the chart, above the verdict; empty = the number of steps."
                    ),
                ),
            ],
            outputs=[
                io.Image.Output("chart", display_name="chart", tooltip="The chart as a picture."),
                io.String.Output(
                    "verdict",
                    display_name="verdict",
                    tooltip="What became of the run, why, and what to change; several lines.",
                ),
            ],
        )

    @classmethod
    def execute(cls, loss_map: Mapping[str, Any], title: str) -> io.NodeOutput:
        history = read_loss_map(loss_map)
        judgement = judge(history)
        heading = f"{title.strip() or f'{history.steps} steps'}\n{headline(judgement)}"
        chart = draw_loss_chart(history, heading).unsqueeze(0)
        text = explain(judgement, history)
        show_text(text)
        preview = ui.PreviewImage(chart, cls=cls).as_dict()
        return io.NodeOutput(chart, text, ui=preview | {"text": (text,)})
