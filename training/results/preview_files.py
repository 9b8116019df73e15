"""Previews on disk: one PNG a picture, which says in its header what it shows.

So a contact sheet is a function of the folder: it has the rows of earlier parts of a run, and none
that were drawn with other prompts or settings.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from torch import Tensor

from ..files import write_whole
from .preview_spec import PreviewSpec

FOLDER = "previews"
KEY = "atelier_preview"
"""Of the text in the PNG that says what it shows; ``prompt`` and ``workflow`` are the graph."""
NO_TEXTS: Mapping[str, str] = {}
_NAME = re.compile(r"(?:base|step(\d+))-p(\d+)-s(\d+)\.png")
BASE = -1
"""In place of a step: without the adapter."""


@dataclass(frozen=True)
class PreviewFile:
    """One picture of the folder."""

    step: int
    """Optimizer steps that the adapter had, or :data:`BASE`."""
    prompt: int
    seed: int

    @property
    def name(self) -> str:
        """``step000200-p0-s1.png``, ``base-p0-s1.png``."""
        row = "base" if self.step == BASE else f"step{self.step:06d}"
        return f"{row}-p{self.prompt}-s{self.seed}.png"


def save_preview(
    folder: Path,
    file: PreviewFile,
    spec: PreviewSpec,
    image: Tensor,
    graph: Mapping[str, str] = NO_TEXTS,
) -> Path:
    """Write or replace one picture.

    Args:
        folder: of the run; pictures lie in ``previews`` below it.
        image: [1, H, W, 3], 0..1.
        graph: texts by which ComfyUI restores the graph that made it.

    Raises:
        AtelierError: the disk is full or the folder cannot be written.
    """
    pixels = (image[0].float().cpu().numpy() * 255).clip(0, 255).astype(np.uint8)  # as SaveImage
    text = header(graph)
    text.add_itxt(KEY, json.dumps({**_shown(spec, file), "step": file.step}, ensure_ascii=False))
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", pnginfo=text, compress_level=4)
    path = folder / FOLDER / file.name
    write_whole(path, content.getvalue())
    return path


def header(texts: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    """Texts of a PNG, each by its name, as SaveImage writes them."""
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    return info


def saved_previews(folder: Path, spec: PreviewSpec) -> Iterator[tuple[PreviewFile, Path]]:
    """What was drawn so far with these prompts and settings, in no order."""
    columns = set(spec.columns)
    for path in (folder / FOLDER).glob("*.png"):
        if not (match := _NAME.fullmatch(path.name)):
            continue
        step, prompt, seed = (BASE if part is None else int(part) for part in match.groups())
        file = PreviewFile(step, prompt, seed)
        if (prompt, seed) in columns and _is_of(path, {**_shown(spec, file), "step": step}):
            yield file, path


def _shown(spec: PreviewSpec, file: PreviewFile) -> dict[str, Any]:
    """All that decides what is to be seen, but for the adapter."""
    return {
        "prompt": spec.prompts[file.prompt],
        "negative": spec.negative,
        "seed": file.seed,
        "width": spec.width,
        "height": spec.height,
        "steps": spec.steps,
        "cfg": spec.cfg,
        "sampler_name": spec.sampler_name,
        "scheduler": spec.scheduler,
        "guidance": spec.guidance,
    }


def _is_of(path: Path, shown: dict[str, Any]) -> bool:
    """Whether a picture is one of these; what cannot be read, or was made elsewhere, is not."""
    try:
        with Image.open(path) as picture:
            return json.loads(picture.info.get(KEY, "null")) == shown
    except (OSError, ValueError):
        return False
