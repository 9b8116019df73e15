"""Names of layers in LoRA files, as kohya-ss/sd-scripts writes and ComfyUI reads them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.supported_models as families
from torch import Tensor, nn

from ..errors import require
from ..network.adapters.base import weight_shape
from ..network.existing_lora import DOWN, UP, ExistingLora, Rows, joined

DIFFUSERS_NAMED = (families.SD15, families.SD20)
"""Families whose files carry diffusers' block names (``down_blocks_0_attentions_0_…``); the rest
carry the model's own (``input_blocks_4_1_…``, ``double_blocks_0_…``)."""
PEFT_PREFIXES = ("unet.", "base_model.model.", "unet.base_model.model.")


def file_names(base: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """Layer path inside the diffusion model -> name in the file (``lora_unet_…``), for every layer
    that the host's loader finds under its name."""
    host_keys = comfy.lora.model_lora_keys_unet(base, {})
    names = {path: f"lora_unet_{path.replace('.', '_')}" for path in paths}
    if isinstance(base.model_config, DIFFUSERS_NAMED):
        own = set(names.values())
        for name, key in host_keys.items():  # no layer is cut up in these families
            path = key.removeprefix("diffusion_model.").removesuffix(".weight")
            if path in names and name.startswith("lora_unet_") and name not in own:
                names[path] = name
    return {path: name for path, name in names.items() if name in host_keys}


def text_encoder_names(encoders: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """Layer path inside the text encoders of a CLIP -> name in the file, as kohya-ss/sd-scripts
    writes it: ``lora_te_…`` where there is one encoder, ``lora_te1_…`` (CLIP-L), ``lora_te2_…``
    (CLIP-G), ``lora_te3_…`` (T5) where there are several. Layers for which the host knows no such
    name are left out.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for name, key in comfy.lora.model_lora_keys_clip(encoders, {}).items():
        if name.startswith("lora_te"):
            found[key.removesuffix(".weight")].append(name)
    several = len(list(encoders.children())) > 1
    return {path: _text_name(found[path], several) for path in paths if path in found}


def _text_name(names: list[str], several: bool) -> str:
    """Of a layer's names in the host the one that others write."""
    plain = [name for name in names if name.startswith("lora_te_")]
    numbered = [name for name in names if name not in plain]
    # The host also reads Flux' T5 as lora_te2, which is CLIP-G's number elsewhere.
    return max(numbered) if numbered and (several or not plain) else plain[0]


def existing_layers(
    base: nn.Module, existing: ExistingLora, layers: Mapping[str, nn.Module]
) -> dict[str, dict[str, Tensor]]:
    """Layer path inside the diffusion model -> what a LoRA holds for it, in its adapter's names.

    Args:
        layers: path -> layer that can have an adapter.

    Raises:
        AtelierError: part of it belongs to no layer that can be trained; nothing is left out.
    """
    contents = _converted(existing).layers()
    require(
        len(contents) > 0,
        f'existing LoRA "{existing.name}" holds nothing for the diffusion model.',
    )
    return _by_path(contents, names_of_layers(base), existing.name, layers)


def existing_text_layers(
    encoders: nn.Module, existing: ExistingLora, layers: Mapping[str, nn.Module]
) -> dict[str, dict[str, Tensor]]:
    """As :func:`existing_layers`, of the text encoders of a CLIP."""
    contents = _converted(existing).layers(text_encoders=True)
    return _by_path(contents, names_of_text_layers(encoders), existing.name, layers)


def _converted(existing: ExistingLora) -> ExistingLora:
    return ExistingLora(comfy.lora_convert.convert_lora(dict(existing.tensors)), existing.name)


def _by_path(
    contents: Mapping[str, dict[str, Tensor]],
    meant: Mapping[str, Place],
    file: str,
    layers: Mapping[str, nn.Module],
) -> dict[str, dict[str, Tensor]]:
    """Layer path -> what a file holds for it, its parts joined."""
    lost = [n for n in contents if n not in meant or meant[n].path not in layers]
    require(
        not lost,
        f'existing LoRA "{file}": {len(lost)} of its {len(contents)} layers '
        f"cannot be continued on this model: {', '.join(lost[:3])}. It was made for another model.",
    )
    found: dict[str, dict[Rows | None, dict[str, Tensor]]] = defaultdict(dict)
    for name, parts in contents.items():
        place = meant[name]
        taken = found[place.path]
        require(
            place.rows not in taken and (None not in taken) and (place.rows or not taken),
            f'existing LoRA "{file}" holds the layer {place.path} more than once.',
        )
        require(
            place.rows is None or parts.keys() == {DOWN, UP, "alpha"},
            f'existing LoRA "{file}": {name} is a part of a layer here, which is '
            "continued for plain LoRA alone.",
        )
        taken[place.rows] = parts
    return {
        path: parts[None] if None in parts else joined(list(parts.items()), _width(layers[path]))
        for path, parts in found.items()
    }


@dataclass(frozen=True)
class Place:
    """What a name in a file means."""

    path: str
    """Layer inside the diffusion model."""
    rows: Rows | None = None
    """Part of its weight; None = all of it."""


def names_of_text_layers(encoders: nn.Module) -> dict[str, Place]:
    """Every name that a layer of a text encoder may have in a file."""
    keys = comfy.lora.model_lora_keys_clip(encoders, {})
    meant = {name: Place(key.removesuffix(".weight")) for name, key in keys.items()}
    # peft writes diffusers' names with its own prefix before or behind the encoder's.
    for name, place in list(meant.items()):
        encoder, dot, path = name.partition(".")
        if encoder.startswith("text_encoder") and dot:
            meant[f"{encoder}.base_model.model.{path}"] = place
            meant[f"base_model.model.{name}"] = place
    return meant


def names_of_layers(base: nn.Module) -> dict[str, Place]:
    """Every name that a layer, or part of one, may have in a file."""
    names = {}
    for name, key in comfy.lora.model_lora_keys_unet(base, {}).items():
        if (place := _place(key)) is not None:
            names[name] = place
    for name, place in list(names.items()):
        if name.startswith(("lora_", "lycoris_", "diffusion_model.")):
            continue
        # peft writes diffusers' paths as they are; the host knows them as attention processors.
        plain = name.removeprefix("unet.").replace(".processor.to_", ".to_")
        plain += ".0" if plain.endswith(".to_out") else ""
        for prefix in ("", *PEFT_PREFIXES):
            names.setdefault(prefix + plain, place)
    return names


def _place(key: Any) -> Place | None:
    """What a host's key means; None for what is no weight, and for rows in another order."""
    if isinstance(key, tuple) and len(key) == 2 and key[1][0] == 0:
        place = _place(key[0])
        return place and Place(place.path, tuple(key[1][1:]))
    if not isinstance(key, str) or not key.endswith(".weight"):
        return None
    return Place(key.removeprefix("diffusion_model.").removesuffix(".weight"))


def _width(layer: nn.Module) -> int:
    return weight_shape(layer)[0]
