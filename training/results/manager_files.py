"""Files beside a LoRA in which programs that show LoRAs look: a picture and a JSON.

``<name>.preview.png`` is read by A1111/Forge, by most LoRA managers and by ComfyUI's own model
browser; ``<name>.json`` is A1111's "user metadata" (extensions-builtin/Lora/ui_edit_user_metadata),
which managers import as well. ``<name>.civitai.info`` is what Civitai's API says of a version of a
model; LoRA Manager, which has no other import, and several others read it. None is touched again,
and all may be deleted.
"""

from __future__ import annotations

import base64
import html
import json
from io import BytesIO
from pathlib import Path

from PIL import Image

from ..files import write_whole
from .safetensors_hashes import sha256_of_file

THUMBNAIL_SIZE = 256
"""Longer side of the picture within the file, px: ModelSpec wants it below 256 KiB."""
PREVIEW_SIZE = 768
"""Longer side of the picture beside the file, px."""

A1111_VERSIONS = (
    # Beginning of ss_base_model_version -> "sd version" of A1111.
    ("sdxl", "SDXL"),
    ("sd_v2", "SD2"),
    ("sd_v1", "SD1"),
)


CIVITAI_BASES = (
    # Beginning of ss_base_model_version -> Civitai's name for it.
    ("sdxl", "SDXL 1.0"),
    ("sd_v1", "SD 1.5"),
    ("sd_v2", "SD 2.1"),  # 2.0 cannot be told from it
    ("sd3", "SD 3"),
    ("flux1", "Flux.1 D"),
    ("flux2", "Flux.2 D"),
    ("chroma", "Chroma"),
    ("lumina2", "Lumina"),
    ("zimage", "ZImageTurbo"),
    ("qwenimage", "Qwen"),
    ("auraflow", "AuraFlow"),
    ("ltxv", "LTXV"),
    ("wan", "Wan Video"),
)


def thumbnail(picture: Image.Image) -> str:
    """A small JPEG as a data URL, for ``modelspec.thumbnail``."""
    buffer = BytesIO()
    _fitted(picture, THUMBNAIL_SIZE).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def write_preview(lora: Path, picture: Image.Image) -> Path:
    """Put the picture beside the LoRA file.

    Raises:
        AtelierError: it could not be written.
    """
    buffer = BytesIO()
    _fitted(picture, PREVIEW_SIZE).save(buffer, "PNG")
    path = lora.with_name(f"{lora.stem}.preview.png")
    write_whole(path, buffer.getvalue())
    return path


def write_a1111_json(lora: Path, metadata: dict[str, str]) -> Path:
    """Put A1111's JSON beside the LoRA file.

    Raises:
        AtelierError: it could not be written.
    """
    version = metadata.get("ss_base_model_version", "")
    card = {
        "description": metadata.get("modelspec.description", ""),
        "sd version": next((a for v, a in A1111_VERSIONS if version.startswith(v)), "Unknown"),
        "activation text": metadata.get("modelspec.trigger_phrase", ""),
        "preferred weight": 0,  # A1111's word for its own default
        "notes": _notes(metadata),
    }
    path = lora.with_suffix(".json")
    write_whole(path, json.dumps(card, ensure_ascii=False, indent=2).encode())
    return path


def write_civitai_info(lora: Path, metadata: dict[str, str]) -> Path:
    """Put what LoRA Manager imports beside the LoRA file.

    It holds no ids, since the LoRA has no page on Civitai.

    Raises:
        AtelierError: it could not be written.
    """
    title = metadata.get("modelspec.title", "") or lora.stem
    description = html.escape(metadata.get("modelspec.description", ""))  # shown as HTML
    file = {
        "name": lora.name,
        "type": "Model",
        "primary": True,
        "sizeKB": lora.stat().st_size / 1024,
        "hashes": {"SHA256": sha256_of_file(lora).upper()},
    }
    card = {
        "name": lora.stem,
        "baseModel": _civitai_base(metadata),
        "trainedWords": _listed(metadata.get("modelspec.trigger_phrase", "")),
        "description": description,
        "model": {
            "name": title,
            "type": "LORA",
            "description": description,
            "tags": _listed(metadata.get("modelspec.tags", "")),
        },
        "files": [file],
        "images": [],
    }
    path = lora.with_name(f"{lora.stem}.civitai.info")
    write_whole(path, json.dumps(card, ensure_ascii=False, indent=2).encode())
    return path


def _civitai_base(metadata: dict[str, str]) -> str:
    if metadata.get("modelspec.architecture", "").startswith("flux-1-schnell"):
        return "Flux.1 S"
    version = metadata.get("ss_base_model_version", "")
    return next((name for start, name in CIVITAI_BASES if version.startswith(start)), "Other")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _notes(metadata: dict[str, str]) -> str:
    names = {
        "Title": "modelspec.title",
        "Author": "modelspec.author",
        "Licence": "modelspec.license",
        "Pictures": "atelier.dataset_source",
        "Licence of the pictures": "atelier.dataset_license",
        "Base model": "ss_sd_model_name",
    }
    return "\n".join(f"{name}: {metadata[key]}" for name, key in names.items() if key in metadata)


def _fitted(picture: Image.Image, longest: int) -> Image.Image:
    small = picture.convert("RGB")
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return small
