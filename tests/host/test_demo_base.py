"""The demo's base model is a genuine SD1.5 checkpoint, the same on every machine."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy.sd
import comfy.supported_models
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "demo" / "base"
IMAGES = ROOT / "demo" / "images"
MEGABYTE = 1_000_000


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"demo_base_{name}", BASE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "base.safetensors"
    _module("assemble").assemble(path)
    return path


@pytest.fixture(scope="module")
def loaded(checkpoint: Path) -> tuple[Any, Any, Any]:
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]


def test_the_text_encoder_has_the_documented_numbers() -> None:
    text_encoder = _module("text_encoder")
    assert text_encoder.checksum(text_encoder.text_encoder_state_dict()) == text_encoder.SHA256


def test_the_committed_weights_are_small_finite_and_in_half_precision() -> None:
    files = sorted((BASE / "weights").glob("*.safetensors"))
    assert [file.stem for file in files] == ["unet", "vae"]
    assert sum(file.stat().st_size for file in files) < 60 * MEGABYTE
    for tensor in (t for file in files for t in load_file(file).values()):
        assert bool(tensor.isfinite().all())
        assert tensor.dtype == torch.float16 or tensor.ndim == 0  # the VAE's scale and shift


def test_comfyui_takes_it_for_sd15_and_misses_no_key(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), torch.inference_mode():
        model = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[0]
    assert isinstance(model.model.model_config, comfy.supported_models.SD15)
    complaints = [m for m in caplog.messages if "missing" in m or "unexpected" in m]
    assert [m for m in complaints if "torchaudio" not in m] == []


def test_words_survive_the_text_encoder(loaded: tuple[Any, Any, Any]) -> None:
    """The first word's vector is its own, whatever stands beside it."""
    clip = loaded[1]

    @torch.inference_mode()
    def first_word(text: str) -> torch.Tensor:
        return clip.encode_from_tokens(clip.tokenize(text))[0, 1]  # place 0 is the start token

    def likeness(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.nn.functional.cosine_similarity(a, b, dim=0))

    fox = first_word("fox in the snow")
    assert likeness(fox, first_word("fox")) > 0.95
    assert likeness(fox, first_word("pizza in the snow")) < 0.5


@pytest.mark.slow
def test_the_vae_keeps_pictures_and_their_scale(loaded: tuple[Any, Any, Any]) -> None:
    """At least 23 dB on every style's pictures, and latents of about unit deviation."""
    model, _, vae = loaded
    for folder in ("glossy/train", "other/flat", "other/ink", "other/noto"):
        files = sorted((IMAGES / folder).glob("*.png"))
        pixels = torch.from_numpy(np.stack([_pixels(file) for file in files]))
        with torch.inference_mode():
            latents = vae.encode(pixels)
            error = (vae.decode(latents) - pixels).square().mean(dim=(1, 2, 3))
        scaled = model.model.process_latent_in(latents)
        assert float(-10 * error.log10().mean()) > 23, folder
        assert 0.5 < float(scaled.std()) < 2, folder


def _pixels(file: Path) -> np.ndarray:
    picture = Image.open(file).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
    return np.asarray(picture, dtype=np.float32) / 255
