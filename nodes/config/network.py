"""The node that says what kind of LoRA is trained, where, and how large."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ...training.errors import AtelierError, require
from ...training.network.existing_lora import ExistingLora
from ...training.network.presets import SIZES, Preset
from ...training.network.spec import (
    DEFAULT_ALPHA,
    DEFAULT_DIM,
    MAX_DROPOUT,
    MAX_NETWORK_DIM,
    Algorithm,
    NetworkSpec,
    parse_block_dims,
)
from ...training.network.targets import TargetModules, TextEncoders
from ..graph.checks import choice, verdict
from ..graph.wires import AtelierNetwork
from ..live.progress import show_text

CATEGORY = "training/atelier/config"
NO_FILE = "none"


class LoRANetwork(io.ComfyNode):
    """Algorithm, size and layers -> ATELIER_NETWORK."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierNetwork",
            display_name="LoRA Network",
            category=CATEGORY,
            description=(
                "What kind of LoRA is trained, how large it is, and on which layers of the "
                "diffusion model. Unless it continues another LoRA, it starts as exactly the base "
                "model."
            ),
            inputs=[
                *_size_inputs(),
                *_kind_inputs(),
                *_dropout_inputs(),
                *_start_inputs(),
                *_text_inputs(),
            ],
            outputs=[
                AtelierNetwork.Output(
                    "network", display_name="network", tooltip="Network settings, for Train LoRA."
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        network_dim: int | None = None,
        network_alpha: float | None = None,
        preset: str | None = Preset.CUSTOM.value,
        algorithm: str | None = Algorithm.LORA.value,
        target_modules: str | None = TargetModules.ATTENTION_MLP.value,
        target_regex: str | None = "",
        conv_dim: int | None = 0,
        conv_alpha: float | None = 0.0,
        rs_lora: bool | None = False,
        network_dropout: float | None = 0.0,
        rank_dropout: float | None = 0.0,
        module_dropout: float | None = 0.0,
        scale_weight_norms: float | None = 0.0,
        lokr_factor: int | None = -1,
        block_dims: str | None = "",
        network_weights: str | None = NO_FILE,
        text_encoders: str | None = TextEncoders.NONE.value,
        text_encoder_dim: int | None = 0,
        text_encoder_alpha: float | None = 0.0,
    ) -> bool | str:
        values = {name: value for name, value in locals().items() if name != "cls"}
        return verdict(_spec, **values)

    @classmethod
    def fingerprint_inputs(cls, network_weights: str | None = NO_FILE, **others: Any) -> str:
        """A LoRA that was written anew under its old name is another one."""
        if network_weights in (None, NO_FILE):
            return ""
        path = folder_paths.get_full_path("loras", network_weights)
        if path is None:
            return "missing"
        stat = Path(path).stat()
        return hashlib.sha256(f"{path} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()

    @classmethod
    def execute(
        cls,
        network_dim: int,
        network_alpha: float,
        preset: str = Preset.CUSTOM.value,
        algorithm: str = Algorithm.LORA.value,
        target_modules: str = TargetModules.ATTENTION_MLP.value,
        target_regex: str = "",
        conv_dim: int = 0,
        conv_alpha: float = 0.0,
        rs_lora: bool = False,
        network_dropout: float = 0.0,
        rank_dropout: float = 0.0,
        module_dropout: float = 0.0,
        scale_weight_norms: float = 0.0,
        lokr_factor: int = -1,
        block_dims: str = "",
        network_weights: str = NO_FILE,
        existing_lora: Mapping[str, Tensor] | None = None,
        text_encoders: str = TextEncoders.NONE.value,
        text_encoder_dim: int = 0,
        text_encoder_alpha: float = 0.0,
    ) -> io.NodeOutput:
        values = {
            name: value for name, value in locals().items() if name not in ("cls", "existing_lora")
        }
        spec = _spec(**values, existing=_existing(network_weights, existing_lora))
        show_text("\n".join(notes(spec)))
        return io.NodeOutput(spec)


def _spec(
    network_dim: int,
    network_alpha: float,
    preset: str,
    algorithm: str,
    target_modules: str,
    block_dims: str,
    network_weights: str,
    text_encoders: str,
    existing: ExistingLora | None = None,
    **others: Any,
) -> NetworkSpec:
    """The widgets as the engine's settings; a preset's numbers win over those of the widgets."""
    kind = choice("algorithm", algorithm, Algorithm)
    size = SIZES.get(choice("preset", preset, Preset), (network_dim, network_alpha))
    require(
        preset == Preset.CUSTOM.value or kind.has_rank,
        f"preset is {preset}, which sets rank and alpha, but algorithm {algorithm} has none. Set "
        "preset to custom, or choose another algorithm.",
    )
    if existing is None and network_weights != NO_FILE:  # not read yet: judge what goes with it
        existing = ExistingLora({}, network_weights)
    return NetworkSpec(
        *size,
        algorithm=kind,
        target_modules=choice("target_modules", target_modules, TargetModules),
        block_dims=parse_block_dims(block_dims),
        existing=existing,
        text_encoders=choice("text_encoders", text_encoders, TextEncoders),
        **others,
    )


def _existing(network_weights: str, lora: Mapping[str, Tensor] | None) -> ExistingLora | None:
    """The LoRA to continue from, of a file or of the graph.

    Raises:
        AtelierError: both are given, or the file cannot be read.
    """
    if network_weights == NO_FILE:
        return None if lora is None else ExistingLora(dict(lora), "existing_lora")
    require(
        lora is None,
        f'network_weights is "{network_weights}" and existing_lora is connected: only one LoRA can '
        "be continued. Set network_weights to none, or disconnect the other.",
    )
    path = folder_paths.get_full_path("loras", network_weights)
    require(
        path is not None,
        f'network_weights: there is no file "{network_weights}" in models/loras. Press R to '
        "refresh the list.",
    )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return ExistingLora(load_file(path), network_weights)
    except (OSError, SafetensorError) as error:
        raise AtelierError(
            f'network_weights: "{network_weights}" is no whole safetensors file ({error}).'
        ) from error


def notes(spec: NetworkSpec) -> list[str]:
    """What a person should know of the settings, shown on the node."""
    lines = []
    if spec.existing is not None:
        lines.append(f'{spec.label}: layers, rank and alpha are those of "{spec.existing.name}".')
    elif spec.algorithm.has_rank:
        strength = spec.size(spatial=False)
        lines.append(
            f"{spec.label}: rank {spec.network_dim}, alpha {spec.network_alpha:g}, "
            f"scale {strength.alpha / strength.dim:.3g}"
        )
        if spec.network_alpha > spec.network_dim:
            lines.append(
                f"network_alpha {spec.network_alpha:g} is above the rank {spec.network_dim}: every "
                "update is amplified, which easily diverges. Half the rank or the rank is usual."
            )
    elif spec.algorithm.rotates:
        lines.append(
            f"{spec.label}: network_dim {spec.network_dim} is the size of a block; network_alpha "
            "has no meaning."
        )
    else:
        lines.append(f"{spec.label}: network_dim and network_alpha have no meaning.")
    return lines


def _lora_files() -> list[str]:
    files = folder_paths.get_filename_list("loras")
    return [NO_FILE, *(name for name in files if name.endswith(".safetensors"))]


def _size_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "network_dim",
            default=DEFAULT_DIM,
            min=1,
            max=MAX_NETWORK_DIM,
            tooltip=(
                "Rank: how much the LoRA can hold. 8 to 16 for a light style, 32 for an anime "
                "style, 128 for a character or a complex style. Larger files, more memory, and "
                "sooner overfitted on few pictures. For oft and boft it is the size of a block; "
                "full has no rank."
            ),
        ),
        io.Float.Input(
            "network_alpha",
            default=DEFAULT_ALPHA,
            min=0.001,
            max=10000.0,
            step=0.5,
            round=0.001,
            tooltip=(
                "The LoRA's effect is scaled by network_alpha / network_dim. Half the rank or the "
                "rank are usual; a smaller alpha works like a lower learning rate. Above the rank "
                "it amplifies and easily diverges. Leave it at 16 for full, oft and boft, which "
                "have none."
            ),
        ),
        io.Combo.Input(
            "preset",
            options=Preset,
            default=Preset.CUSTOM,
            optional=True,
            tooltip=(
                "Rank and alpha for a purpose: anime_style 32/16, complex_style (also characters "
                "and 3D objects) 128/64, light 16/8. Its numbers win over those of the widgets; "
                "custom takes the widgets."
            ),
        ),
    ]


def _kind_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "algorithm",
            options=Algorithm,
            default=Algorithm.LORA,
            optional=True,
            tooltip=(
                "lora suits nearly everything and loads everywhere; with conv_dim it is LoCon. "
                "dora learns closer to full training and is slower. loha and lokr hold more in "
                "small files. oft and boft turn the layers and keep the base's knowledge best. "
                "full trains all numbers: huge."
            ),
        ),
        io.Combo.Input(
            "target_modules",
            options=TargetModules,
            default=TargetModules.ATTENTION_MLP,
            optional=True,
            tooltip=(
                "Which layers are trained. attention_mlp is right for nearly all. attention alone "
                "is smaller and gentler. all_linear adds embeddings, all_linear_conv also every "
                "convolution. regex takes what target_regex says. none trains only text_encoders."
            ),
        ),
        io.String.Input(
            "target_regex",
            default="",
            placeholder=r"attn2|middle_block",
            optional=True,
            tooltip=(
                "For target_modules regex: layers whose path in the model, or whose name in the "
                "LoRA file, contains this regular expression. attn2 trains only how the model "
                "listens to the prompt."
            ),
        ),
        io.Int.Input(
            "conv_dim",
            default=0,
            min=0,
            max=MAX_NETWORK_DIM,
            optional=True,
            tooltip=(
                "Above 0 the 3×3 convolutions of a U-Net's residual blocks are trained too, with "
                "this rank (LoCon). They hold texture and brush strokes: 4 to 16 for a style. 0 = "
                "off. Flux, SD3 and the like have none."
            ),
        ),
        io.Float.Input(
            "conv_alpha",
            default=0.0,
            min=0.0,
            max=10000.0,
            step=0.5,
            round=0.001,
            optional=True,
            tooltip=(
                "Alpha of the convolutions. 0 = in the same proportion to conv_dim as "
                "network_alpha is to network_dim."
            ),
        ),
        io.Boolean.Input(
            "rs_lora",
            default=False,
            optional=True,
            tooltip=(
                "Divides alpha by the square root of the rank instead of the rank, so that high "
                "ranks learn as fast as low ones. It is much stronger at the same alpha: set "
                "network_alpha to 1 to 4."
            ),
        ),
        io.Int.Input(
            "lokr_factor",
            default=-1,
            min=-1,
            max=MAX_NETWORK_DIM,
            optional=True,
            tooltip=(
                "For lokr: size of the first of its two matrices. Smaller gives larger files that "
                "hold more; 4 to 16 is usual. -1 = as square as the layer allows, the smallest "
                "file."
            ),
        ),
        io.String.Input(
            "block_dims",
            default="",
            placeholder="16, 16, 8, 0, …",
            optional=True,
            tooltip=(
                "A rank for each block of the model, in its order: 0 leaves a block out. Empty = "
                "network_dim everywhere. A wrong count is refused with the names of the blocks, so "
                "write a 1 to see them. alpha keeps its proportion."
            ),
        ),
    ]


def _dropout_inputs() -> list[io.Input]:
    probability = {"default": 0.0, "min": 0.0, "max": MAX_DROPOUT, "step": 0.05, "round": 0.001}
    return [
        io.Float.Input(
            "network_dropout",
            **probability,
            optional=True,
            tooltip=(
                "Probability with which single numbers in the narrow middle of lora and dora are "
                "switched off in a pass. 0.1 to 0.3 against overfitting on few pictures; 0 = off."
            ),
        ),
        io.Float.Input(
            "rank_dropout",
            **probability,
            optional=True,
            tooltip=(
                "The same for whole ranks of lora and dora, others for each picture: ranks learn "
                "to do without each other. 0.1 to 0.3; 0 = off."
            ),
        ),
        io.Float.Input(
            "module_dropout",
            **probability,
            optional=True,
            tooltip=(
                "Probability with which a layer goes without its adapter in a pass; for every "
                "algorithm. 0.1 to 0.3 lets the LoRA mix better with others; 0 = off."
            ),
        ),
        io.Float.Input(
            "scale_weight_norms",
            default=0.0,
            min=0.0,
            max=10000.0,
            step=0.1,
            round=0.001,
            optional=True,
            tooltip=(
                "Max-norm: after each step no layer's change is longer than this. 1 keeps a LoRA "
                "from burning in, and mixing well with others; 0 = off. Not for oft and boft."
            ),
        ),
    ]


def _start_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "network_weights",
            options=_lora_files(),
            default=NO_FILE,
            optional=True,
            tooltip=(
                "A LoRA of models/loras to train on from; it decides the layers, rank and alpha. "
                "Kohya's, ComfyUI's and diffusers' files are read. none = begin anew."
            ),
        ),
        io.LoraModel.Input(
            "existing_lora",
            optional=True,
            tooltip=(
                "The same from the graph: the lora output of another Train LoRA. Leave "
                "network_weights on none then."
            ),
        ),
    ]


def _text_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "text_encoders",
            options=TextEncoders,
            default=TextEncoders.NONE,
            optional=True,
            tooltip=(
                "Whether the text encoders learn too. none is right for most, and fastest: "
                "captions are encoded once. clip (CLIP-L, CLIP-G) helps SD1.5 and SDXL learn a "
                "new word, at the price of memory, time and sooner overfitting. all also trains "
                "T5, which is huge. Their rate is text_encoder_lr on Optimizer."
            ),
        ),
        io.Int.Input(
            "text_encoder_dim",
            default=0,
            min=0,
            max=MAX_NETWORK_DIM,
            optional=True,
            tooltip=(
                "Rank at the text encoders' layers. Half of network_dim or less is usual, for "
                "they learn fast. 0 = as network_dim. Only with text_encoders clip or all."
            ),
        ),
        io.Float.Input(
            "text_encoder_alpha",
            default=0.0,
            min=0.0,
            max=10000.0,
            step=0.5,
            round=0.001,
            optional=True,
            tooltip=(
                "Alpha at the text encoders' layers. 0 = in the same proportion to their rank as "
                "network_alpha is to network_dim."
            ),
        ),
    ]
