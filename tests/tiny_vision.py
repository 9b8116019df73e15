"""The host's image encoder, small. Import it after `comfy_modules.make_importable()`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.clip_vision
import torch


@torch.inference_mode()
def tiny_vision(folder: Path, kind: str = "clip_vision_model") -> Any:
    """The host's image encoder, small, with weights that are drawn."""
    config = {
        "model_type": kind,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_channels": 3,
        "patch_size": 16,
        "image_size": 64,
        "hidden_act": "gelu",
    }
    if kind == "clip_vision_model":
        config["projection_dim"] = 24
    path = folder / f"{kind}.json"
    path.write_text(json.dumps(config))
    vision = comfy.clip_vision.ClipVisionModel(str(path))
    generator = torch.Generator().manual_seed(0)
    for name, weight in vision.model.state_dict().items():
        if "norm" in name:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return vision
