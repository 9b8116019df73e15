"""Whether pictures of the demo's base model lie nearer to a style with a LoRA than without it.

Nearer is measured in colour after a blur of one pixel (RMS over the picture, 0..1). That is fair
here because the demo's styles draw a subject in nearly the same outline: what is left is how its
areas are filled, coloured and lit, and what is black. The blur forgives an edge that is off by a
pixel.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import wilcoxon

import demo
from host import HostServer

IMAGES = demo.ROOT / "demo" / "images"
HELD_OUT = sorted((IMAGES / "glossy" / "heldout").glob("*.txt"))
"""Captions of the subjects that no LoRA of the tests is trained on."""

SEEDS = 2
"""Pictures of each subject."""

Picture = NDArray[np.float64]
"""[64, 64, 3] RGB, 0..1, on white."""


def p_value(far: NDArray[np.float64], near: NDArray[np.float64]) -> float:
    """Wilcoxon's signed-rank test over the subjects, one-sided: is ``near`` smaller?"""
    if np.array_equal(far, near):
        return 1.0
    return float(wilcoxon(far, near, alternative="greater").pvalue)


def distances(
    server: HostServer,
    true_pictures: list[Picture],
    prefix: str,
    lora: str | None = None,
    strength: float = 1.0,
) -> NDArray[np.float64]:
    """One a held-out subject: the mean over its seeds, which are not independent of each other.

    Args:
        true_pictures: of the held-out subjects, or of the first of them.
        prefix: what stands before the subject in the prompt.
        lora: its name in models/loras; None: the base model alone.
    """
    graph: dict[str, Any] = {
        "base": _node("CheckpointLoaderSimple", ckpt_name=demo.BASE_MODEL),
        "negative": _node("CLIPTextEncode", clip=["base", 1], text=""),
        "latent": _node("EmptyLatentImage", width=64, height=64, batch_size=SEEDS),
    }
    model, clip = ["base", 0], ["base", 1]
    if lora is not None:
        graph["lora"] = _node(
            "LoraLoader",
            model=model,
            clip=clip,
            lora_name=lora,
            strength_model=strength,
            strength_clip=strength,
        )
        model, clip = ["lora", 0], ["lora", 1]
    for i, (caption, _) in enumerate(zip(HELD_OUT, true_pictures, strict=False)):
        text = prefix + caption.read_text("utf-8").strip()
        graph[f"text{i}"] = _node("CLIPTextEncode", clip=clip, text=text)
        graph[f"sample{i}"] = _node(
            "KSampler",
            model=model,
            positive=[f"text{i}", 0],
            negative=["negative", 0],
            latent_image=["latent", 0],
            seed=i,
            steps=10,
            cfg=3.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        )
        graph[f"image{i}"] = _node("VAEDecode", samples=[f"sample{i}", 0], vae=["base", 2])
        graph[f"save{i}"] = _node("PreviewImage", images=[f"image{i}", 0])
    result = server.queue(graph, timeout=1200).check()
    return np.array(
        [
            np.mean([_distance(p, true) for p in _pictures(server, result.images(f"save{i}"))])
            for i, true in enumerate(true_pictures)
        ]
    )


def true_pictures(server: HostServer, folder: Path) -> list[Picture]:
    """The held-out subjects in a style, at 64 px, as the VAE paints them.

    Through the VAE, since nothing the model samples can be sharper than its decoder.
    """
    graph: dict[str, Any] = {"base": _node("CheckpointLoaderSimple", ckpt_name=demo.BASE_MODEL)}
    for i, caption in enumerate(HELD_OUT):
        file = folder / f"{caption.stem}.png"
        name = server.put_input(_at_64_px(file), f"true-{folder.name}-{file.stem}.png")
        graph[f"load{i}"] = _node("LoadImage", image=name)
        graph[f"latent{i}"] = _node("VAEEncode", pixels=[f"load{i}", 0], vae=["base", 2])
        graph[f"image{i}"] = _node("VAEDecode", samples=[f"latent{i}", 0], vae=["base", 2])
        graph[f"save{i}"] = _node("PreviewImage", images=[f"image{i}", 0])
    result = server.queue(graph, timeout=600).check()
    return [_pictures(server, result.images(f"save{i}"))[0] for i in range(len(HELD_OUT))]


def needed_for(graph: dict[str, Any], node: str) -> dict[str, Any]:
    """The part of a prompt that a node depends on, itself included."""
    links = [value[0] for value in graph[node]["inputs"].values() if isinstance(value, list)]
    needed = {node: graph[node]}
    for link in links:
        needed |= needed_for(graph, link)
    return needed


def _distance(picture: Picture, true: Picture) -> float:
    """Of the picture or its mirror image: the base was trained on both and paints either."""
    blurred, mirrored, goal = (
        gaussian_filter(p, (1, 1, 0)) for p in (picture, picture[:, ::-1], true)
    )
    return min(float(np.sqrt(np.square(p - goal).mean())) for p in (blurred, mirrored))


def _at_64_px(file: Path) -> bytes:
    buffer = io.BytesIO()
    picture = Image.open(file).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _pictures(server: HostServer, references: list[dict[str, str]]) -> list[Picture]:
    files = [Image.open(io.BytesIO(server.image(reference))) for reference in references]
    return [np.asarray(file.convert("RGB"), dtype=np.float64) / 255 for file in files]


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
