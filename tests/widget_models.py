"""Small models of other kinds for the table of widgets. Import it like `widget_runs`."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.sd
import comfy.supported_models
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from comfy.model_patcher import ModelPatcher

from host_configs import flux_config

FLUX = flux_config(
    image_model="flux",
    **{"in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 768},
    **{
        "hidden_size": 64,
        "mlp_ratio": 2.0,
        "num_heads": 2,
        "depth": 1,
        "depth_single_blocks": 1,
    },
    **{"axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True},
    **{"guidance_embed": True, "dtype": torch.float32},
)
"""Listens to SD1.5's text encoder."""


def small_flux() -> ModelPatcher:
    """The host's own Flux class with a few blocks of a few channels."""
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(5)
        base = comfy.model_base.Flux(comfy.supported_models.Flux(FLUX))
        for parameter in base.parameters():  # the host leaves them as the memory was
            fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
            parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
    cpu = torch.device("cpu")
    return ModelPatcher(base, load_device=cpu, offload_device=cpu)


def kl_autoencoder(channels: int) -> Any:
    """The host's AutoencoderKL at its least width."""
    config = {"double_z": True, "z_channels": channels, "resolution": 64, "in_channels": 3}
    config |= {"out_ch": 3, "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    config |= {"attn_resolutions": [], "dropout": 0.0}
    params = {"ddconfig": config, "embed_dim": channels}
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        shapes = AutoencoderKL(**params).state_dict()
        weights = {name: torch.randn(shape.shape) * 0.05 for name, shape in shapes.items()}
        return comfy.sd.VAE(sd=weights, config={"params": params})
