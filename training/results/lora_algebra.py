"""Sums of LoRAs, and LoRAs of a lower rank.

``ΔW = Σ wᵢ ΔWᵢ`` is exact when the factors are put side by side: ``up = [u₁ u₂]``,
``down = [d₁; d₂]``, of rank ``r₁ + r₂``. The best approximation of a lower rank is the truncated
singular value decomposition (Eckart & Young 1936). With ``up = Qᵤ Rᵤ`` and ``downᵀ = Q_d R_d`` the
singular values of ``up · down`` are those of the small ``Rᵤ R_dᵀ``, so ``ΔW`` is never built.

What is written has ``alpha = rank``, a scale of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import require
from ..network.existing_lora import DOWN, UP
from .lora_layers import (
    Dense,
    LowRank,
    difference,
    require_same_size,
    scaled,
    weight_rows,
)
from .lora_parts import VECTORS, Parts, has_weight, layers_of, require_difference
from .lora_resize import DynamicMethod, Resize, chosen_rank

Layers = Mapping[str, Parts]


@dataclass(frozen=True)
class ResizedLayer:
    """What became of a layer."""

    stem: str
    rank_before: int
    """Ranks put side by side."""
    rank: int
    """0 = a full difference, a bias or a norm."""
    energy: float
    """‖ΔW‖² of the exact sum."""
    lost: float
    """‖ΔW - ΔW'‖² of what was written."""

    @property
    def kept(self) -> float:
        """Share of ‖ΔW‖ that is left, 0..1."""
        return math.sqrt(max(0.0, 1 - self.lost / self.energy)) if self.energy > 0 else 1.0


@dataclass(frozen=True, eq=False)
class WeightedLora:
    """One of those that are added up."""

    name: str
    layers: Layers
    weight: float


@dataclass(frozen=True, eq=False)
class Merged:
    """The sum."""

    tensors: dict[str, Tensor]
    layers: tuple[ResizedLayer, ...]


def weighted_lora(name: str, lora: Mapping[str, Tensor], weight: float) -> WeightedLora:
    """A LoRA by its layers.

    Raises:
        AtelierError: there are keys that nobody knows, or numbers that are not finite.
    """
    return WeightedLora(name, layers_of(lora, name), weight)


@torch.no_grad()
def merge(
    loras: Sequence[WeightedLora],
    resize: Resize,
    device: torch.device,
    shapes: Mapping[str, Sequence[int]] | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Merged:
    """The weighted sum of LoRAs whose layers have the same names, in ranks as ``resize`` wants.

    Args:
        device: where it is computed, layer by layer.
        shapes: layer -> [out, in, *kernel] of its weight in the model, where that is known.
        tick: called after every layer.

    Raises:
        AtelierError: a layer is no plain difference, or of different sizes.
    """
    tensors, reports = {}, []
    for stem in dict.fromkeys(stem for lora in loras for stem in lora.layers):
        found = {
            lora.name: (lora.layers[stem], lora.weight) for lora in loras if stem in lora.layers
        }
        parts, report = _merged_layer(stem, found, resize, device, (shapes or {}).get(stem))
        tensors |= {f"{stem}.{own}": value.contiguous().cpu() for own, value in parts.items()}
        reports.append(report)
        tick()
    return Merged(tensors, tuple(reports))


def _merged_layer(
    stem: str,
    found: Mapping[str, tuple[Parts, float]],
    resize: Resize,
    device: torch.device,
    shape: Sequence[int] | None,
) -> tuple[dict[str, Tensor], ResizedLayer]:
    for name, (parts, _) in found.items():
        require_difference(stem, parts, name)
    written = _added_vectors(list(found.values()))
    with_weight = {n: (parts, w) for n, (parts, w) in found.items() if has_weight(parts)}
    if not with_weight:
        return written, ResizedLayer(stem, 0, 0, 0.0, 0.0)
    deltas = {name: difference(parts, device) for name, (parts, _) in with_weight.items()}
    require_same_size(stem, deltas)
    weights = [weight for _, weight in with_weight.values()]
    total = _total([_times(d, w) for d, w in zip(deltas.values(), weights, strict=True)])
    inner = _inner_shape(total, shape)
    most = resize.most(math.prod(inner[1:]) > 1)
    fits = isinstance(total, LowRank) and total.rank <= most
    if resize.method is DynamicMethod.NONE and (most == 0 or fits):
        parts, weight = next(iter(with_weight.values()))
        if len(with_weight) == 1 and (most == 0 or UP in parts):
            kept = {own: value for own, value in parts.items() if own not in VECTORS}
            written |= scaled(kept, weight)
        elif isinstance(total, LowRank):
            written |= _as_parts(total.up, total.down, inner)
        else:
            _require_shape(stem, total, shape)
            written["diff"] = total.weight.view(-1, *inner)
        rank = total.rank if isinstance(total, LowRank) else 0
        return written, ResizedLayer(stem, total.rank, rank, total.energy(), 0.0)
    up, values, down = decomposed(total)
    rank = chosen_rank(values, resize, most)
    root = values[:rank].sqrt()
    written |= _as_parts(up[:, :rank] * root, root[:, None] * down[:rank], inner)
    energy, lost = float(values.square().sum()), float(values[rank:].square().sum())
    return written, ResizedLayer(stem, total.rank, rank, energy, lost)


def decomposed(total: LowRank | Dense) -> tuple[Tensor, Tensor, Tensor]:
    """[out, n], [n] falling, [n, columns] with ``ΔW = U diag(S) V``."""
    if isinstance(total, Dense) or total.rank >= min(weight_rows(total)):
        return torch.linalg.svd(total.dense(), full_matrices=False)
    q_up, r_up = torch.linalg.qr(total.up)
    q_down, r_down = torch.linalg.qr(total.down.T)
    up, values, down = torch.linalg.svd(r_up @ r_down.T)
    return q_up @ up, values, down @ q_down.T


def _added_vectors(found: Sequence[tuple[Parts, float]]) -> dict[str, Tensor]:
    """Biases and norms, and differences of one dimension."""
    added: dict[str, Tensor] = {}
    for parts, weight in found:
        for own in (*VECTORS, "diff"):
            if own in parts and (own in VECTORS or parts[own].ndim < 2):
                value = parts[own].float().cpu() * weight
                added[own] = added[own] + value if own in added else value
    return added


def _times(part: LowRank | Dense, weight: float) -> LowRank | Dense:
    if isinstance(part, Dense):
        return Dense(part.weight * weight, part.shape)
    root = math.sqrt(abs(weight))
    return LowRank(part.up * math.copysign(root, weight), part.down * root, part.shape)


def _total(parts: Sequence[LowRank | Dense]) -> LowRank | Dense:
    """The sum, with the factors side by side where all have some."""
    shapes = [part.shape for part in parts if part.shape is not None]
    shape = max(shapes, key=len, default=None)
    factored = [part for part in parts if isinstance(part, LowRank)]
    if len(factored) < len(parts):
        return Dense(sum((part.dense() for part in parts[1:]), parts[0].dense()), shape)
    up = torch.cat([part.up for part in factored], dim=1)
    return LowRank(up, torch.cat([part.down for part in factored]), shape)


def _inner_shape(total: LowRank | Dense, shape: Sequence[int] | None) -> tuple[int, ...]:
    """[in, *kernel] of the layer, as well as it is known."""
    columns = weight_rows(total)[1]
    if shape is not None and math.prod(shape[1:]) == columns:
        return tuple(shape[1:])
    return total.shape or (columns,)


def _require_shape(stem: str, total: Dense, shape: Sequence[int] | None) -> None:
    require(
        shape is not None or total.shape is not None,
        f"{stem}: LoHa and LoKr do not say how large the kernel of a layer is, which the sum has "
        "to. Wire model (and clip), or set network_dim.",
    )


def _as_parts(up: Tensor, down: Tensor, inner: Sequence[int]) -> dict[str, Tensor]:
    """A LoRA of scale 1; ``up`` of a convolution is 1×1."""
    rank = down.shape[0]
    return {
        UP: up.reshape(-1, rank, *[1] * (len(inner) - 1)),
        DOWN: down.reshape(rank, *inner),
        "alpha": torch.tensor(float(rank)),
    }
