"""Train the demo's picture autoencoder: the TAESD layout with 4 latent channels, from nothing.

    python pictures.py PACKAGES cache pictures.npz
    python train_vae.py pictures.npz weights/vae.safetensors --minutes 35

The loss of a picture x in [0, 1] and its reconstruction y is

    mean|x - y| + 4 mean (x - y)^2 + 0.5 mean|grad x - grad y| + 0.02 sum_c (mu_c^2 + log(sd_c)^2)

where the last term pulls each latent channel to mean 0 and deviation 1 over the batch, so that
one scale and one shift suffice afterwards: with e the encoder's raw output, ComfyUI's TAESD gives

    z = e / vae_scale + vae_shift,   vae_scale = 0.18215 sd(e),   vae_shift = -mean(e) / vae_scale

and 0.18215 z, the latents a diffusion model sees, then has mean 0 and deviation 1.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

LATENT_SCALE = 0.18215
STYLES = ("flat", "ink", "noto", "glossy")
log = logging.getLogger("train_vae")


def _conv(inputs: int, outputs: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Clamp(nn.Module):
    """Soft limit of the latents: 3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, 4, h, w] -> the same shape."""
        return torch.tanh(x / 3) * 3


class Block(nn.Module):
    """Three 3x3 convolutions of 64 channels beside an identity: relu(x + f(x))."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, 64, h, w] -> the same shape."""
        return F.relu(self.conv(x) + x)


def encoder() -> nn.Sequential:
    """[B, 3, H, W] in [0, 1] -> raw latents [B, 4, H/8, W/8]; module names as in ComfyUI."""
    layers: list[nn.Module] = [_conv(3, 64), Block()]
    for _ in range(3):
        layers += [_conv(64, 64, stride=2, bias=False), Block(), Block(), Block()]
    return nn.Sequential(*layers, _conv(64, 4))


def decoder() -> nn.Sequential:
    """Raw latents [B, 4, h, w] -> [B, 3, 8h, 8w] in about [0, 1]; module names as in ComfyUI."""
    layers: list[nn.Module] = [Clamp(), _conv(4, 64), nn.ReLU()]
    for _ in range(3):
        layers += [Block(), Block(), Block(), nn.Upsample(scale_factor=2)]
        layers += [_conv(64, 64, bias=False)]
    return nn.Sequential(*layers, Block(), _conv(64, 3))


class Autoencoder(nn.Module):
    """Encoder, decoder and the two numbers between raw latents and ComfyUI's latents."""

    def __init__(self) -> None:
        super().__init__()
        self.taesd_encoder = encoder()
        self.taesd_decoder = decoder()
        self.register_buffer("vae_scale", torch.tensor(1.0))
        self.register_buffer("vae_shift", torch.tensor(0.0))

    def encode(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> z, [B, 4, H/8, W/8]."""
        return self.taesd_encoder(pictures) / self.vae_scale + self.vae_shift

    def decode(self, z: Tensor) -> Tensor:
        """z -> pictures, not clamped."""
        return self.taesd_decoder((z - self.vae_shift) * self.vae_scale)


def initialise(model: Autoencoder, generator: torch.Generator) -> None:
    """He-normal convolutions; each residual branch starts at a tenth, so depth costs nothing."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            deviation = math.sqrt(2.0 / (module.in_channels * 9))
            nn.init.normal_(module.weight, std=deviation, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Block):
                module.conv[4].weight.mul_(0.1)
        model.taesd_encoder[-1].weight.mul_(0.5)
        model.taesd_decoder[-1].weight.mul_(0.1)
        model.taesd_decoder[-1].bias.fill_(0.8)  # most of every picture is white


def load_pictures(path: Path, styles: tuple[str, ...] = STYLES) -> Tensor:
    """All pictures and their mirror images: uint8 [2 * styles * subjects, 3, 64, 64]."""
    with np.load(path) as cache:
        stacked = np.concatenate([cache[style] for style in styles])
    pictures = torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()
    return torch.cat([pictures, pictures.flip(-1)])


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def loss_of(model: Autoencoder, x: Tensor, noise: float, autocast: bool) -> tuple[Tensor, float]:
    """The loss in the module's first lines, and the mean squared error alone."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        raw = model.taesd_encoder(x)
        y = model.taesd_decoder(raw + noise * torch.randn_like(raw))
    raw, y = raw.float(), y.float()
    square = F.mse_loss(y, x)
    edges = sum(F.l1_loss(a, b) for a, b in zip(_gradients(y), _gradients(x), strict=True))
    mean, deviation = raw.mean((0, 2, 3)), raw.std((0, 2, 3))
    moments = (mean.square() + deviation.clamp_min(1e-4).log().square()).sum()
    return F.l1_loss(y, x) + 4 * square + 0.5 * edges + 0.02 * moments, square.item()


@torch.no_grad()
def measure(model: Autoencoder, pictures: Tensor) -> dict[str, float]:
    """Set `vae_scale` and `vae_shift`, and return the mean PSNR (dB) of each style."""
    model.vae_scale.fill_(1.0)
    model.vae_shift.fill_(0.0)
    plain = pictures[: len(pictures) // 2].float() / 255
    raw = torch.cat([model.encode(part) for part in plain.split(64)])
    model.vae_scale.copy_(LATENT_SCALE * raw.std())
    model.vae_shift.copy_(-raw.mean() / model.vae_scale)
    parts = zip(raw.split(64), plain.split(64), strict=True)
    errors = torch.cat(
        [(model.taesd_decoder(z).clamp(0, 1) - x).square().mean((1, 2, 3)) for z, x in parts]
    )
    psnr = -10 * torch.log10(errors)
    return {s: p.mean().item() for s, p in zip(STYLES, psnr.chunk(len(STYLES)), strict=True)}


def save(model: Autoencoder, path: Path) -> None:
    """Write the weights in half precision; the two numbers stay single."""
    state = {
        key: (value if key.startswith("vae_") else value.half()).clone().contiguous()
        for key, value in model.state_dict().items()
    }
    save_file(state, path, {"title": "LoRA Atelier demo base, autoencoder", "license": "MIT"})


def rate(progress: float, step: int, peak: float, warm: int = 40) -> float:
    """Warm-up over `warm` steps, then half a cosine down to 1 % of the peak at progress 1."""
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * min(1.0, (step + 1) / warm) * cosine


def train(options: argparse.Namespace) -> None:
    """Train for a wall-clock budget; write the weights every few minutes and at the end."""
    torch.manual_seed(options.seed)
    pictures = load_pictures(options.pictures)
    model = Autoencoder()
    initialise(model, torch.Generator().manual_seed(options.seed))
    if options.resume:
        model.load_state_dict({k: v.float() for k, v in load_file(options.resume).items()})
    model = model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=options.rate, betas=(0.9, 0.99), weight_decay=1e-4
    )
    start = saved = time.monotonic()
    average, step, progress = 0.0, 0, 0.0
    while progress < 1 and step < options.max_steps:
        progress = (time.monotonic() - start) / (60 * options.minutes)
        for group in optimiser.param_groups:
            group["lr"] = rate(progress, step, options.rate)
        x = pictures[torch.randint(len(pictures), (options.batch,))].float() / 255
        x = x.contiguous(memory_format=torch.channels_last)
        loss, square = loss_of(model, x, 0.05, options.bf16)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        average = square if step == 0 else 0.98 * average + 0.02 * square
        step += 1
        if step % 25 == 0:
            spent = time.monotonic() - start
            log.info(
                "step %d  %.2f s/step  loss %.4f  psnr of the mean error %.2f dB",
                step,
                spent / step,
                loss.item(),
                -10 * math.log10(average),
            )
        if time.monotonic() - saved > 240:
            log.info("psnr %s", {k: round(v, 2) for k, v in measure(model, pictures).items()})
            save(model, options.out)
            saved = time.monotonic()
    log.info("end: step %d, psnr %s", step, measure(model, pictures))
    save(model, options.out)


def main(argv: list[str] | None = None) -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(description="Train the demo's autoencoder.")
    parser.add_argument("pictures", type=Path, help="the file that pictures.py wrote")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=35)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--resume", type=Path, default=None)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    train(options)


if __name__ == "__main__":
    main()
