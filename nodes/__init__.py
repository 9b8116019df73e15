"""The nodes of the pack, in the order in which they appear in ComfyUI's menus."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .captions import EditCaptions
from .dataset import CombineDatasets, DatasetFromImages, LoadImageDataset
from .fit import FitImages
from .network import LoRANetwork
from .objective import LossAndNoise, PriorPreservation
from .optimizer import Optimizer
from .report import DatasetReport
from .results import LossChart, SaveLoRA
from .save_dataset import SaveDataset
from .scheduler import LRScheduler
from .train import TrainLoRA

NODES: list[type[io.ComfyNode]] = [
    LoadImageDataset,
    DatasetFromImages,
    FitImages,
    EditCaptions,
    CombineDatasets,
    SaveDataset,
    DatasetReport,
    LoRANetwork,
    Optimizer,
    LRScheduler,
    LossAndNoise,
    PriorPreservation,
    TrainLoRA,
    SaveLoRA,
    LossChart,
]


class AtelierExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
