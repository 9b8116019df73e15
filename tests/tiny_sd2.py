"""A small but genuine SD2-v checkpoint: the U-Net's names and widths by which ComfyUI knows it, and
OpenCLIP's names in the text encoder.

The text encoder has 3 layers where the real one has 24: load it with :data:`TEXT_OPTIONS`. Import
it after `comfy_modules.make_importable()`.
"""

from __future__ import annotations

from pathlib import Path

import comfy.supported_models
import torch
from safetensors.torch import save_file
from torch import Tensor

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2] * 4,
    "channel_mult": [1] * 4,
    "transformer_depth": [1, 1] + [0] * 6,
    "transformer_depth_output": [1] * 3 + [0] * 9,
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "legacy": False,
    "context_dim": 1024,
    "num_heads": -1,
    "num_head_channels": 64,
}
V_MARK = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
"""Velocity models are told by how much it scatters."""
WIDTH, LAYERS = 1024, 3
TEXT_OPTIONS = {"clip_h_model_config": {"num_hidden_layers": LAYERS}}


def tiny_sd2(folder: Path) -> Path:
    """The file (about 300 MB, fp16), of seeded random weights."""
    generator = torch.Generator().manual_seed(3)
    weights = {}
    for name, shape in {**_unet(), **_open_clip()}.items():
        fan_in = max(1, torch.Size(shape[1:]).numel())
        value = torch.randn(shape, generator=generator) / fan_in**0.5
        if len(shape) == 1:  # of norms and biases
            value = value * 0.1 + (0 if name.endswith("bias") else 1)
        weights[name] = value.half()
    mark = f"model.diffusion_model.{V_MARK}"
    weights[mark] = weights[mark] * 2
    path = folder / "tiny_sd2.safetensors"
    save_file(weights, path)
    return path


def _unet() -> dict[str, tuple[int, ...]]:
    config = comfy.supported_models.SD20({**UNET, "dtype": torch.float32})
    base: dict[str, Tensor] = config.get_model({}, "", device="meta").diffusion_model.state_dict()
    return {f"model.diffusion_model.{name}": tuple(value.shape) for name, value in base.items()}


def _open_clip() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (49408, WIDTH),
        "positional_embedding": (77, WIDTH),
        "ln_final.weight": (WIDTH,),
        "ln_final.bias": (WIDTH,),
        "text_projection": (WIDTH, WIDTH),
    }
    for number in range(LAYERS):
        block = f"transformer.resblocks.{number}"
        for name, rows, columns in (
            ("attn.in_proj", 3 * WIDTH, WIDTH),
            ("attn.out_proj", WIDTH, WIDTH),
            ("mlp.c_fc", 4 * WIDTH, WIDTH),
            ("mlp.c_proj", WIDTH, 4 * WIDTH),
        ):
            join = "_" if name == "attn.in_proj" else "."
            shapes[f"{block}.{name}{join}weight"] = (rows, columns)
            shapes[f"{block}.{name}{join}bias"] = (rows,)
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.{part}": (WIDTH,) for part in ("weight", "bias")}
    return {f"cond_stage_model.model.{name}": shape for name, shape in shapes.items()}
