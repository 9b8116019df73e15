"""A LoRA in another spelling of its keys, with the host's knowledge of what each key means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import comfy.lora
import comfy.lora_convert
import comfy.model_base
from torch import Tensor, nn

from ..errors import require
from ..network.existing_lora import of_text_encoder
from ..results.lora_formats import (
    KeyFormat,
    Piece,
    for_diffusers,
    format_of,
    key_parts,
    put_together,
    require_whole,
)
from .lora_keys import (
    file_names,
    names_of_layers,
    names_of_text_layers,
    text_encoder_names,
)

DIFFUSERS_PREFIXES = ("unet.", "transformer.", "text_encoder.", "text_encoder_2.")
NOT_DIFFUSERS = (comfy.model_base.HunyuanVideo,)
"""Families of which ComfyUI reads names with a prefix of diffusers' that are not its names."""


class Models(NamedTuple):
    """What knows what a LoRA's keys mean; None where it is not at hand."""

    model: Any = None
    clip: Any = None


def rewritten(
    lora: Mapping[str, Tensor], models: Models, key_format: KeyFormat
) -> Mapping[str, Tensor]:
    """The same LoRA with the keys of ``key_format``.

    Raises:
        AtelierError: a key belongs to no layer of these models, a model is missing that would know
            it, or the format cannot hold this LoRA.
    """
    stems = _by_layer(comfy.lora_convert.convert_lora(dict(lora)))
    if all(format_of(stem) is key_format for stem in stems):
        return lora
    of_texts = {stem: parts for stem, parts in stems.items() if of_text_encoder(f"{stem}.")}
    of_model = {stem: parts for stem, parts in stems.items() if stem not in of_texts}
    for name, found, model in (("model", of_model, models.model), ("clip", of_texts, models.clip)):
        require(
            not found or model is not None,
            f'key_format is "{key_format.value}": what the keys of this LoRA mean, only the model '
            f"knows that it was trained on. Wire {name}.",
        )
    written = {}
    if of_model:
        written |= _rewritten(of_model, _ModelLayers(models.model.model), key_format)
    if of_texts:
        written |= _rewritten(of_texts, _TextLayers(models.clip.cond_stage_model), key_format)
    return written


class _ModelLayers:
    """Names of the layers of a diffusion model."""

    def __init__(self, base: nn.Module) -> None:
        self.base = base
        self.meant = names_of_layers(base)
        self.shapes = base.diffusion_model.state_dict()
        self.host = comfy.lora.model_lora_keys_unet(base, {})

    def kohya(self, paths: Iterable[str]) -> dict[str, str]:
        return file_names(self.base, paths)

    def comfyui(self, path: str) -> str:
        return f"diffusion_model.{path}"

    def width(self, path: str) -> int:
        return int(self.shapes[f"{path}.weight"].shape[0])

    def diffusers(self) -> dict[str, list[Piece]]:
        if isinstance(self.base, NOT_DIFFUSERS):
            return {}
        return _pieces(self.host, "diffusion_model.")


class _TextLayers:
    """Names of the layers of the text encoders of a CLIP."""

    def __init__(self, encoders: nn.Module) -> None:
        self.encoders = encoders
        self.meant = names_of_text_layers(encoders)
        self.shapes = encoders.state_dict()
        self.host = comfy.lora.model_lora_keys_clip(encoders, {})

    def kohya(self, paths: Iterable[str]) -> dict[str, str]:
        return text_encoder_names(self.encoders, paths)

    def comfyui(self, path: str) -> str:
        return f"text_encoders.{path}"

    def width(self, path: str) -> int:
        return int(self.shapes[f"{path}.weight"].shape[0])

    def diffusers(self) -> dict[str, list[Piece]]:
        return _pieces(self.host, "")


def _rewritten(
    stems: Mapping[str, Mapping[str, Tensor]],
    layers: _ModelLayers | _TextLayers,
    key_format: KeyFormat,
) -> dict[str, Tensor]:
    whole = _whole_layers(stems, layers)
    if key_format is KeyFormat.DIFFUSERS:
        return _in_diffusers(whole, layers)
    if key_format is KeyFormat.KOHYA:
        names = layers.kohya(whole)
    else:
        names = {path: layers.comfyui(path) for path in whole}
    lost = [path for path in whole if path not in names]
    require(
        not lost,
        f'key_format is "{key_format.value}", but ComfyUI knows no such name for {len(lost)} '
        f"layers of the LoRA: {lost[:3]}. Choose comfyui.",
    )
    return {f"{names[p]}.{own}": t for p, parts in whole.items() for own, t in parts.items()}


def _whole_layers(
    stems: Mapping[str, Mapping[str, Tensor]], layers: _ModelLayers | _TextLayers
) -> dict[str, Mapping[str, Tensor]]:
    """Layer path -> what the LoRA holds for it, pieces put together."""
    pieces = {p.name: (path, p) for path, ps in layers.diffusers().items() for p in ps}
    found: dict[str, list[tuple[Piece, Mapping[str, Tensor]]]] = defaultdict(list)
    lost = []
    for stem, parts in stems.items():
        if stem in pieces:
            path, piece = pieces[stem]
        elif stem in layers.meant:
            path, piece = layers.meant[stem].path, Piece(stem, layers.meant[stem].rows)
        else:
            lost.append(stem)
            continue
        found[path].append((piece, parts))
    require(
        not lost,
        f"{len(lost)} of {len(stems)} layers of the LoRA are not in this model: {lost[:3]}. It was "
        "made for another one.",
    )
    return {path: put_together(path, got, layers.width(path)) for path, got in found.items()}


def _in_diffusers(
    whole: Mapping[str, Mapping[str, Tensor]], layers: _ModelLayers | _TextLayers
) -> dict[str, Tensor]:
    known = layers.diffusers()
    written = {}
    for path, parts in whole.items():
        pieces = known.get(path, [])
        require_whole(path, pieces, layers.width(path))
        written |= for_diffusers(parts, pieces)
    return written


def _by_layer(lora: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    stems: dict[str, dict[str, Tensor]] = defaultdict(dict)
    unknown = []
    for key, value in lora.items():
        stem, own = key_parts(key)
        if own:
            stems[stem][own] = value
        else:
            unknown.append(key)
    require(
        not unknown,
        f"{len(unknown)} keys of the LoRA have endings that nobody knows: {unknown[:3]}.",
    )
    return stems


def _pieces(host: Mapping[str, Any], prefix: str) -> dict[str, list[Piece]]:
    """Layer path -> what it is in diffusers.

    Args:
        host: the host's names -> its keys, or (key, rows, a function that puts them in order).
        prefix: how its keys begin.
    """
    found: dict[str, list[Piece]] = defaultdict(list)
    for name, key in host.items():
        weight, offset, reorder = (*key, None)[:3] if isinstance(key, tuple) else (key, None, None)
        is_rows = offset is None or offset[0] == 0
        if name.startswith(DIFFUSERS_PREFIXES) and weight.endswith(".weight") and is_rows:
            path = weight.removeprefix(prefix).removesuffix(".weight")
            found[path].append(Piece(name, offset and tuple(offset[1:]), reorder))
    return found
