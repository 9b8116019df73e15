"""The nodes of the pack, in the order in which they appear in ComfyUI's menus."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .captions import EditCaptions
from .checkpoints import TrainingCheckpoints
from .dataset import CombineDatasets, DatasetFromImages, LoadImageDataset
from .fit import FitImages
from .monitor_routes import register
from .network import LoRANetwork
from .objective import LossAndNoise
from .optimizer import Optimizer
from .preview import TrainingPreviews
from .prior_preservation import PriorPreservation
from .report import DatasetReport
from .results import LossChart, SaveLoRA
from .save_dataset import SaveDataset
from .scheduler import LRScheduler
from .start_training import StartTraining
from .states import LoadTrainingState, SaveTrainingState
from .train import TrainLoRA
from .train_steps import TrainSteps

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
    TrainingPreviews,
    TrainingCheckpoints,
    TrainLoRA,
    StartTraining,
    TrainSteps,
    SaveTrainingState,
    LoadTrainingState,
    SaveLoRA,
    LossChart,
]


register()


class AtelierExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
