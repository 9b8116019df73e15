"""Names of layers in LoRA files, as kohya-ss/sd-scripts writes and ComfyUI reads them."""

from __future__ import annotations

from collections.abc import Iterable

import comfy.lora
import comfy.supported_models as families
from torch import nn

from ..errors import require

DIFFUSERS_NAMED = (families.SD15, families.SD20)
"""Families whose files carry diffusers' block names (``down_blocks_0_attentions_0_…``); the rest
carry the model's own (``input_blocks_4_1_…``, ``double_blocks_0_…``)."""


def file_names(base: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """Layer path inside the diffusion model -> name in the file (``lora_unet_…``).

    Raises:
        AtelierError: the host's loader would not find a layer under its name.
    """
    host_keys = comfy.lora.model_lora_keys_unet(base, {})
    names = {path: f"lora_unet_{path.replace('.', '_')}" for path in paths}
    if isinstance(base.model_config, DIFFUSERS_NAMED):
        own = set(names.values())
        for name, key in host_keys.items():
            path = key[len("diffusion_model.") : -len(".weight")] if isinstance(key, str) else None
            if path in names and name.startswith("lora_unet_") and name not in own:
                names[path] = name
    lost = [path for path, name in names.items() if name not in host_keys]
    require(not lost, f"model: ComfyUI would not load adapters for {len(lost)} layers: {lost[:3]}.")
    return names
