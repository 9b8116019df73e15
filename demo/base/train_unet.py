"""Train the demo's diffusion model: SD1.5's architecture with one level, from nothing.

    python train_unet.py pictures.npz weights/vae.safetensors weights/unet.safetensors \
        --comfy COMFYUI --minutes 75

The network is ComfyUI's own UNetModel (so the key names are right by construction), with
`model_channels=320`, `channel_mult=[1]`, one residual block and one transformer block a level:
26 million parameters over 8x8 latents of 4 channels. With z a latent x 0.18215, noise e and

    x_t = sqrt(a_t) z + sqrt(1 - a_t) e,   beta scaled-linear 0.00085..0.012, t in 0..999,

the loss is min(snr_t, 5) / snr_t * mean (unet(x_t, t, text) - e)^2 with snr_t = a_t / (1 - a_t).

Captions: `STYLE style, SUBJECT` mostly, `SUBJECT` alone for 15 %, nothing for 10 %. The glossy
style is never shown. Latents and text outputs are computed once, before the first step.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pictures import load_subjects
from PIL import Image
from safetensors.torch import load_file, save_file
from text_encoder import PREFIX, text_encoder_state_dict
from torch import Tensor, nn
from train_vae import LATENT_SCALE, Autoencoder, load_pictures

STYLES = ("flat", "ink", "noto")
BARE, EMPTY = 0.15, 0.10
GAMMA = 5.0
CONFIG = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1],
    "context_dim": 768,
    "legacy": False,
}
log = logging.getLogger("train_unet")


def import_comfy(folder: Path) -> None:
    """Put a ComfyUI source tree on the path, on the processor alone."""
    sys.path.insert(0, str(folder.resolve()))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    args.use_pytorch_cross_attention = True


def initialise(model: nn.Module) -> None:
    """PyTorch's defaults, with the last map of every residual branch and the output at zero."""
    for module in model.modules():
        for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
            if isinstance(module, kind):
                kind.reset_parameters(module)
    for name, parameter in model.named_parameters():
        if ".out_layers.3." in name or ".proj_out." in name or name.startswith("out.2."):
            nn.init.zeros_(parameter)


def build_unet() -> nn.Module:
    """The network with fresh weights in single precision."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    model = UNetModel(**CONFIG, dtype=torch.float32, operations=comfy.ops.disable_weight_init)
    initialise(model)
    return model


def captions_of(names: list[str]) -> list[str]:
    """Index 0 is empty; 1..n the bare names; then n captions for each style in order."""
    return ["", *names, *(f"{style} style, {name}" for style in STYLES for name in names)]


@torch.no_grad()
def encode_texts(captions: list[str]) -> Tensor:
    """ComfyUI's text path over every caption: [captions, 77, 768]."""
    from comfy import sd1_clip

    model = sd1_clip.SDClipModel(device="cpu", dtype=torch.float32, textmodel_json_config=None)
    state = {key[len(PREFIX) :]: v.float() for key, v in text_encoder_state_dict().items()}
    state.pop("embeddings.position_ids")
    model.transformer.text_model.load_state_dict(state)
    tokenizer = sd1_clip.SDTokenizer()
    out = [
        model.encode_token_weights(tokenizer.tokenize_with_weights(caption))[0]
        for caption in captions
    ]
    return torch.cat(out).float()


@torch.no_grad()
def encode_pictures(pictures: Tensor, vae: Autoencoder) -> Tensor:
    """uint8 [N, 3, 64, 64] -> latents x 0.18215, [N, 4, 8, 8]."""
    parts = [vae.encode(part.float() / 255) for part in pictures.split(64)]
    return torch.cat(parts) * LATENT_SCALE


def alphas() -> Tensor:
    """a_t for the 1000 steps of the scaled-linear schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()


class Sampler:
    """Draws a batch: latent index, caption index and spread-out times."""

    def __init__(self, subjects: int, count: int) -> None:
        self.subjects, self.count = subjects, count

    def draw(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latent numbers, caption numbers and times, each [batch]."""
        index = torch.randint(self.count, (batch,))
        plain = index % (self.count // 2)  # the second half are the mirror images
        subject = plain % self.subjects
        caption = 1 + self.subjects + plain
        chance = torch.rand(batch)
        caption = torch.where(chance < BARE + EMPTY, 1 + subject, caption)
        caption = torch.where(chance < EMPTY, torch.zeros_like(caption), caption)
        # One time from each of `batch` equal shares of the schedule: less variance, same mean.
        times = (torch.arange(batch) + torch.rand(batch)) * (1000 / batch)
        return index, caption, times[torch.randperm(batch)].long().clamp_max(999)


@torch.no_grad()
def sample(
    model: nn.Module, text: Tensor, empty: Tensor, scale: float, steps: int = 25, seed: int = 7
) -> Tensor:
    """Deterministic DDIM with guidance: text [n, 77, 768] -> latents x 0.18215, [n, 4, 8, 8]."""
    a = alphas()
    noise = torch.randn(len(text), 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    x, context = noise, torch.cat([text, empty.expand(len(text), -1, -1)])
    times = torch.linspace(999, 0, steps).round().long()
    for number, t in enumerate(times):
        both = model(torch.cat([x, x]), t.expand(2 * len(x)).float(), context=context)
        with_text, without = both.float().chunk(2)
        eps = without + scale * (with_text - without)
        clean = (x - (1 - a[t]).sqrt() * eps) / a[t].sqrt()
        after = a[times[number + 1]] if number + 1 < steps else torch.tensor(1.0)
        x = after.sqrt() * clean + (1 - after).sqrt() * eps
    return x


def to_pixels(pictures: Tensor) -> np.ndarray:
    """[n, 3, H, W] in [0, 1] -> uint8 [n, H, W, 3]."""
    return (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def write_grid(rows: list[np.ndarray], path: Path) -> None:
    """Rows of uint8 pictures [n, H, W, 3] -> one PNG."""
    Image.fromarray(np.concatenate([np.concatenate(list(r), 1) for r in rows], 0)).save(path)


def save(shadow: dict[str, Tensor], path: Path) -> None:
    """Write the averaged weights in half precision."""
    state = {key: value.half().contiguous() for key, value in shadow.items()}
    save_file(state, path, {"title": "LoRA Atelier demo base, UNet", "license": "MIT"})


def rate(progress: float, step: int, peak: float, warm: int = 200) -> float:
    """Warm-up over `warm` steps, then half a cosine down to 5 % of the peak at progress 1."""
    cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * min(1.0, (step + 1) / warm) * cosine


class Trainer:
    """The state of one training: network, average, optimiser and data."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.vae = Autoencoder()
        self.vae.load_state_dict({k: v.float() for k, v in load_file(options.vae).items()})
        self.names = [subject.name for subject in load_subjects()]
        self.latents = encode_pictures(load_pictures(options.pictures, STYLES), self.vae)
        self.texts = encode_texts(captions_of(self.names))
        self.draws = Sampler(len(self.names), len(self.latents))
        self.alphas = alphas()
        self.model = build_unet().to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=options.rate,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=True,
        )
        self.step, self.elapsed = 0, 0.0
        self.shadow = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        if options.state and options.state.exists():
            self.restore()

    def loss(self) -> Tensor:
        """The weighted loss of one drawn batch."""
        index, caption, t = self.draws.draw(self.options.batch)
        clean, text = self.latents[index], self.texts[caption]
        noise = torch.randn_like(clean)
        a = self.alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
            guess = self.model(noisy, t.float(), context=text)
        snr = (a / (1 - a)).flatten()
        weight = snr.clamp_max(GAMMA) / snr
        return (weight * (guess.float() - noise).square().mean((1, 2, 3))).mean()

    def update(self, progress: float) -> float:
        """One optimiser step; returns the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate(progress, self.step, self.options.rate)
        loss = self.loss()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            current = list(self.model.state_dict().values())
            torch._foreach_lerp_(list(self.shadow.values()), current, 1 - decay)
        return loss.item()

    @torch.no_grad()
    def sheet(self, path: Path, shown: int = 12) -> None:
        """A grid of samples from the averaged weights: a few subjects in the three styles."""
        live = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.shadow)
        picked = range(0, len(self.names), max(1, len(self.names) // shown))
        rows = []
        for style in range(len(STYLES) + 1):
            chosen = [1 + style * len(self.names) + number for number in picked]
            with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
                z = sample(self.model, self.texts[chosen], self.texts[:1], 3.5, steps=20)
            rows.append(to_pixels(self.vae.decode(z / LATENT_SCALE)))
        write_grid(rows, path)
        self.model.load_state_dict(live)

    def checkpoint(self) -> None:
        """Write the deliverable and, where asked, everything needed to go on after a stop."""
        save(self.shadow, self.options.out)
        if self.options.state:
            temporary = self.options.state.with_suffix(".tmp")
            everything = {
                "model": self.model.state_dict(),
                "shadow": self.shadow,
                "step": self.step,
                "optimiser": self.optimiser.state_dict(),
                "elapsed": self.elapsed,
            }
            torch.save(everything, temporary)
            temporary.replace(self.options.state)

    def restore(self) -> None:
        """Go on from a state that `checkpoint` wrote."""
        everything = torch.load(self.options.state, weights_only=True)
        self.model.load_state_dict(everything["model"])
        self.optimiser.load_state_dict(everything["optimiser"])
        self.shadow = everything["shadow"]
        self.step, self.elapsed = everything["step"], everything["elapsed"]
        torch.manual_seed(self.options.seed + self.step)
        log.info("going on from step %d", self.step)

    def run(self) -> None:
        """Train for the wall-clock budget, with a log line, sheets and files on the way."""
        options, budget = self.options, 60 * self.options.minutes
        losses: list[float] = []
        last = saved = drawn = time.monotonic()
        while self.elapsed < budget and self.step < options.max_steps:
            losses.append(self.update(self.elapsed / budget))
            now = time.monotonic()
            self.elapsed, last = self.elapsed + now - last, now
            if self.step % 50 == 0:
                log.info(
                    "step %d  %.0f s  %.3f s/step  loss %.4f",
                    self.step,
                    self.elapsed,
                    self.elapsed / self.step,
                    np.mean(losses[-200:]),
                )
            if now - saved > 240:
                self.checkpoint()
                saved = time.monotonic()
            if options.sheets and now - drawn > 60 * options.sheet_minutes:
                self.sheet(options.sheets / f"step{self.step:06d}.png")
                drawn = time.monotonic()
        self.checkpoint()
        figures = {
            "steps": self.step,
            "samples": self.step * options.batch,
            "minutes": round(self.elapsed / 60, 1),
            "loss": float(np.mean(losses[-500:])),
        }
        log.info("end: %s", json.dumps(figures))
        if options.sheets:
            self.sheet(options.sheets / "end.png")


def main(argv: list[str] | None = None) -> None:
    """Command line: see the module's first lines."""
    parser = argparse.ArgumentParser(description="Train the demo's diffusion model.")
    parser.add_argument("pictures", type=Path, help="the file that pictures.py wrote")
    parser.add_argument("vae", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--comfy", type=Path, required=True, help="a ComfyUI source tree")
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--state", type=Path, help="file to go on from after a stop")
    parser.add_argument("--sheets", type=Path, help="folder for sample sheets on the way")
    parser.add_argument("--sheet-minutes", type=float, default=8)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    import_comfy(options.comfy)
    Trainer(options).run()


if __name__ == "__main__":
    main()
