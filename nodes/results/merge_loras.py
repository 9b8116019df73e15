"""The node that adds LoRAs up and makes them smaller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ...training.errors import require, require_number
from ...training.results.lora_algebra import WeightedLora, merge, weighted_lora
from ...training.results.lora_file import TrainedLora
from ...training.results.lora_resize import DynamicMethod, Resize
from ...training.results.merge_metadata import merged_metadata
from ...training.results.merge_text import layer_line, merge_summary
from ..graph.checks import choice, verdict
from ..live.progress import show_text

WEIGHTS = (-10.0, 10.0)
Given = dict[str, tuple[Mapping[str, Tensor], float]]


class MergeLoRAs(io.ComfyNode):
    """LORA_MODELs -> one LORA_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierMergeLoRAs",
            display_name="Merge and Resize LoRA",
            category="training/atelier/results",
            description=(
                "Adds up to three LoRAs up, each with a weight, and makes the result smaller if "
                "you want: with the fewest ranks that do the same, or nearly so. With one LoRA it "
                "only resizes it."
            ),
            inputs=[
                io.LoraModel.Input("lora_1", tooltip="From Train LoRA or a core training node."),
                _weight("weight_1"),
                *_size(),
                io.LoraModel.Input(
                    "lora_2", optional=True, tooltip="Another one for the same base model."
                ),
                _weight("weight_2", optional=True),
                io.LoraModel.Input(
                    "lora_3", optional=True, tooltip="A third one; for more, chain these nodes."
                ),
                _weight("weight_3", optional=True),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "The model they are for: needed only when the LoRAs name their layers in "
                        "different ways and none comes from Train LoRA."
                    ),
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Likewise the text encoder, if the LoRAs change that too.",
                ),
            ],
            outputs=[
                io.LoraModel.Output(
                    "lora",
                    display_name="lora",
                    tooltip="The result, for Apply Trained LoRA or Save LoRA.",
                ),
                io.String.Output(
                    "text",
                    display_name="text",
                    tooltip="Size, and for each layer its rank and how much of it is left.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        network_dim: int | None = None,
        conv_dim: int | None = None,
        dynamic_method: str | None = None,
        dynamic_param: float | None = None,
    ) -> bool | str:
        return verdict(_resize, network_dim, conv_dim, dynamic_method, dynamic_param)

    @classmethod
    def execute(
        cls,
        lora_1: Mapping[str, Tensor],
        weight_1: float,
        network_dim: int,
        conv_dim: int,
        dynamic_method: str,
        dynamic_param: float,
        lora_2: Mapping[str, Tensor] | None = None,
        weight_2: float = 1.0,
        lora_3: Mapping[str, Tensor] | None = None,
        weight_3: float = 1.0,
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        resize = _resize(network_dim, conv_dim, dynamic_method, dynamic_param)
        given = _given((lora_1, weight_1), (lora_2, weight_2), (lora_3, weight_3))
        if resize.changes_nothing and [weight for _, weight in given.values()] == [1]:
            ((lora, _),) = given.values()
            return _shown(lora, ["as it was: nothing to add or to cut off"], [])
        return _merged(given, resize, model, clip)


def _merged(given: Given, resize: Resize, model: Any, clip: Any) -> io.NodeOutput:
    from ...training.host.linear_algebra import linear_algebra_device
    from ...training.host.lora_formats import Models
    from ...training.host.lora_names import plain_names, with_same_names
    from ...training.host.progress import HostProgress

    trained_on = [lora.models for lora, _ in given.values() if getattr(lora, "models", None)]
    models = Models(model, clip)
    if trained_on:
        models = Models(model or trained_on[0].model, clip or trained_on[0].clip)
    loras: list[WeightedLora] = [
        weighted_lora(name, plain_names(lora), weight) for name, (lora, weight) in given.items()
    ]
    loras, shapes = with_same_names(loras, models)
    stems = {stem for lora in loras for stem in lora.layers}
    progress = HostProgress(len(stems))
    merged = merge(loras, resize, linear_algebra_device(), shapes, progress.tick)
    told = [(getattr(lora, "metadata", {}), weight) for lora, weight in given.values()]
    metadata = merged_metadata(told, merged.layers, merged.tensors)
    known = models if models.model is not None else None
    result = TrainedLora(merged.tensors, metadata, known)
    before = [lora for lora, _ in given.values()]
    return _shown(
        result,
        merge_summary(merged.layers, before, merged.tensors),
        [layer_line(layer) for layer in merged.layers],
    )


def _shown(lora: Mapping[str, Tensor], summary: list[str], layers: list[str]) -> io.NodeOutput:
    show_text("\n".join(summary))
    text = "\n".join([*summary, *(["", *layers] if layers else [])])
    return io.NodeOutput(lora, text, ui=ui.PreviewText("\n".join(summary)))


def _given(*loras: tuple[Mapping[str, Tensor] | None, float]) -> Given:
    """Input -> LoRA and weight, of those that count.

    Raises:
        AtelierError: a weight is no number of its range, or none counts.
    """
    found = {}
    for number, (lora, weight) in enumerate(loras, start=1):
        if lora is None:
            continue
        require_number(f"weight_{number}", weight, *WEIGHTS, "1 = as it is.")
        if weight != 0:
            found[f"lora_{number}"] = (lora, weight)
    require(len(found) > 0, "All weights are 0, so that nothing is left. Set one of them to 1.")
    return found


def _resize(network_dim: int, conv_dim: int, method: str, param: float) -> Resize:
    kind = choice("dynamic_method", method, DynamicMethod)
    return Resize(network_dim, conv_dim, kind, param)


def _weight(name: str, optional: bool = False) -> io.Input:
    number = name.removeprefix("weight_")
    return io.Float.Input(
        name,
        default=1.0,
        min=WEIGHTS[0],
        max=WEIGHTS[1],
        step=0.05,
        round=0.001,
        optional=optional,
        tooltip=(
            f"How much lora_{number} counts: 1 as it is, 0.5 half as strong, negative takes it "
            "away, 0 leaves it out."
        ),
    )


def _size() -> list[io.Input]:
    return [
        io.Int.Input(
            "network_dim",
            default=0,
            min=0,
            max=4096,
            tooltip=(
                "Highest rank of a layer. 0 = no limit: merging is exact then, and the ranks add "
                "up. 8 to 32 suits most LoRAs; a style often does with 8."
            ),
        ),
        io.Int.Input(
            "conv_dim",
            default=0,
            min=0,
            max=4096,
            tooltip="The same for 3×3 convolutions (LoCon), which need less; 0 = as network_dim.",
        ),
        io.Combo.Input(
            "dynamic_method",
            options=DynamicMethod,
            default=DynamicMethod.NONE,
            tooltip=(
                "Whether each layer gets the rank it needs: sv_fro keeps a share of its change, "
                "sv_cumulative of its singular values, sv_ratio those not much smaller than the "
                "largest. none = the same limit for all."
            ),
        ),
        io.Float.Input(
            "dynamic_param",
            default=0.9,
            min=0.01,
            max=1e6,
            step=0.01,
            round=0.0001,
            tooltip=(
                "For sv_fro and sv_cumulative the share that is kept, such as 0.9; for sv_ratio "
                "how many times smaller, such as 10. Not used with none."
            ),
        ),
    ]
