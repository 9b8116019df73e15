"""The node that looks a dataset over before it trains."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ...training.dataset.report_picture import draw_report
from ...training.dataset.report_text import report_text, short_text
from ...training.dataset.samples import ImageDataset
from ...training.host.inspection import inspect_dataset
from ..graph.outputs import cache_folder
from ..graph.wires import AtelierDataset
from ..live.progress import show_text


class DatasetReport(io.ComfyNode):
    """ATELIER_DATASET -> text and picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierDatasetReport",
            display_name="Dataset Report",
            category="training/atelier/dataset",
            is_output_node=True,
            description=(
                "Looks at every picture and caption and says what to mend before training: broken "
                "and small pictures, blur, duplicates, crops, missing captions, long captions, "
                "one-sided sets, missing licences. Changes nothing."
            ),
            inputs=[
                AtelierDataset.Input(
                    "dataset", tooltip="The pictures as they would go into Train LoRA."
                ),
                io.Int.Input(
                    "train_batch_size",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip=(
                        "As you will set it in Train LoRA: the report counts the steps of an epoch "
                        "with it, and what short batches cost."
                    ),
                ),
                io.Int.Input(
                    "gradient_accumulation_steps",
                    default=1,
                    min=1,
                    max=4096,
                    tooltip="As you will set it in Train LoRA; it divides the steps of an epoch.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "Text encoder that you will train with. Connected: the captions are "
                        "counted in its tokens, and what lies beyond one pass is shown."
                    ),
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip=(
                        "Image encoder (Load CLIP Vision). Connected: says how much the pictures "
                        "differ, which are most alike and which stand apart. On a CPU it takes up "
                        "to a second a picture."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    "report",
                    display_name="report",
                    tooltip="What to mend, the worst first, then the numbers. Preview as Text.",
                ),
                io.Image.Output(
                    "picture",
                    display_name="picture",
                    tooltip="Sizes, buckets, blur, tags, lengths and pictures to look at.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        dataset: ImageDataset,
        train_batch_size: int,
        gradient_accumulation_steps: int,
        clip: Any = None,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        report = inspect_dataset(
            dataset,
            train_batch_size,
            gradient_accumulation_steps,
            cache_folder(),
            clip,
            clip_vision,
        )
        show_text(short_text(report))
        picture = draw_report(report).unsqueeze(0)
        return io.NodeOutput(report_text(report), picture, ui=ui.PreviewImage(picture, cls=cls))
