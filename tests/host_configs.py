"""Configurations of models, as the ComfyUI that is tested asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy.ldm.chroma.model import ChromaParams
from comfy.ldm.flux.model import FluxParams
from comfy.ldm.hunyuan_video.model import HunyuanVideoParams

NEWER = {"txt_ids_dims": [], "vec_in_dim": 0, "meanflow_sum": False}
"""What 0.33 asks for beside the rest, without effect at these values; 0.3.75 refuses them."""


def flux_config(*given: Mapping[str, Any], **config: Any) -> dict[str, Any]:
    """Of the host's Flux; the arguments are those of ``dict``."""
    return _completed(FluxParams, dict(*given, **config))


def chroma_config(*given: Mapping[str, Any], **config: Any) -> dict[str, Any]:
    """Of the host's Chroma, likewise."""
    return _completed(ChromaParams, dict(*given, **config))


def hunyuan_video_config(**config: Any) -> dict[str, Any]:
    """Of HunyuanVideo, likewise; ``image_model`` is the host's name for it."""
    return {"image_model": "hunyuan_video", **_completed(HunyuanVideoParams, config)}


def _completed(params: type, config: dict[str, Any]) -> dict[str, Any]:
    known = params.__dataclass_fields__
    return {name: value for name, value in NEWER.items() if name in known} | config
