"""What is said of a base model in a LoRA file; "" = not known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BaseModelFacts:
    """The names that others give to a family of models."""

    version: str = ""
    """``ss_base_model_version`` of kohya-ss/sd-scripts: ``sd_v1``, ``sdxl_base_v1-0``, …"""
    architecture: str = ""
    """ModelSpec's: ``stable-diffusion-v1``, …"""
    implementation: str = ""
    """ModelSpec's: whose code the names of the layers come from."""
    prediction_type: str = ""
    """ModelSpec's: ``epsilon`` or ``v``; it has no word for the others."""
    is_v2: bool = False
    """Stable Diffusion 2.x."""
    host: str = ""
    """What ran it, and its version."""
