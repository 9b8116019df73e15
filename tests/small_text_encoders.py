"""A custom node for the tests' servers: CLIP whose text encoders have few layers.

ComfyUI loads this file as a pack of its own. A file cannot give such encoders: the loaders build
CLIP-G and T5-XXL at their full size whatever lies in it. These are the same classes, with the
tokenizers and the widths at which they meet the tests' diffusion models, and random weights.
"""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy.sdxl_clip
import comfy.text_encoders.flux
import torch
from comfy.supported_models_base import ClipTarget


def clip_config(width: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_attention_heads": width // 16,
        "num_hidden_layers": 3,
        "projection_dim": width,
    }


SHORT = {"t5xxl_min_length": 8}
"""Tokens to which T5's texts are filled up, 256 as a rule: Flux takes as much longer over them."""
T5 = {"num_layers": 1, "d_model": 48, "d_ff": 64, "d_kv": 16, "num_heads": 2}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sdxl": (
        comfy.sdxl_clip.SDXLTokenizer,
        comfy.sdxl_clip.SDXLClipModel,
        {"clip_l_model_config": clip_config(768), "clip_g_model_config": clip_config(1280)},
    ),
    "flux": (
        comfy.text_encoders.flux.FluxTokenizer,
        comfy.text_encoders.flux.FluxClipModel,
        {"clip_l_model_config": clip_config(32), "t5xxl_model_config": T5},
    ),
}


class SmallTextEncoders:
    """The name of a family -> CLIP."""

    CATEGORY = "tests"
    FUNCTION = "make"
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"family": (list(FAMILIES),)}}

    def make(self, family: str) -> tuple[Any]:
        tokenizer, model, options = FAMILIES[family]
        with torch.random.fork_rng():
            torch.manual_seed(4)
            target = ClipTarget(tokenizer, model)
            clip = comfy.sd.CLIP(target, tokenizer_data=SHORT, model_options=options)
            for parameter in clip.cond_stage_model.parameters():
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
                noise = torch.randn(parameter.shape) / max(fan_in, 1) ** 0.5
                parameter.copy_(noise if parameter.ndim != 1 else 1 + noise)
        return (clip,)


NODE_CLASS_MAPPINGS = {"TestSmallTextEncoders": SmallTextEncoders}
