"""What is written down of a generated picture: a line of metadata.jsonl and texts in its PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from torch import Tensor

from ..dataset.metadata_lines import one_line
from ..dataset.samples import Role
from .plan import Base, GenerateSpec, Planned, settings


@dataclass(frozen=True)
class Provenance:
    """What travels with every picture into the LoRA that is trained on it."""

    role: Role = Role.TRAIN
    source: str = ""
    """Empty: that they were generated, and with which base model."""
    license: str = ""


def record(
    picture: Planned,
    size: tuple[int, int],
    spec: GenerateSpec,
    base: Base,
    provenance: Provenance,
) -> dict[str, Any]:
    """The line of ``metadata.jsonl``; Load Image Dataset reads the first six values.

    Args:
        size: width and height, px.
    """
    return {
        "file_name": picture.file_name,
        "text": one_line(picture.prompt.caption),
        "role": provenance.role.value,
        "source": provenance.source or f"generated with {base.name}",
        "license": provenance.license,
        "class_tokens": picture.prompt.class_tokens,
        **settings(picture.prompt.text, picture.seed, spec),
        "width": size[0],
        "height": size[1],
        "subject": picture.prompt.subject,
        "style": picture.prompt.style,
        "base_model": base.name,
        "base_digest": base.digest,
    }


def parameters(values: Mapping[str, Any]) -> str:
    """A record as most viewers of generated pictures show it (AUTOMATIC1111's ``parameters``)."""
    facts = {
        "Steps": values["steps"],
        "Sampler": values["sampler_name"],
        "Schedule type": values["scheduler"],
        "CFG scale": values["cfg"],
        "Seed": values["seed"],
        "Size": f"{values['width']}x{values['height']}",
        "Model": values["base_model"],
    }
    if values["guidance"]:
        facts["Distilled CFG Scale"] = values["guidance"]
    lines = [values["prompt"]]
    if values["negative"]:
        lines.append(f"Negative prompt: {values['negative']}")
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
    return "\n".join(lines)


def to_picture(image: Tensor) -> Image.Image:
    """The pixels that SaveImage would write.

    Args:
        image: [H, W, 3], 0..1.
    """
    pixels = 255.0 * image.float().cpu().numpy()
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def png(picture: Image.Image, texts: Mapping[str, str]) -> bytes:
    """A file, with texts in its header that Latin-1 need not hold."""
    header = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        header.add_text(name, text)
    content = io.BytesIO()
    picture.save(content, "PNG", pnginfo=header, compress_level=4)
    return content.getvalue()
