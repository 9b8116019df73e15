"""What a run will need, against what its device has."""

from __future__ import annotations

import comfy.model_management as mm
import torch

from ..memory.text import Room, memory_advice, memory_line
from ..runs.run import TrainingState


def describe_memory(state: TrainingState) -> tuple[str, list[str]]:
    """(the line with the parts, advice where it will not fit)."""
    run = state.run
    room = room_on(run.model.device, run.memory.base)
    return memory_line(run.memory, room), memory_advice(run.memory, room, run.spec)


def room_on(device: torch.device, base: int) -> Room:
    """What training may take of a device.

    Args:
        base: bytes of the model's weights. In RAM they lie already; a GPU is cleared of all models
            before training, the host's own reserve stays.
    """
    free = mm.get_free_memory(device)
    if mm.is_device_cpu(device):
        free += base
    else:
        loaded = [m for m in mm.current_loaded_models if m.device == device and m.model is not None]
        free += sum(m.model_loaded_memory() for m in loaded) - mm.extra_reserved_memory()
    return Room(int(free), int(mm.get_total_memory(device)), not mm.is_device_cpu(device))
