"""A LoRA to continue from, in whatever spelling: kohya, ComfyUI, diffusers, peft.

Which of its names means which layer, is for the host to say (:mod:`training.host.lora_keys`); here
is what can be said of the names' ends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import require

DOWN, UP = "lora_down.weight", "lora_up.weight"
SPELLINGS = {
    # What ends the name of a layer in a file -> the adapter's own name for it. Longer ones first.
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    "_lora.down.weight": DOWN,
    "_lora.up.weight": UP,
    ".lora_A": DOWN,
    ".lora_B": UP,
}
OWN_NAMES = (
    *("alpha", "dora_scale", "diff", "oft_blocks"),
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    *("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
)
Rows = tuple[int, int]
"""First row and number of rows of a layer's weight."""
TEXT_ENCODERS = (
    *("lora_te", "text_encoder", "base_model.model.text_encoder"),
    *("lora_prior_te", "clip_l.", "clip_g.", "t5xxl."),
)
"""How the names of a text encoder's layers begin in LoRA files."""


@dataclass(frozen=True)
class Size:
    """Of one adapter."""

    dim: int
    """Rank, or side of a block for rotations; 0 = no adapter."""
    alpha: float
    """As the file holds it: the update is scaled by ``alpha / dim``."""


@dataclass(frozen=True, eq=False)
class ExistingLora:
    """A LoRA file, or a LORA_MODEL of the graph."""

    tensors: Mapping[str, Tensor]
    name: str
    """What to call it when something is wrong with it."""

    def layers(self, text_encoders: bool = False) -> dict[str, dict[str, Tensor]]:
        """Layer as the file names it -> the adapter's own names -> float32 tensors.

        Args:
            text_encoders: those of text encoders instead of those of the diffusion model.

        Raises:
            AtelierError: there are keys of which nobody knows what they mean.
        """
        found: dict[str, dict[str, Tensor]] = defaultdict(dict)
        unknown = []
        for key, value in self.tensors.items():
            if of_text_encoder(key) is not text_encoders:
                continue
            stem, own = split_key(key)
            if own:
                found[stem][own] = value.detach().float().cpu().clone()
            else:
                unknown.append(key)
        require(
            not unknown,
            f'existing LoRA "{self.name}": {len(unknown)} of its keys cannot be continued: '
            f"{', '.join(unknown[:3])}.",
        )
        return {layer: _completed(parts) for layer, parts in found.items()}

    @property
    def text_encoder_keys(self) -> int:
        """How many of its keys belong to a text encoder."""
        return sum(of_text_encoder(key) for key in self.tensors)


def of_text_encoder(key: str) -> bool:
    """True for the name of a text encoder's layer, or of a part of it, in a LoRA file."""
    return key.startswith(TEXT_ENCODERS)


def split_key(key: str) -> tuple[str, str]:
    """(layer as the file names it, the adapter's own name); ("", "") for an unknown ending."""
    for ending, own in SPELLINGS.items():
        if key.endswith(ending):
            return key[: -len(ending)], own
    stem, _, last = key.rpartition(".")
    return (stem, last) if stem and last in OWN_NAMES else ("", "")


def size_in_file(parts: Mapping[str, Tensor]) -> Size:
    """Rank (or block size) and alpha of one layer of a file."""
    alpha = float(parts["alpha"]) if "alpha" in parts else 1.0
    for key, axis in (("lora_down.weight", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0)):
        if key in parts:
            return Size(parts[key].shape[axis], alpha)
    if "lokr_w2" in parts:  # any rank that is no saving stands for the full matrix
        return Size(max(parts["lokr_w2"].shape), alpha)
    return Size(parts["oft_blocks"].shape[-1] if "oft_blocks" in parts else 1, alpha)


def joined(parts: Sequence[tuple[Rows, Mapping[str, Tensor]]], width: int) -> dict[str, Tensor]:
    """The LoRA of a whole layer from LoRAs of some of its rows, as diffusers cuts up fused layers
    (to_q, to_k, to_v); their ranks add up, and the layer stays exactly the same.

    Args:
        parts: (first row, number of rows) and what the file holds for them.
        width: rows of the layer.
    """
    sizes = [size_in_file(part) for _, part in parts]
    scale = sizes[0].alpha / sizes[0].dim or 1.0
    ups = []
    for (rows, part), size in zip(parts, sizes, strict=True):
        up = torch.zeros(width, size.dim)
        up[rows[0] : rows[0] + rows[1]] = part[UP].flatten(1) * (size.alpha / size.dim / scale)
        ups.append(up)
    return {
        DOWN: torch.cat([part[DOWN].flatten(1) for _, part in parts]),
        UP: torch.cat(ups, dim=1),
        "alpha": torch.tensor(scale * sum(size.dim for size in sizes)),
    }


def _completed(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the alpha that a file without one means, which is a scale of 1."""
    if "oft_blocks" in parts:
        return _without_constraint(parts)
    if "diff" in parts or "alpha" in parts:
        return parts
    return parts | {"alpha": torch.tensor(float(size_in_file(parts).dim))}


def _without_constraint(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """For rotations ``alpha`` is a limit on the angle, which this pack's have not (0 = none)."""
    require(
        float(parts.get("alpha", 0.0)) == 0,
        "existing LoRA: it holds OFT or BOFT rotations with a constraint, which cannot be "
        "continued. Continue one that was trained without.",
    )
    if parts["oft_blocks"].ndim == 4:
        return parts | {"alpha": torch.tensor(0.0)}
    return {"oft_blocks": parts["oft_blocks"]}
