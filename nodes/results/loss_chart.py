"""The node that shows what became of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui

from ...training.results.loss_chart import draw_loss_chart
from ...training.results.loss_history import read_loss_map
from ...training.results.verdict import judge
from ...training.results.verdict_text import explain, headline
from ..live.progress import show_text

CATEGORY = "training/atelier/results"


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
