"""Files of small models of large families, under the names and in the shapes that the host's
loaders recognise.

Import it after `comfy_modules.make_importable()`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from comfy.taesd.taesd import TAESD
from safetensors.torch import save_file
from torch import Tensor

from loaded_families import LOADED, WIDE_FLUX


def sdxl_checkpoint(path: Path) -> None:
    """U-Net and VAE of SDXL in fp16 (about 250 MB), without text encoders."""
    unet = LOADED["sdxl"].state_dict()
    weights = {f"model.diffusion_model.{name}": value.half() for name, value in unet.items()}
    vae = vae_weights(channels=4, scale=0.13025)
    weights |= {f"first_stage_model.{name}": value for name, value in vae.items()}
    save_file(weights, path)


def flux_diffusion_model(path: Path) -> None:
    """Flux dev with one block of full width, in bf16 (about 800 MB)."""
    family = replace(LOADED["flux-dev"], unet={**WIDE_FLUX, "depth_single_blocks": 0})
    save_file({name: value.contiguous() for name, value in family.state_dict().items()}, path)


def flux_vae(path: Path) -> None:
    save_file(vae_weights(channels=16, scale=0.3611, shift=0.1159), path)


def vae_weights(channels: int, scale: float, shift: float = 0.0) -> dict[str, Tensor]:
    """Of a TAESD.

    Args:
        scale, shift: of the family's latents, which the encoder gives without.
    """
    generator = torch.Generator().manual_seed(6)
    weights = {}
    for name, value in TAESD(latent_channels=channels).state_dict().items():
        fan_in = value[0].numel() if value.ndim > 1 else 10_000
        weights[name] = torch.randn(value.shape, generator=generator) / fan_in**0.5
    return {**weights, "vae_scale": torch.tensor(scale), "vae_shift": torch.tensor(shift)}
