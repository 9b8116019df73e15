"""LoRAs that are added up, with one name for each layer, whoever wrote them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.lora
import comfy.lora_convert
from torch import Tensor, nn

from ..base_model.frozen import is_frozen_layer
from ..errors import require
from ..network.adapters.base import weight_shape
from ..network.existing_lora import of_text_encoder
from ..results.lora_algebra import WeightedLora
from ..results.lora_formats import format_of
from .lora_formats import Models


def plain_names(lora: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """As the host puts right the keys of some LoRAs before it reads them."""
    return comfy.lora_convert.convert_lora(dict(lora))


def with_same_names(
    loras: Sequence[WeightedLora], models: Models
) -> tuple[list[WeightedLora], dict[str, tuple[int, ...]]]:
    """The LoRAs with the names of the first that has a layer, and the shapes of the layers.

    Args:
        models: what knows which names mean the same; where it is missing, all LoRAs must be
            spelled alike.

    Returns:
        LoRAs, and layer -> [out, in, *kernel] where a model tells it.

    Raises:
        AtelierError: a layer is in no model, or nothing tells what the names mean.
    """
    meant: dict[str, Any] = {}
    if models.model is not None:
        meant = comfy.lora.model_lora_keys_unet(models.model.model, meant)
    if models.clip is not None:
        meant = comfy.lora.model_lora_keys_clip(models.clip.cond_stage_model, meant)
    for lora in loras:
        _require_known(lora, models, meant)
    _require_one_spelling(loras, meant)
    first: dict[Any, str] = {}
    renamed = [_renamed(lora, meant, first) for lora in loras]
    return renamed, _shapes(first, models)


def _require_known(lora: WeightedLora, models: Models, meant: Mapping[str, Any]) -> None:
    lost = [
        stem
        for stem in lora.layers
        if stem not in meant
        and (models.clip if of_text_encoder(f"{stem}.") else models.model) is not None
    ]
    require(
        not lost,
        f"{lora.name}: {len(lost)} of its {len(lora.layers)} layers are not in the model, e.g. "
        f"{lost[:2]}: it was made for another one.",
    )


def _require_one_spelling(loras: Sequence[WeightedLora], meant: Mapping[str, Any]) -> None:
    for texts, wire in ((False, "model"), (True, "clip")):
        unknown = {
            format_of(stem)
            for lora in loras
            for stem in lora.layers
            if stem not in meant and of_text_encoder(f"{stem}.") is texts
        }
        names = " and ".join(sorted(spelling.value for spelling in unknown))
        require(
            len(unknown) < 2,
            f"The LoRAs name their layers in different ways ({names}); which ones are the same, "
            f"only the model knows. Wire {wire}.",
        )


def _renamed(lora: WeightedLora, meant: Mapping[str, Any], first: dict[Any, str]) -> WeightedLora:
    """Args:
    first: what a name means -> the name it has in the result; added to.
    """
    layers = {}
    for stem, parts in lora.layers.items():
        name = first.setdefault(meant.get(stem, stem), stem)
        require(name not in layers, f"{lora.name} holds the layer {name} more than once.")
        layers[name] = parts
    return replace(lora, layers=layers)


def _shapes(first: Mapping[Any, str], models: Models) -> dict[str, tuple[int, ...]]:
    roots: list[nn.Module] = []
    if models.model is not None:
        roots.append(models.model.model)
    if models.clip is not None:
        roots.append(models.clip.cond_stage_model)
    layers = {f"{n}.weight": m for r in roots for n, m in r.named_modules() if is_frozen_layer(m)}
    return {name: weight_shape(layers[key]) for key, name in first.items() if key in layers}
