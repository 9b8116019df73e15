"""A LoRA file read back, with what it says of itself."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import AtelierError, require
from .lora_file import TrainedLora
from .lora_formats import key_parts

PLAIN_FORMATS = (".safetensors", ".sft")
"""Endings of files that hold numbers alone. Others can hold a program, which runs on loading."""


def read_lora(path: Path, name: str) -> TrainedLora:
    """The tensors as they are in the file, and its metadata.

    The tensors are copies: whatever becomes of the file, what is on the wire stays.

    Args:
        name: what to call the file when something is wrong with it.

    Raises:
        AtelierError: it is damaged, or no LoRA.
    """
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            _require_lora(keys, name)
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key).clone() for key in keys}
    except (OSError, SafetensorError) as error:
        raise AtelierError(
            f'lora_file: "{name}" cannot be read: {error}. It is damaged, or not whole yet.'
        ) from error
    metadata.pop("format", None)  # of the file, not of the LoRA
    return TrainedLora(tensors, metadata)


def _require_lora(keys: list[str], name: str) -> None:
    """Before gigabytes are read."""
    require(bool(keys), f'lora_file: "{name}" is empty.')
    require(
        any(key_parts(key)[1] for key in keys),
        f'lora_file: "{name}" is no LoRA: it holds tensors such as {keys[0]}. Whole models belong '
        "to the loaders of ComfyUI.",
    )
