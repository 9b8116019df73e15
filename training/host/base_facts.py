"""What family a MODEL belongs to, in the names that LoRA files use.

Sources of the names: kohya-ss/sd-scripts, library/sai_model_spec.py (architectures,
implementations), library/model_util.py and the ``MODEL_VERSION_…`` of its families.
"""

from __future__ import annotations

from typing import Any

import comfy.model_base as bases
import comfy.supported_models as families
from comfyui_version import __version__

from ..base_model.facts import BaseModelFacts

STABILITY = "https://github.com/Stability-AI/generative-models"
FLUX = "https://github.com/black-forest-labs/flux"
COMFYUI = "https://github.com/comfyanonymous/ComfyUI"
HOST = f"ComfyUI {__version__}"
PREDICTIONS = {
    bases.ModelType.EPS: "epsilon",
    bases.ModelType.V_PREDICTION: "v",
    bases.ModelType.V_PREDICTION_EDM: "v",
}

FAMILIES: tuple[tuple[type, str, str, str], ...] = (
    # The more special class first: some derive from others.
    (families.SD20, "sd_v2", "stable-diffusion-v2-512", "diffusers"),
    (families.SD15, "sd_v1", "stable-diffusion-v1", "diffusers"),
    (families.SDXL, "sdxl_base_v1-0", "stable-diffusion-xl-v1-base", STABILITY),
    (families.SD3, "sd3", "stable-diffusion-3", STABILITY),
    (families.FluxSchnell, "flux1", "flux-1-schnell", FLUX),
    (families.Chroma, "chroma", "chroma", "https://huggingface.co/lodestones/Chroma"),
    (families.Flux2, "flux2", "flux-2-dev", COMFYUI),
    (families.Flux, "flux1", "flux-1-dev", FLUX),
    (families.ZImage, "zimage", "z-image", COMFYUI),
    (families.Lumina2, "lumina2", "lumina-2", "https://github.com/Alpha-VLLM/Lumina-Image-2.0"),
)
"""Host's class -> version, architecture, implementation."""

COMPARED = (
    *(families.SD15, families.SD20, families.SDXL, families.SD3, families.AuraFlow),
    *(families.PixArtAlpha, families.Flux, families.FluxSchnell, families.Chroma),
    *(families.Lumina2, families.QwenImage, families.WAN21_T2V),
)
"""Families of which tests compare what is trained with what is sampled."""


def was_compared(patcher: Any) -> bool:
    """Whether tests compare a MODEL's family with sampling; others are trained in the general
    way."""
    return isinstance(patcher.model.model_config, COMPARED)


def base_facts(patcher: Any) -> BaseModelFacts:
    """Of a MODEL; for families that sd-scripts has no name for, the host's class name stands."""
    base = patcher.model
    prediction = PREDICTIONS.get(base.model_type, "")
    config = base.model_config
    found = next((row for row in FAMILIES if isinstance(config, row[0])), None)
    if found is None:
        name = type(config).__name__.lower()
        return BaseModelFacts(name, name, COMFYUI, prediction, host=HOST)
    family, version, architecture, implementation = found
    if family is families.SD20 and prediction == "v":
        version, architecture = "sd_v2_v", "stable-diffusion-v2-768-v"
    elif family is families.SD15 and prediction == "v":
        version = "sd_v1_v"
    return BaseModelFacts(
        version, architecture, implementation, prediction, family is families.SD20, HOST
    )
