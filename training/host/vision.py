"""Pictures in the eyes of the CLIP_VISION of the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..dataset.buckets import cover
from ..dataset.fit import Placement
from ..dataset.pictures import fitted_pixels, open_picture
from ..dataset.samples import Sample
from ..errors import require

BATCH = 16
"""Pictures that are encoded together, which bounds the memory."""


def image_embeddings(
    clip_vision: Any, samples: Sequence[Sample], tick: Callable[[], None]
) -> Tensor:
    """One vector a picture, of its middle square, as CLIP Vision Encode with crop "center".

    Args:
        tick: called after each picture; may raise to cancel.

    Returns:
        [N, D] float32 on the CPU.
    """
    side = clip_vision.image_size
    rows = []
    for first in range(0, len(samples), BATCH):
        pixels = []
        for sample in samples[first : first + BATCH]:
            pixels.append(_square(sample, side))
            tick()
        rows.append(_encoded(clip_vision, torch.stack(pixels)))
    embeddings = torch.cat(rows)
    require(
        bool(embeddings.isfinite().all()),
        "clip_vision: it gives numbers that are not finite. Load another image encoder, or start "
        "ComfyUI with --fp32-text-enc.",
    )
    return embeddings


def _square(sample: Sample, side: int) -> Tensor:
    """[side, side, 3], 0..1."""
    image = open_picture(sample.image)
    resized = cover(image.size, (side, side))
    corner = ((resized[0] - side) // 2, (resized[1] - side) // 2)
    placement = Placement(image.size, resized, corner, (side, side))
    return fitted_pixels(image, placement, sample.fit.background)


def _encoded(clip_vision: Any, pixels: Tensor) -> Tensor:
    """[B, D]; encoders that give a vector for each place of the picture are averaged over it."""
    vectors = clip_vision.encode_image(pixels)["image_embeds"].float().cpu()
    return vectors.mean(dim=1) if vectors.ndim == 3 else vectors
