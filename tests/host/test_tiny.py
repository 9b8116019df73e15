"""ComfyUI takes the tiny model for SD1.5, and signals pass through it at a healthy size."""

from __future__ import annotations

from pathlib import Path

import comfy.model_base
import comfy.sd
import pytest
import torch


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> tuple:
    return comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint))[:3]


def test_it_is_recognised_as_sd15(parts: tuple) -> None:
    model = parts[0]
    assert type(model.model) is comfy.model_base.BaseModel
    assert model.model.model_type is comfy.model_base.ModelType.EPS
    assert model.get_model_object("latent_format").scale_factor == 0.18215


def test_the_prediction_depends_on_the_caption(parts: tuple) -> None:
    model, clip, _ = parts
    cat, dog = (clip.encode_from_tokens(clip.tokenize(f"a red {x}")) for x in ("cat", "dog"))
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 2**0.5
    with torch.no_grad():
        first, second = (
            noisy - model.model.apply_model(noisy, torch.ones(1), c_crossattn=text)
            for text in (cat, dog)
        )
    assert 0.2 < first.std() < 2
    assert (first - second).std() > 0.02


def test_every_layer_of_the_unet_receives_a_gradient(tiny_checkpoint: Path) -> None:
    model = comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint), output_vae=False)[0]
    unet = model.model.diffusion_model.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    noisy, text = (torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 7, 768)))
    unet(noisy, torch.tensor([500.0]), context=text).pow(2).mean().backward()
    dead = [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()]
    # A key's bias would not matter to a softmax, but here no key has one: nothing may be dead.
    assert dead == []


def test_the_vae_makes_unit_variance_latents_and_pictures(parts: tuple) -> None:
    vae = parts[2]
    pixels = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    latents = vae.encode(pixels)
    assert latents.shape == (2, 4, 8, 8)
    assert 0.3 < (latents * 0.18215).std() < 3
    decoded = vae.decode(latents)
    assert decoded.shape == pixels.shape
    assert decoded.std() > 0.05
