"""Draw the demo base's contact sheet through ComfyUI: real | autoencoder | sample, per style.

    python sheet.py CHECKPOINT pictures.npz sheet.png --comfy COMFYUI

Each row is one subject; each style has three columns: the picture itself, the picture through
the autoencoder, and a sample for the caption `STYLE style, SUBJECT`, made by ComfyUI's own
checkpoint loader and sampler.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from pictures import load_subjects
from PIL import Image, ImageDraw
from torch import Tensor
from train_unet import STYLES, import_comfy

SHOWN = (
    "fox", "elephant", "hedgehog", "penguin", "frog", "octopus",
    "butterfly", "sunflower", "cactus", "strawberry", "pizza", "cupcake",
)  # fmt: skip
LABEL = 14


class Model:
    """A checkpoint as ComfyUI loads it."""

    def __init__(self, checkpoint: Path) -> None:
        import comfy.sd

        loaded = comfy.sd.load_checkpoint_guess_config(str(checkpoint))
        self.unet, self.clip, self.vae = loaded[:3]

    def text(self, caption: str) -> list:
        """What CLIPTextEncode gives."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(caption))

    def through(self, picture: np.ndarray) -> np.ndarray:
        """A uint8 picture [64, 64, 3] encoded and decoded."""
        pixels = torch.from_numpy(picture)[None].float() / 255
        return to_uint8(self.vae.decode(self.vae.encode(pixels)))

    def sample(self, caption: str, options: argparse.Namespace) -> np.ndarray:
        """What KSampler and VAEDecode give, as uint8 [64, 64, 3]."""
        from nodes import common_ksampler

        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        (out,) = common_ksampler(
            self.unet, options.seed, options.steps, options.cfg, options.sampler,
            options.scheduler, self.text(caption), self.text(""), latent,
        )  # fmt: skip
        return to_uint8(self.vae.decode(out["samples"]))


def to_uint8(pixels: Tensor) -> np.ndarray:
    """[1, H, W, 3] in [0, 1] -> uint8 [H, W, 3]."""
    return (pixels[0].clamp(0, 1) * 255).round().byte().cpu().numpy()


def draw(rows: list[list[np.ndarray]], names: tuple[str, ...], path: Path) -> None:
    """Write the rows under one another, each with its subject's name above it."""
    height, width = 64 + LABEL, 66 * len(rows[0])
    sheet = Image.new("RGB", (width, height * len(rows) + LABEL), (235, 235, 235))
    pen = ImageDraw.Draw(sheet)
    for column in range(len(rows[0])):
        kind = ("real", "autoencoder", "sample")[column % 3]
        pen.text((66 * column + 2, 1), kind, fill=(90, 90, 90))
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        top = LABEL + number * height
        pen.text((2, top + 1), name, fill=(0, 0, 0))
        for column, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (66 * column, top + LABEL))
    sheet.save(path, optimize=True)


def main(argv: list[str] | None = None) -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(description="Draw the demo base's contact sheet.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("pictures", type=Path, help="the file that pictures.py wrote")
    parser.add_argument("out", type=Path)
    parser.add_argument("--comfy", type=Path, required=True, help="a ComfyUI source tree")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=3.5)
    parser.add_argument("--sampler", default="dpmpp_2m")
    parser.add_argument("--scheduler", default="karras")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--subjects", nargs="*", default=SHOWN)
    options = parser.parse_args(argv)
    import_comfy(options.comfy)
    model, shown = Model(options.checkpoint), tuple(options.subjects)
    numbers = {subject.name: n for n, subject in enumerate(load_subjects())}
    rows: list[list[np.ndarray]] = []
    with np.load(options.pictures) as cache:
        real = {style: cache[style] for style in STYLES}
    for name in shown:
        row = []
        for style in STYLES:
            picture = real[style][numbers[name]]
            sampled = model.sample(f"{style} style, {name}", options)
            row += [picture, model.through(picture), sampled]
        rows.append(row)
    draw(rows, shown, options.out)
    sys.stdout.write(f"wrote {options.out.name}\n")


if __name__ == "__main__":
    main()
