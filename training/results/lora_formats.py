"""Spellings of a LoRA file: how each names what belongs to a layer, and what it can hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import AtelierError, require
from ..network.existing_lora import DOWN, UP, Rows, joined, split_key

UNSCALED = ("diff_b", "set_weight", "w_norm", "b_norm")
"""What else ComfyUI reads of a layer, and its own training node writes (``diff_b``)."""
LYCORIS = (
    *("lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2", "lokr_w1_a", "lokr_w1_b", "rescale"),
    *("a1.weight", "a2.weight", "b1.weight", "b2.weight"),  # GLoRA
)
"""What ComfyUI reads of a layer, and this pack does not train."""


class KeyFormat(str, Enum):
    """Whose names the keys of a file are."""

    KOHYA = "kohya"
    """``lora_unet_…``, ``lora_te…``: everybody reads them."""
    COMFYUI = "comfyui"
    """``diffusion_model.…``, ``text_encoders.…``: paths in ComfyUI's own modules."""
    DIFFUSERS = "diffusers"
    """``unet.…`` or ``transformer.…``, ``text_encoder….``: paths in diffusers' modules."""


class Piece(NamedTuple):
    """A layer of diffusers, which may be a part of one here."""

    name: str
    rows: Rows | None = None
    """Rows of the layer here that it is; None = all of them."""
    reorder: Callable[[Tensor], Tensor] | None = None
    """Rows in diffusers' order -> in the order here; its own inverse."""


def key_parts(key: str) -> tuple[str, str]:
    """(layer as the file names it, what the tensor is of it); ("", "") for an unknown ending."""
    stem, own = split_key(key)
    if own:
        return stem, own
    found = next((own for own in (*UNSCALED, *LYCORIS) if key.endswith(f".{own}")), "")
    stem = key.removesuffix(f".{found}") if found else ""
    return (stem, found) if stem else ("", "")


def format_of(stem: str) -> KeyFormat:
    """The spelling in which a layer is named."""
    if stem.startswith("lora_"):
        return KeyFormat.KOHYA
    if stem.startswith(("diffusion_model.", "text_encoders.")):
        return KeyFormat.COMFYUI
    return KeyFormat.DIFFUSERS


def for_diffusers(parts: Mapping[str, Tensor], pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """Keys and tensors of one layer as diffusers reads them: ``W + up · down``, without alpha.

    The scale ``alpha / dim`` goes into ``down``, whose numbers are the larger ones, so that fp16
    has digits for both. Where diffusers cuts a layer up, each piece gets rows of ``up``, and the
    whole of ``down``.

    Args:
        parts: what a file holds for the layer, by the adapter's own names.
        pieces: the layer in diffusers.

    Raises:
        AtelierError: it is no plain LoRA.
    """
    others = parts.keys() - {DOWN, UP, "alpha"}
    if others or not {DOWN, UP} <= parts.keys():
        raise AtelierError(
            f'key_format is "diffusers": {pieces[0].name} holds {", ".join(sorted(parts))}, but '
            "diffusers reads plain LoRA alone. Choose kohya or comfyui."
        )
    down, up = parts[DOWN].float(), parts[UP].float()
    alpha = float(parts.get("alpha", down.shape[0]))
    down = down * (alpha / down.shape[0])
    named = {}
    for piece in pieces:
        rows = up if piece.rows is None else up[piece.rows[0] : sum(piece.rows)]
        rows = rows if piece.reorder is None else piece.reorder(rows)
        down_key, up_key = _diffusers_endings(piece.name)
        named[down_key] = down.clone()  # a file holds no tensor twice
        named[up_key] = rows.contiguous()
    return named


def put_together(
    path: str, found: Sequence[tuple[Piece, Mapping[str, Tensor]]], width: int
) -> Mapping[str, Tensor]:
    """What a file holds for a layer whose pieces it may have apart; the layer stays the same.

    Args:
        width: rows of the layer's weight.

    Raises:
        AtelierError: the file holds it twice, or a piece is no plain LoRA.
    """
    if len(found) == 1 and found[0][0].rows is None and found[0][0].reorder is None:
        parts = found[0][1]
        return {"alpha": _alpha(parts), **parts} if {DOWN, UP} <= parts.keys() else parts
    whole = [piece for piece, _ in found if piece.rows is None]
    require(not whole or len(found) == 1, f"The LoRA holds the layer {path} more than once.")
    pieces = []
    for piece, parts in found:
        require(
            parts.keys() | {"alpha"} == {DOWN, UP, "alpha"},
            f"The LoRA holds a piece of the layer {path} that is no plain LoRA.",
        )
        up = parts[UP] if piece.reorder is None else piece.reorder(parts[UP])
        own = {DOWN: parts[DOWN], UP: up, "alpha": _alpha(parts)}
        pieces.append((piece.rows or (0, width), own))
    first = pieces[0][1]
    shared = all(
        torch.equal(parts[DOWN], first[DOWN]) and torch.equal(parts["alpha"], first["alpha"])
        for _, parts in pieces
    )
    if not shared:
        return joined(pieces, width)
    up = torch.zeros(width, *first[UP].shape[1:], dtype=first[UP].dtype)
    for rows, parts in pieces:
        up[rows[0] : sum(rows)] = parts[UP]
    return {DOWN: first[DOWN], UP: up, "alpha": first["alpha"]}


def require_whole(path: str, pieces: Sequence[Piece], width: int) -> None:
    """Refuse pieces that are less than the layer, or more.

    Args:
        width: rows of the layer's weight.

    Raises:
        AtelierError: diffusers has not all of the layer.
    """
    rows = sorted(piece.rows or (0, width) for piece in pieces)
    ends = [0, *(start + count for start, count in rows)]
    require(
        [start for start, _ in rows] == ends[:-1] and ends[-1] == width,
        f'key_format is "diffusers", but diffusers has no layer for {path}. Choose kohya or '
        "comfyui, or leave it out of the training with target_modules.",
    )


def _alpha(parts: Mapping[str, Tensor]) -> Tensor:
    """A file without one means a scale of 1."""
    return parts.get("alpha", torch.tensor(float(parts[DOWN].shape[0])))


def _diffusers_endings(name: str) -> tuple[str, str]:
    """Keys of down and up.

    diffusers reads several spellings. Those of ``lora_A`` are the usual ones; of a UNet's attention
    ComfyUI knows the older one alone (``….processor.to_q_lora.down.weight``).
    """
    if ".processor.to_" in name:
        return f"{name}_lora.down.weight", f"{name}_lora.up.weight"
    if name.startswith("unet."):
        return f"{name}.lora.down.weight", f"{name}.lora.up.weight"
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight"
