"""A trained LoRA on the MODEL and CLIP of the graph, as LoraLoader would put it there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.sd
from torch import Tensor


def apply_lora(
    model: Any, clip: Any, lora: Mapping[str, Tensor], strength: float = 1.0
) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP with ordinary patches; the inputs stay as they are."""
    return comfy.sd.load_lora_for_models(model, clip, dict(lora), strength, strength)
