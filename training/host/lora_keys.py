"""Names of layers in LoRA files, as kohya-ss/sd-scripts writes and ComfyUI reads them."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.supported_models as families
from torch import Tensor, nn

from ..errors import require
from ..existing_lora import ExistingLora

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
        for name, key in host_keys.items():
            path = _path(key)
            if path in names and name.startswith("lora_unet_") and name not in own:
                names[path] = name
    return {path: name for path, name in names.items() if name in host_keys}


def existing_layers(
    base: nn.Module, existing: ExistingLora, paths: Container[str]
) -> dict[str, dict[str, Tensor]]:
    """Layer path inside the diffusion model -> what a LoRA holds for it, in its adapter's names.

    Args:
        paths: the layers that can have an adapter.

    Raises:
        AtelierError: part of it belongs to no layer that can be trained; nothing is left out.
    """
    converted = comfy.lora_convert.convert_lora(dict(existing.tensors))
    layers = ExistingLora(converted, existing.name).layers()
    meant = _names_of_layers(base)
    found = {name: meant.get(name) for name in layers}
    lost = [name for name, path in found.items() if path is None or path not in paths]
    count = f"{len(lost)} of its {len(layers)} layers"
    require(
        not lost,
        f'existing LoRA "{existing.name}": {count} cannot be continued on this model: '
        f"{', '.join(lost[:3])}. It was made for another model, or splits "
        "layers that are one here.",
    )
    require(
        len(layers) > 0,
        f'existing LoRA "{existing.name}" holds nothing for the diffusion model.',
    )
    twice = len(found) - len(set(found.values()))
    require(
        twice == 0,
        f'existing LoRA "{existing.name}" holds {twice} layers twice, under two names each.',
    )
    return {found[name]: parts for name, parts in layers.items()}


def _names_of_layers(base: nn.Module) -> dict[str, str]:
    """Every name that a layer may have in a file -> its path inside the diffusion model."""
    names = {}
    for name, key in comfy.lora.model_lora_keys_unet(base, {}).items():
        if (path := _path(key)) is not None:
            names[name] = path
    for name, path in list(names.items()):
        if name.startswith(("lora_", "lycoris_", "diffusion_model.")):
            continue
        # peft writes diffusers' paths as they are; the host knows them as attention processors.
        plain = name.removeprefix("unet.").replace(".processor.to_", ".to_")
        plain += ".0" if plain.endswith(".to_out") else ""
        for prefix in ("", *PEFT_PREFIXES):
            names.setdefault(prefix + plain, path)
    return names


def _path(key: Any) -> str | None:
    """Path of the layer whose weight a host's key is; None for other keys and parts of weights."""
    if not isinstance(key, str) or not key.endswith(".weight"):
        return None
    return key.removeprefix("diffusion_model.").removesuffix(".weight")
