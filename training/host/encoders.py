"""Captions and pictures through the CLIP and VAE of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import require
from ..images import load_image
from ..run import Conditioning

Tick = Callable[[], None]
"""Called after every item; may raise to end the work."""


def encode_captions(clip: Any, captions: Iterable[str], tick: Tick) -> dict[str, Conditioning]:
    """Each distinct caption once, as CLIPTextEncode would give it with its brackets escaped.

    Returns:
        caption -> [embedding [1, T, D], extras], on the CPU, in tensors that autograd accepts.
    """
    encoded = {}
    for caption in captions:
        if caption not in encoded:
            # A caption is text, not a prompt: "saber (fate)" keeps its brackets and its weight.
            tokens = clip.tokenize(caption, disable_weights=True)
            conditioning = clip.encode_from_tokens_scheduled(tokens)
            require(
                len(conditioning) == 1,
                "clip: it changes over the sampling steps (hooks with a schedule), which training "
                "cannot follow. Wire the CLIP without the hooks.",
            )
            encoded[caption] = _plain(conditioning[0])
            tick()
    return encoded


def encode_images(
    vae: Any, base: Any, paths: Iterable[Path], resolution: int, tick: Tick
) -> tuple[Tensor, ...]:
    """One latent a picture, in the model's own scale (``process_latent_in``).

    Args:
        base: the host's model (``patcher.model``), which knows its latent format.

    Returns:
        [C, H, W] float32 tensors on the CPU.
    """
    latents = []
    for path in paths:
        pixels = load_image(path, resolution).unsqueeze(0)  # [1, H, W, 3]
        # Some VAEs draw from a distribution: the same picture must give the same latent.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            latent = vae.encode(pixels)
        require(
            bool(latent.isfinite().all()),
            f'vae: it gives numbers that are not finite for "{path}". Its precision is too low: '
            "start ComfyUI with --fp32-vae or --bf16-vae, or use a fixed VAE.",
        )
        latents.append(_plain(base.process_latent_in(latent)[0].float()))
        tick()
    return tuple(latents)


def _plain(value: Any) -> Any:
    """Copies made outside inference mode, which autograd may save."""
    with torch.inference_mode(False):
        if isinstance(value, Tensor):
            return value.detach().to("cpu", copy=True)
        if isinstance(value, dict):
            return {key: _plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(_plain(item) for item in value)
        return value
