"""The node that writes a LoRA file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ...training.files import write_whole
from ...training.results.lora_file import (
    SavePrecision,
    TrainedLora,
    as_strings,
    in_precision,
    require_finite,
    save_lora,
)
from ...training.results.lora_formats import KeyFormat, format_of, key_parts
from ...training.results.manager_files import (
    thumbnail,
    write_a1111_json,
    write_civitai_info,
    write_preview,
)
from ..graph.checks import choice, verdict
from ..graph.outputs import loras_folder, new_file, output_folder, shown
from ..graph.upstream import graph_metadata
from ..live.progress import show_text

BASE_KEYS = ("ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash")


class SaveLoRA(io.ComfyNode):
    """LORA_MODEL -> .safetensors file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierSaveLoRA",
            display_name="Save LoRA",
            category="training/atelier/results",
            is_output_node=True,
            description=(
                "Writes the LoRA as a .safetensors file with its training settings, reads it back "
                "and checks that ComfyUI loads all of it and that it does what was trained. With "
                "kohya's key names LoraLoader, diffusers and other programs read it."
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
                io.Combo.Input(
                    "key_format",
                    options=KeyFormat,
                    default=KeyFormat.KOHYA,
                    optional=True,
                    tooltip=(
                        "kohya is read everywhere. comfyui: names of ComfyUI's own layers, for "
                        "ComfyUI alone. diffusers: for Python scripts; plain LoRA only."
                    ),
                ),
                io.String.Input(
                    "title",
                    default="",
                    optional=True,
                    tooltip="Name that LoRA managers show; empty = the name of the dataset.",
                ),
                io.String.Input(
                    "author",
                    default="",
                    optional=True,
                    tooltip="Your name or nickname, if it is to be in the file; empty = none.",
                ),
                io.String.Input(
                    "description",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="What the LoRA does and how to use it, for those you give it to.",
                ),
                io.String.Input(
                    "license",
                    default="",
                    optional=True,
                    tooltip=(
                        "Licence of the LoRA, such as CC-BY-4.0. That of the pictures is noted in "
                        "any case, if the dataset names it."
                    ),
                ),
                io.String.Input(
                    "trigger_phrase",
                    default="",
                    optional=True,
                    tooltip=(
                        "Words that call the LoRA up in a prompt; empty = class_tokens of the "
                        "pictures it was trained on, if they have some."
                    ),
                ),
                io.Boolean.Input(
                    "manager_files",
                    default=False,
                    optional=True,
                    tooltip=(
                        "Also write trigger phrase, description and base model into files beside "
                        "it: a .json for A1111 and Forge, a .civitai.info for LoRA Manager."
                    ),
                ),
                io.Image.Input(
                    "preview",
                    optional=True,
                    tooltip=(
                        "A picture made with the LoRA: goes into the file as a thumbnail, and "
                        "beside it as .preview.png, where LoRA managers look. The first one counts."
                    ),
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=(
                        "Only for a LoRA that is not from Train LoRA: the model it is for, to "
                        "check it on and to translate its keys."
                    ),
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Likewise: the text encoder, if the LoRA changes that too.",
                ),
                io.String.Input(
                    "tags",
                    default="",
                    optional=True,
                    tooltip=(
                        "What it is, for searching in LoRA managers: words with commas between, "
                        "such as style, glossy, emoji. Not those of the captions, which are noted "
                        "in any case."
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
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
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
        key_format: str = KeyFormat.KOHYA.value,
        title: str = "",
        author: str = "",
        description: str = "",
        license: str = "",
        trigger_phrase: str = "",
        manager_files: bool = False,
        preview: Tensor | None = None,
        model: Any = None,
        clip: Any = None,
        tags: str = "",
    ) -> io.NodeOutput:
        from ...training.host.lora_formats import Models

        path = new_file(filename_prefix, ".safetensors", output_folder())
        picture = None if preview is None else _picture(preview)
        trained_on = getattr(lora, "models", None)
        models = Models(model, clip)
        if trained_on is not None:
            models = Models(model or trained_on.model, clip or trained_on.clip)
        precision = choice("save_precision", save_precision, SavePrecision)
        remembered = getattr(lora, "metadata", {})
        told = as_strings(
            {
                **_without_base(graph_metadata(cls.hidden), remembered),
                "ss_output_name": path.stem,
                "modelspec.title": title.strip(),
                "modelspec.author": author.strip(),
                "modelspec.description": description.strip(),
                "modelspec.license": license.strip(),
                "modelspec.trigger_phrase": trigger_phrase.strip()
                or remembered.get("modelspec.trigger_phrase", ""),
                "modelspec.tags": ", ".join(filter(None, map(str.strip, tags.split(",")))),
                "modelspec.thumbnail": "" if picture is None else thumbnail(picture),
            }
        )
        note = _write(
            path, lora, models, precision, choice("key_format", key_format, KeyFormat), told
        )
        files = [path]
        if add_to_models_loras:
            files.append(_copied(path, filename_prefix))
        beside = []
        for file in files:
            if picture is not None:
                beside.append(write_preview(file, picture))
            if manager_files:
                beside.append(write_a1111_json(file, {**remembered, **told}))
                beside.append(write_civitai_info(file, {**remembered, **told}))
        show_text("\n".join([*map(shown, [*files, *beside]), *note]))
        return io.NodeOutput(str(path), ui=ui.PreviewText("\n".join(map(str, files))))


def _write(
    path: Path,
    lora: Mapping[str, Tensor],
    models: Any,
    precision: SavePrecision,
    key_format: KeyFormat,
    told: dict[str, str],
) -> list[str]:
    """Write the file and check it on the models; what remains to be said of it."""
    from ...training.host.lora_check import check_file
    from ...training.host.lora_formats import rewritten
    from ...training.host.progress import HostProgress

    require_finite(in_precision(lora, precision), precision)
    stems = [key_parts(key)[0] for key in lora]
    foreign = any(format_of(stem) is not key_format for stem in stems)
    note: list[str] = []
    if foreign and models.model is None and key_format is KeyFormat.KOHYA:
        note = ["Its keys stay as they came. To write kohya's, wire model, and clip."]
        written: Mapping[str, Tensor] = lora
    else:
        written = rewritten(lora, models, key_format)
    written = TrainedLora(written, getattr(lora, "metadata", {}))
    if models.model is None:
        note.append("Not checked on a model: wire model to do so.")
        save_lora(path, written, precision, told)
        return note
    progress = HostProgress(len(set(stems)))
    save_lora(
        path,
        written,
        precision,
        told,
        lambda read: check_file(read, lora, models, precision, progress.tick),
    )
    return note


def _without_base(graph: dict[str, str], remembered: Mapping[str, str]) -> dict[str, str]:
    """A LoRA from a file knows its base model better than the graph, where another one may be
    wired to look at it."""
    if "ss_sd_model_name" not in remembered:
        return graph
    return {key: value for key, value in graph.items() if key not in BASE_KEYS}


def _copied(path: Path, filename_prefix: str) -> Path:
    """The same bytes in models/loras, so that both hash alike."""
    copy = loras_folder() / path.relative_to(output_folder())
    if copy.exists():
        copy = new_file(filename_prefix, ".safetensors", loras_folder())
    write_whole(copy, path.read_bytes())
    return copy


def _picture(images: Tensor) -> Image.Image:
    """The first of IMAGE [B, H, W, C] 0..1."""
    return Image.fromarray((images[0, ..., :3].cpu().clamp(0, 1) * 255).round().byte().numpy())
