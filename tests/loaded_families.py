"""Models of many families as their files give them: weights under the host's own names, from which
the host itself finds out what they are.

Widths are those by which the host recognises a family (Flux: 3072), depths are the least; large
models are stored in fp8. Import it after `comfy_modules.make_importable()`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.sd
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from families import CHROMA, FLUX, MORE_FAMILIES, SD3, V_MARK, Family
from host_configs import chroma_config

FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16
POOL = 1_000_003
"""A prime: weights are cut one after the other from a ring of so many random numbers, and no two
rows of a matrix are cut at the same place. To draw half a milliard of them would take too long."""


@dataclass(frozen=True)
class LoadedFamily(Family):
    """A family whose `unet` is what the host finds in the weights."""

    storage: torch.dtype = torch.float32
    changed: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    """Weights by which the host tells variants of a family from each other."""

    def shapes(self) -> dict[str, torch.Size]:
        config = getattr(comfy.supported_models, self.classes)
        base = config({**self.unet, "dtype": torch.float32}).get_model({}, "", device="meta")
        return {name: value.shape for name, value in base.diffusion_model.state_dict().items()}

    def state_dict(self) -> dict[str, Tensor]:
        """Weights that keep signals at about unit variance; norms near one, biases small."""
        ring = torch.randn(POOL, generator=torch.Generator().manual_seed(5))
        stored: dict[float, Tensor] = {}  # by scale: most layers share a few
        weights, place = {}, 0
        for name, shape in self.shapes().items():
            scale = 0.1 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
            if scale not in stored:
                stored[scale] = (ring * scale).to(self.storage)
            start, end = place % POOL, place % POOL + shape.numel()
            values = stored[scale].repeat(-(-end // POOL))[start:end].view(shape)
            if len(shape) == 1 and not name.endswith("bias"):
                values = (values.float() + 1).to(self.storage)
            place += shape.numel()
            weights[name] = self.changed[name](values) if name in self.changed else values
        return weights

    @torch.inference_mode()  # as nodes run
    def load(self, weights: dict[str, Tensor] | None = None, **options: Any) -> ModelPatcher:
        """The MODEL that UNETLoader gives for a file of these weights, stored as they are."""
        weights = self.state_dict() if weights is None else weights
        options = {"dtype": self.storage, **options}
        return comfy.sd.load_diffusion_model_state_dict(weights, model_options=options)


def _unet(**changes: Any) -> dict[str, Any]:
    """As the host finds it in the weights of a U-Net."""
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 320,
        "num_res_blocks": [1],
        "channel_mult": [1],
        "transformer_depth": [1],
        "transformer_depth_output": [1, 1],
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": True,
        "use_spatial_transformer": True,
        "legacy": False,
        **changes,
    }


SD15 = _unet(use_linear_in_transformer=False, context_dim=768, num_heads=8, num_head_channels=-1)
SD2 = _unet(
    num_res_blocks=[2] * 4,
    channel_mult=[1] * 4,
    transformer_depth=[1, 1] + [0] * 6,
    transformer_depth_output=[1] * 3 + [0] * 9,
    context_dim=1024,
    num_heads=-1,
    num_head_channels=64,
)
SDXL = _unet(
    num_res_blocks=[2] * 3,
    channel_mult=[1] * 3,
    transformer_depth=[0, 0, 2, 2, 10, 10],
    transformer_depth_output=[0] * 3 + [1] * 3 + [1] * 3,
    transformer_depth_middle=1,
    context_dim=2048,
    num_heads=-1,
    num_head_channels=64,
    num_classes="sequential",
    adm_in_channels=2816,
)
WIDE_FLUX = {
    **FLUX,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "axes_dim": [16, 56, 56],
    "depth": 1,
    "depth_single_blocks": 1,
}
WIDE_CHROMA = chroma_config(
    {k: v for k, v in WIDE_FLUX.items() if k not in ("vec_in_dim", "guidance_embed")},
    **{k: CHROMA[k] for k in ("image_model", "in_channels", "out_channels", "in_dim")},
    out_dim=3072,
    hidden_dim=5120,
    n_layers=5,
)
AURA = {"max_seq": 64, "cond_seq_dim": 2048, "n_double_layers": 1, "n_layers": 2}
PIXART = {
    "image_model": "pixart_sigma",
    "num_heads": 16,
    "patch_size": 2,
    "hidden_size": 1152,
    "in_channels": 4,
    "depth": 2,
    "model_max_length": 8,
    "micro_condition": False,
}
LUMINA2 = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 2304,
    "cap_feat_dim": 48,
    "n_layers": 1,
    "qk_norm": True,
    "n_heads": 24,
    "n_kv_heads": 8,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}
ZIMAGE = {
    **LUMINA2,
    "dim": 3840,
    "n_heads": 30,
    "n_kv_heads": 30,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
    "rope_theta": 256.0,
    "ffn_dim_multiplier": 8.0 / 3.0,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
QWEN = {"image_model": "qwen_image", "in_channels": 64, "num_layers": 1}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 256,
    "out_dim": 16,
    "num_heads": 2,
    "ffn_dim": 512,
    "num_layers": 2,
    "patch_size": (1, 2, 2),
    "freq_dim": 256,
    "window_size": (-1, -1),
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "in_dim": 16,
}
FOUR, SIXTEEN, FRAMES = (4, 8, 8), (16, 8, 8), (16, 1, 8, 8)

LOADED: dict[str, LoadedFamily] = {
    "sd15": LoadedFamily("SD15", SD15, FOUR, words=768),
    "sd2": LoadedFamily("SD20", SD2, FOUR, words=1024, changed={V_MARK: lambda b: b / 2}),
    "sd2-v": LoadedFamily("SD20", SD2, FOUR, words=1024, changed={V_MARK: lambda b: b * 2}),
    "sdxl": LoadedFamily("SDXL", SDXL, FOUR, 1280, words=2048),
    "sd3": LoadedFamily("SD3", {k: v for k, v in SD3.items() if k != "qk_norm"}, SIXTEEN, 32),
    "sd3.5": LoadedFamily("SD3", {**SD3, "x_block_self_attn_layers": [0]}, SIXTEEN, 32),
    "flux-dev": LoadedFamily("Flux", WIDE_FLUX, SIXTEEN, 32, storage=BF16, guidance=1.0),
    "flux-dev-fp16": LoadedFamily(
        "Flux",
        {**WIDE_FLUX, "depth_single_blocks": 0},
        SIXTEEN,
        32,
        storage=torch.float16,
        guidance=1.0,
    ),
    "flux-schnell": LoadedFamily(
        "FluxSchnell",
        {**WIDE_FLUX, "guidance_embed": False, "depth_single_blocks": 0},
        SIXTEEN,
        32,
        storage=FP8,
    ),
    "chroma": LoadedFamily("Chroma", WIDE_CHROMA, SIXTEEN, storage=BF16),
    "lumina2": LoadedFamily("Lumina2", LUMINA2, SIXTEEN, storage=BF16),
    "qwen-image": LoadedFamily("QwenImage", QWEN, FRAMES, words=3584, storage=BF16),
    "auraflow": LoadedFamily("AuraFlow", AURA, FOUR, words=2048, storage=BF16),
    "pixart": LoadedFamily("PixArtSigma", PIXART, MORE_FAMILIES["pixart"].latent, words=4096),
    "wan": LoadedFamily("WAN21_T2V", WAN, FRAMES, words=4096),
}
LARGE: dict[str, LoadedFamily] = {"z-image": LoadedFamily("ZImage", ZIMAGE, SIXTEEN)}
"""Too large to be loaded in a test."""
