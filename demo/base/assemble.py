"""Build the demo's base model: one SD1.5 checkpoint file from the weights in this folder.

The UNet and the autoencoder are stored here in half precision; the text encoder is made from
its seed (see `text_encoder.py`), which takes a few seconds and no download.

    python assemble.py lora_atelier_demo.safetensors
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

try:
    from .text_encoder import SHA256, checksum, text_encoder_state_dict
except ImportError:  # run as a script, or imported by its path
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from text_encoder import SHA256, checksum, text_encoder_state_dict

WEIGHTS = Path(__file__).resolve().parent / "weights"
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
METADATA = {
    "format": "pt",
    "modelspec.sai_model_spec": "1.0.0",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.implementation": "https://github.com/Stability-AI/StableDiffusion",
    "modelspec.title": "LoRA Atelier demo base",
    "modelspec.description": (
        "A 26 M parameter model of SD1.5's architecture for 64x64 emoji pictures in three styles"
        " (flat style, ink style, noto style), trained from nothing for LoRA Atelier's demo."
    ),
    "modelspec.author": "LoRA Atelier",
    "modelspec.license": "MIT; trained on Noto Emoji (Apache-2.0) and Fluent Emoji (MIT)",
    "modelspec.resolution": "64x64",
    "modelspec.prediction_type": "epsilon",
}


def state_dict(weights: Path = WEIGHTS, verify: bool = False) -> dict[str, Tensor]:
    """The whole checkpoint's tensors by name; `verify` compares the text encoder's checksum."""
    text = text_encoder_state_dict()
    if verify and checksum(text) != SHA256:
        raise ValueError("the text encoder's numbers differ from the documented ones")
    unet = load_file(weights / "unet.safetensors")
    vae = load_file(weights / "vae.safetensors")
    state = {UNET_PREFIX + key: value for key, value in unet.items()}
    state.update({VAE_PREFIX + key: value for key, value in vae.items()})
    return state | text


def assemble(out_path: str | os.PathLike[str], weights: Path = WEIGHTS) -> Path:
    """Write the checkpoint; it appears under its name only once it is whole."""
    out = Path(out_path)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        save_file(state_dict(weights), temporary, METADATA)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return out


def main(argv: list[str] | None = None) -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(description="Build the demo's base checkpoint.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    options = parser.parse_args(argv)
    out = assemble(options.out, options.weights)
    sys.stdout.write(f"wrote {out.name}, {out.stat().st_size / 1e6:.0f} MB\n")


if __name__ == "__main__":
    main()
