"""A small but genuine SD1.5 checkpoint, made from seeded random weights.

ComfyUI recognises a checkpoint by the names and shapes of its tensors. The width (320) and the text
width (768) of the UNet make it SD1.5; the depth is free. So one level with one residual block gives
a model that takes every code path of the real one in about 26 M parameters. The text encoder has to
be CLIP-L at its real size; the VAE is a TAESD. Nothing here imports ComfyUI.

Weights are scaled so that signals keep roughly unit variance all the way through: no output is
zero, so every layer receives a gradient, and no activation overflows.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

VERSION = 1
"""Part of the file name: raise it when the weights change."""

CACHE = Path(__file__).resolve().parents[1] / ".work" / "tiny"
WIDTH = 320
TIME_WIDTH = 4 * WIDTH
TEXT_WIDTH = 768
TEXT_LAYERS = 12
VOCABULARY = 49408
LATENT_CHANNELS = 4

Shape = tuple[int, ...]
Entry = tuple[str, Shape, float]
"""Name, shape, and standard deviation; a negative deviation means a norm (weight 1, bias 0)."""

NORM = -1.0


def tiny_sd15(cache: Path = CACHE) -> Path:
    """The cached checkpoint file, built on first use (a few seconds, about 360 MB)."""
    path = cache / f"tiny_sd15-v{VERSION}.safetensors"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        save_file(state_dict(), partial)
        partial.replace(path)
    return path


def state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """All tensors of the checkpoint: UNet and VAE in float32, text encoder in float16."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"model.diffusion_model.{name}": _draw(name, shape, std, generator)
        for name, shape, std in _unet()
    }
    for name, shape, std in _clip_l():
        key = f"cond_stage_model.transformer.text_model.{name}"
        tensors[key] = _draw(name, shape, std, generator).half()
    for name, shape, std in _taesd():
        tensors[f"first_stage_model.{name}"] = _draw(name, shape, std, generator)
    # The values ComfyUI itself gives a TAESD for SD1.5: raw latents are 1/0.18215 times larger
    # than the unit-variance ones the encoder makes.
    tensors["first_stage_model.vae_scale"] = torch.tensor(0.18215)
    tensors["first_stage_model.vae_shift"] = torch.tensor(0.0)
    return tensors


def _draw(name: str, shape: Shape, std: float, generator: torch.Generator) -> torch.Tensor:
    if std == NORM:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    return torch.randn(shape, generator=generator) * std


def _layer(name: str, *shape: int, bias: bool = True, gain: float = 1.0) -> Iterator[Entry]:
    """A Linear [out, in] or Conv [out, in, k, k] that keeps unit variance when gain is 1."""
    yield f"{name}.weight", shape, gain / math.sqrt(math.prod(shape[1:]))
    if bias:
        yield f"{name}.bias", shape[:1], 0.02


def _norm(name: str, width: int) -> Iterator[Entry]:
    yield f"{name}.weight", (width,), NORM
    yield f"{name}.bias", (width,), NORM


def _unet() -> Iterator[Entry]:
    yield from _layer("time_embed.0", TIME_WIDTH, WIDTH)
    yield from _layer("time_embed.2", TIME_WIDTH, TIME_WIDTH)
    yield from _layer("input_blocks.0.0", WIDTH, LATENT_CHANNELS, 3, 3)
    yield from _residual_block("input_blocks.1.0", WIDTH)
    yield from _transformer("input_blocks.1.1")
    yield from _residual_block("middle_block.0", WIDTH)
    yield from _transformer("middle_block.1")
    yield from _residual_block("middle_block.2", WIDTH)
    for index in range(2):
        yield from _residual_block(f"output_blocks.{index}.0", 2 * WIDTH)
        yield from _transformer(f"output_blocks.{index}.1")
    yield from _norm("out.0", WIDTH)
    yield from _layer("out.2", LATENT_CHANNELS, WIDTH, 3, 3)


def _residual_block(name: str, width_in: int) -> Iterator[Entry]:
    yield from _norm(f"{name}.in_layers.0", width_in)
    yield from _layer(f"{name}.in_layers.2", WIDTH, width_in, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", WIDTH, TIME_WIDTH)
    yield from _norm(f"{name}.out_layers.0", WIDTH)
    yield from _layer(f"{name}.out_layers.3", WIDTH, WIDTH, 3, 3, gain=0.5)
    if width_in != WIDTH:
        yield from _layer(f"{name}.skip_connection", WIDTH, width_in, 1, 1)


def _transformer(name: str) -> Iterator[Entry]:
    block = f"{name}.transformer_blocks.0"
    yield from _norm(f"{name}.norm", WIDTH)
    yield from _layer(f"{name}.proj_in", WIDTH, WIDTH, 1, 1)
    for attention, context_width in (("attn1", WIDTH), ("attn2", TEXT_WIDTH)):
        yield from _layer(f"{block}.{attention}.to_q", WIDTH, WIDTH, bias=False)
        yield from _layer(f"{block}.{attention}.to_k", WIDTH, context_width, bias=False)
        yield from _layer(f"{block}.{attention}.to_v", WIDTH, context_width, bias=False)
        yield from _layer(f"{block}.{attention}.to_out.0", WIDTH, WIDTH)
    yield from _layer(f"{block}.ff.net.0.proj", 8 * WIDTH, WIDTH)
    yield from _layer(f"{block}.ff.net.2", WIDTH, 4 * WIDTH)
    for index in (1, 2, 3):
        yield from _norm(f"{block}.norm{index}", WIDTH)
    yield from _layer(f"{name}.proj_out", WIDTH, WIDTH, 1, 1)


def _clip_l() -> Iterator[Entry]:
    # Residual branches are damped, so that the last layer still tells tokens and places apart.
    yield "embeddings.token_embedding.weight", (VOCABULARY, TEXT_WIDTH), 1.0
    yield "embeddings.position_embedding.weight", (77, TEXT_WIDTH), 0.3
    for index in range(TEXT_LAYERS):
        layer = f"encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj"):
            yield from _layer(f"{layer}.self_attn.{projection}", TEXT_WIDTH, TEXT_WIDTH)
        yield from _layer(f"{layer}.self_attn.out_proj", TEXT_WIDTH, TEXT_WIDTH, gain=0.2)
        yield from _layer(f"{layer}.mlp.fc1", 4 * TEXT_WIDTH, TEXT_WIDTH)
        yield from _layer(f"{layer}.mlp.fc2", TEXT_WIDTH, 4 * TEXT_WIDTH, gain=0.2)
        yield from _norm(f"{layer}.layer_norm1", TEXT_WIDTH)
        yield from _norm(f"{layer}.layer_norm2", TEXT_WIDTH)
    yield from _norm("final_layer_norm", TEXT_WIDTH)


def _taesd() -> Iterator[Entry]:
    """Encoder 3 -> 4 channels at 1/8 size, decoder back; 64 channels throughout."""
    yield from _layer("taesd_encoder.0", 64, 3, 3, 3, gain=2.0)
    yield from _taesd_block("taesd_encoder.1")
    for start in (2, 6, 10):
        yield from _layer(f"taesd_encoder.{start}", 64, 64, 3, 3, bias=False, gain=1.4)
        for index in range(start + 1, start + 4):
            yield from _taesd_block(f"taesd_encoder.{index}")
    yield from _layer("taesd_encoder.14", LATENT_CHANNELS, 64, 3, 3)
    yield from _layer("taesd_decoder.1", 64, LATENT_CHANNELS, 3, 3, gain=1.4)
    for start in (3, 8, 13):
        for index in range(start, start + 3):
            yield from _taesd_block(f"taesd_decoder.{index}")
        yield from _layer(f"taesd_decoder.{start + 4}", 64, 64, 3, 3, bias=False, gain=1.4)
    yield from _taesd_block("taesd_decoder.18")
    yield from _layer("taesd_decoder.19", 3, 64, 3, 3, gain=0.5)


def _taesd_block(name: str) -> Iterator[Entry]:
    yield from _layer(f"{name}.conv.0", 64, 64, 3, 3, gain=1.4)
    yield from _layer(f"{name}.conv.2", 64, 64, 3, 3, gain=1.4)
    yield from _layer(f"{name}.conv.4", 64, 64, 3, 3, gain=0.3)


if __name__ == "__main__":
    sys.stdout.write(f"{tiny_sd15()}\n")
