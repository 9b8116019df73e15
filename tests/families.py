"""Small models of many families: the host's own classes with a few blocks of a few channels.

Import it after `comfy_modules.make_importable()`, as every test under tests/host is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import comfy.model_base
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from host_configs import chroma_config, flux_config
from lora_atelier.training.runs.examples import Conditioning
from tiny_training import normal

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "transformer_depth": [0, 2],
    "transformer_depth_output": [0, 0, 2, 2],
    "transformer_depth_middle": 2,
    "channel_mult": [1, 2],
    "num_head_channels": 16,
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "context_dim": 48,
    "legacy": False,
}
FLUX = flux_config(
    image_model="flux",
    in_channels=16,
    out_channels=16,
    vec_in_dim=32,
    context_in_dim=48,
    hidden_size=64,
    mlp_ratio=2.0,
    num_heads=2,
    depth=2,
    depth_single_blocks=2,
    axes_dim=[8, 12, 12],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    guidance_embed=True,
)
CHROMA = chroma_config(
    {k: v for k, v in FLUX.items() if k not in ("vec_in_dim", "guidance_embed")},
    image_model="chroma",
    in_channels=64,
    out_channels=64,
    in_dim=64,
    out_dim=64,
    hidden_dim=32,
    n_layers=2,
)
SD3 = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 2,
    "input_size": None,
    "adm_in_channels": 32,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 48, "out_features": 128},
    },
    "pos_embed_max_size": 16,
    "num_patches": 256,
    "qk_norm": "rms",
    "pos_embed_scaling_factor": None,
}
QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "axes_dims_rope": (8, 12, 12),
}
LUMINA = {
    "image_model": "lumina2",
    "in_channels": 16,
    "dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "qk_norm": True,
    "cap_feat_dim": 48,
    "axes_dims": [8, 12, 12],
    "axes_lens": [300, 512, 512],
}
WAN = {
    "image_model": "wan2.1",
    "in_dim": 16,
    "dim": 64,
    "ffn_dim": 128,
    "freq_dim": 32,
    "text_dim": 48,
    "num_heads": 2,
    "num_layers": 2,
}
LTXV = {
    "image_model": "ltxv",
    "in_channels": 128,
    "cross_attention_dim": 64,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "caption_channels": 48,
    "num_layers": 2,
}
AURAFLOW = {
    "dim": 64,
    "n_heads": 2,
    "global_conddim": 64,
    "cond_seq_dim": 48,
    "max_seq": 64,
    "n_double_layers": 1,
    "n_layers": 3,
}
PIXART = {
    "image_model": "pixart_sigma",
    "num_heads": 2,
    "patch_size": 2,
    "hidden_size": 48,
    "in_channels": 4,
    "depth": 2,
    "caption_channels": 48,
    "model_max_length": 8,
    "micro_condition": False,
}
ZIMAGE = {
    **LUMINA,
    "dim": 256,  # what modulates its blocks has this width
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}


@dataclass(frozen=True)
class Family:
    """A family of base models, by the host's names for it."""

    classes: str
    unet: dict[str, Any]
    latent: tuple[int, ...]
    pooled: int = 0
    masked: bool = False
    words: int = 48
    guidance: float | None = None
    """What distilled models are told, where a test tells them."""
    marks: dict[str, Tensor] = field(default_factory=dict)
    """Weights by which the host tells variants of a family from each other."""

    def patcher(self) -> ModelPatcher:
        """A MODEL whose weights keep signals at about unit variance."""
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(5)
            config = getattr(comfy.supported_models, self.classes)
            config = config({**self.unet, "dtype": torch.float32})
            base = config.get_model(self.marks, "")
            for parameter in base.parameters():  # the host leaves them as the memory was
                fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
                parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
            if isinstance(places := getattr(base.diffusion_model, "pos_embed", None), Tensor):
                places.copy_(torch.randn_like(places))  # SD3's is a buffer
        cpu = torch.device("cpu")
        return ModelPatcher(base, load_device=cpu, offload_device=cpu)

    def conditioning(self, count: int) -> list[Conditioning]:
        """As CLIPTextEncode gives it, which says so where there is nothing pooled."""
        extras: dict[str, Any] = {
            "pooled_output": normal(21, 1, self.pooled) if self.pooled else None
        }
        if self.masked:
            extras["attention_mask"] = torch.ones(1, 5, dtype=torch.long)
        return [[normal(30 + i, 1, 5, self.words), dict(extras)] for i in range(count)]


SDXL_UNET = {**UNET, "num_classes": "sequential", "adm_in_channels": 2816}
FAMILIES: dict[str, Family] = {
    "sd15": Family("SD15", UNET, (4, 8, 8)),
    "sdxl": Family("SDXL", SDXL_UNET, (4, 8, 8), 1280),
    "sd3": Family("SD3", SD3, (16, 8, 8), 32),
    "flux": Family("Flux", FLUX, (16, 8, 8), 32),
    "chroma": Family("Chroma", CHROMA, (16, 8, 8), 32),
    "qwen": Family("QwenImage", QWEN, (16, 1, 8, 8)),
    "lumina": Family("Lumina2", LUMINA, (16, 8, 8)),
    "wan": Family("WAN21_T2V", WAN, (16, 1, 8, 8)),
    "ltxv": Family("LTXV", LTXV, (128, 1, 4, 4), masked=True),
}
V_MARK = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
"""SD2's velocity models are told by how much it scatters."""
MORE_FAMILIES: dict[str, Family] = {
    "sd2-v": Family("SD20", UNET, (4, 8, 8), marks={V_MARK: torch.linspace(-1, 1, 8)}),
    "zimage": Family("ZImage", ZIMAGE, (16, 8, 8)),
    "auraflow": Family("AuraFlow", AURAFLOW, (4, 8, 8)),
    "pixart": Family("PixArtSigma", PIXART, (4, 48, 48)),  # it divides by zero below 384 px
}
