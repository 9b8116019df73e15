"""What a person is told of the memory that a run will need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .estimate import MemoryEstimate

if TYPE_CHECKING:
    from ..runs.run import TrainingSpec

MB, GB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Room:
    """The memory of a device, in bytes."""

    free: int
    """What a run may take, together with what the base model takes there already."""
    total: int
    offloads: bool
    """Whether weights that do not fit can be kept elsewhere: on a GPU, not on the CPU."""


def memory_line(estimate: MemoryEstimate, room: Room) -> str:
    """``memory: 9.8 GB = base 4.8 + adapters 0.3 + activations 4.2 + workspace 0.5 (free: 11.9 of
    12.0 GB)``."""
    unit, name = (GB, "GB") if estimate.total >= GB / 2 else (MB, "MB")
    parts = {"base": estimate.base, "text encoder": estimate.text_encoder}
    parts["adapters"] = estimate.adapters
    if estimate.activations is not None:
        parts["activations"] = estimate.activations
    parts["workspace"] = estimate.workspace
    least = "at least " if estimate.activations is None else ""
    terms = [
        f"{part} {size / unit:.1f}"
        for part, size in parts.items()
        if size or part not in ("text encoder", "workspace")
    ]
    line = (
        f"memory: {least}{estimate.total / unit:.1f} {name} = {' + '.join(terms)} "
        f"(free: {room.free / GB:.1f} of {room.total / GB:.1f} GB)"
    )
    return line + ("; activations: not estimated for this model" if least else "")


def memory_advice(estimate: MemoryEstimate, room: Room, spec: TrainingSpec) -> list[str]:
    """What to do when it will not fit; empty when it will."""
    if estimate.total <= room.free:
        return []
    needed = estimate.text_encoder + estimate.beside_weights
    if room.offloads and needed <= room.free:
        outside = (estimate.total - room.free) / GB
        return [
            f"The base does not fit into the memory that is left: about {outside:.1f} GB of it "
            "stays in RAM and is brought layer by layer, which is slower. "
            f"{_ways(estimate, spec)} may avoid that."
        ]
    return [
        "This run needs more memory than there is and will probably fail. Try "
        f"{_ways(estimate, spec)}."
    ]


def _ways(estimate: MemoryEstimate, spec: TrainingSpec) -> str:
    """What helps, the most helpful first."""
    ways = []
    if not spec.gradient_checkpointing:
        ways.append("gradient_checkpointing")
    if spec.train_batch_size > 1:
        ways.append(f"a train_batch_size of less than {spec.train_batch_size}")
    if estimate.adapters > (estimate.activations or 0):
        ways.insert(0, "a lower network_dim or an 8-bit optimizer")
    ways.append("a smaller resolution")
    ways.append("a base stored in fp8")
    return ", ".join(ways[:-1]) + f" or {ways[-1]}"
