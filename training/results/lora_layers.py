"""What a LoRA adds to one layer, as numbers: two factors, or the difference itself.

Scales are those of ComfyUI (comfy/weight_adapter): ``alpha / dim``, and 1 where there is no alpha.
Tucker factors (``lora_mid``, ``hada_t1`` …) are LyCORIS' (lycoris/functional).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import AtelierError
from ..network.existing_lora import DOWN, UP
from .lora_parts import MID, VECTORS, Parts

OWN_SCALE = ("hada_w1_a", "lokr_w1", "lokr_w1_a", "diff", *VECTORS)
"""The tensor that carries a factor, in forms that are not LoRA."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """``ΔW = up · down``."""

    up: Tensor
    """[out, rank], float32."""
    down: Tensor
    """[rank, columns], float32; columns = in · kernel."""
    shape: tuple[int, ...] | None
    """[in, *kernel], as the file has it; None = the file does not tell."""

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def dense(self) -> Tensor:
        return self.up @ self.down

    def energy(self) -> float:
        """‖ΔW‖² = ⟨upᵀ up, down downᵀ⟩."""
        return float(((self.up.T @ self.up) * (self.down @ self.down.T)).sum())


@dataclass(frozen=True, eq=False)
class Dense:
    """``ΔW`` as it is."""

    weight: Tensor
    """[out, columns], float32."""
    shape: tuple[int, ...] | None
    """As of :class:`LowRank`."""

    @property
    def rank(self) -> int:
        """At most."""
        return min(self.weight.shape)

    def dense(self) -> Tensor:
        return self.weight

    def energy(self) -> float:
        """‖ΔW‖²."""
        return float(self.weight.square().sum())


@torch.no_grad()
def difference(parts: Parts, device: torch.device) -> LowRank | Dense:
    """``ΔW`` of a layer, in float32 on ``device``; factored where that is fewer numbers."""
    own = {key: value.detach().to(device, torch.float32) for key, value in parts.items()}
    if UP in own:
        return _lora(own)
    if "hada_w1_a" in own:
        return _loha(own)
    if "diff" in own:
        return Dense(own["diff"].flatten(1), tuple(own["diff"].shape[1:]))
    return _lokr(own)


@torch.no_grad()
def scaled(parts: Parts, factor: float) -> dict[str, Tensor]:
    """The same layer ``factor`` times as strong, in its own form."""
    if factor == 1:
        return dict(parts)
    changed = {key: parts[key].float() * factor for key in OWN_SCALE if key in parts}
    if UP in parts:
        root = math.sqrt(abs(factor))  # on both sides, so that fp16 has digits for both
        changed[UP] = parts[UP].float() * math.copysign(root, factor)
        changed[DOWN] = parts[DOWN].float() * root
    return {**parts, **changed}


def _scale(own: Parts, dim: int) -> float:
    return float(own["alpha"]) / dim if "alpha" in own else 1.0


def _lora(own: Parts) -> LowRank | Dense:
    up, down = own[UP].flatten(1), own[DOWN]
    scale = _scale(own, down.shape[0])
    root = math.sqrt(abs(scale))
    up, shape = up * math.copysign(root, scale), tuple(down.shape[1:])
    if MID not in own:
        return LowRank(up, down.flatten(1) * root, shape)
    middle = own[MID]  # [rank, rank, *kernel]
    inner = torch.einsum("ra...,ai->ri...", middle, down.flatten(1))
    return LowRank(up, inner.flatten(1) * root, tuple(inner.shape[1:]))


def _loha(own: Parts) -> LowRank | Dense:
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    a1, b1, a2, b2 = (own[name] for name in names)
    rank, scale = b1.shape[0], _scale(own, b1.shape[0])
    if "hada_t1" in own:
        weight = _tucker(own["hada_t1"], a1, b1) * _tucker(own["hada_t2"], a2, b2) * scale
        return Dense(weight.flatten(1), tuple(weight.shape[1:]))
    rows, columns = a1.shape[0], b1.shape[1]
    if rank * b2.shape[0] * (rows + columns) >= rows * columns:
        return Dense((a1 @ b1) * (a2 @ b2) * scale, None)
    # Row by row and column by column: (a1 b1) ⊙ (a2 b2) = (a1 ⊙ᵣ a2)(b1 ⊙꜀ b2)
    up = (a1[:, :, None] * a2[:, None, :]).flatten(1)
    down = (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    return LowRank(up * scale, down, None)


def _lokr(own: Parts) -> Dense:
    dim = None
    w1, w2 = own.get("lokr_w1"), own.get("lokr_w2")
    if w1 is None:
        w1, dim = own["lokr_w1_a"] @ own["lokr_w1_b"], own["lokr_w1_b"].shape[0]
    if w2 is None:
        a, b = own["lokr_w2_a"], own["lokr_w2_b"]
        w2 = _tucker(own["lokr_t2"], a, b) if "lokr_t2" in own else a @ b
        dim = b.shape[0]
    kernel = tuple(w2.shape[2:])
    weight = torch.kron(w1.view(*w1.shape, *[1] * len(kernel)), w2.contiguous())
    weight = weight * (1.0 if dim is None else _scale(own, dim))
    return Dense(weight.flatten(1), tuple(weight.shape[1:]) if kernel else None)


def _tucker(core: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """[rank, rank, *kernel], [rank, out], [rank, in] -> [out, in, *kernel]."""
    return torch.einsum("ij...,jr,ip->pr...", core, b, a)


def weight_rows(part: LowRank | Dense) -> tuple[int, int]:
    """(out, columns) of ``ΔW``."""
    if isinstance(part, Dense):
        return (part.weight.shape[0], part.weight.shape[1])
    return (part.up.shape[0], part.down.shape[1])


def require_same_size(stem: str, found: Mapping[str, LowRank | Dense]) -> None:
    """Refuse LoRAs of different base models.

    Args:
        found: LoRA -> what it adds to the layer.

    Raises:
        AtelierError: names two of them.
    """
    sizes = {name: weight_rows(part) for name, part in found.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {rows} × {columns}" for name, (rows, columns) in sizes.items())
        raise AtelierError(
            f"{stem} has another size in each LoRA ({told}): they were made for different models. "
            "Merge only LoRAs of one family."
        )
