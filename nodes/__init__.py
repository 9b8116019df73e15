"""The nodes of the pack, in the order in which they appear in ComfyUI's menus."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .config import LoRANetwork, LRScheduler, Optimizer
from .dataset import LoadImageDataset
from .results import LossChart, SaveLoRA
from .train import TrainLoRA

NODES: list[type[io.ComfyNode]] = [
    LoadImageDataset,
    LoRANetwork,
    Optimizer,
    LRScheduler,
    TrainLoRA,
    SaveLoRA,
    LossChart,
]


class AtelierExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
