"""Where matrices are decomposed."""

from __future__ import annotations

import comfy.model_management as mm
import torch


def linear_algebra_device() -> torch.device:
    """The host's device if it has QR and SVD of its own, else the processor."""
    device = mm.get_torch_device()
    return device if device.type == "cuda" else torch.device("cpu")
