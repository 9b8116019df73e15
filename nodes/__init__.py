"""The nodes of the pack, in the order in which they appear in ComfyUI's menus."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from comfy_api.latest import ComfyExtension, io

from ..training.errors import missing_packages
from .config.checkpoints import TrainingCheckpoints
from .config.network import LoRANetwork
from .config.objective import LossAndNoise
from .config.optimizer import Optimizer
from .config.preview import TrainingPreviews
from .config.prior_preservation import PriorPreservation
from .config.scheduler import LRScheduler
from .dataset.auto_tag import AutoTag
from .dataset.caption_images import CaptionImages
from .dataset.captions import EditCaptions
from .dataset.curate import CurateDataset
from .dataset.dataset import CombineDatasets, DatasetFromImages, LoadImageDataset
from .dataset.fit import FitImages
from .dataset.model_folders import register_model_folders
from .dataset.report import DatasetReport
from .dataset.save_dataset import SaveDataset
from .gallery.gallery_routes import register as register_galleries
from .generate.generate import GenerateDataset
from .generate.prompt_matrix import PromptMatrixNode
from .guide.guide_routes import register as register_guide
from .live.monitor_routes import register
from .results.apply_lora import ApplyTrainedLoRA
from .results.compare_grid import CompareGrid
from .results.evaluate import EvaluateLoRA
from .results.load_lora import LoadLoRAFile
from .results.loss_chart import LossChart
from .results.merge_loras import MergeLoRAs
from .results.save_lora import SaveLoRA
from .train.jobs import ExportTrainingJob, LoadTrainingJob
from .train.start_training import StartTraining
from .train.states import LoadTrainingState, SaveTrainingState
from .train.train import TrainLoRA
from .train.train_steps import TrainSteps

NODES: list[type[io.ComfyNode]] = [
    PromptMatrixNode,
    GenerateDataset,
    LoadImageDataset,
    DatasetFromImages,
    FitImages,
    AutoTag,
    CaptionImages,
    EditCaptions,
    CurateDataset,
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
    ExportTrainingJob,
    LoadTrainingJob,
    LoadLoRAFile,
    MergeLoRAs,
    ApplyTrainedLoRA,
    SaveLoRA,
    CompareGrid,
    EvaluateLoRA,
    LossChart,
]


def _tell_of_missing_packages() -> None:
    """In the terminal, since the nodes load without them and are refused only when they run."""
    missing = missing_packages()
    if missing:
        requirements = Path(__file__).resolve().parents[1] / "requirements.txt"
        logging.getLogger("lora_atelier").warning(
            "lora-atelier: %s not installed, so training will be refused. Run this and restart "
            'ComfyUI: "%s" -m pip install -r "%s"',
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'}",
            sys.executable,
            requirements,
        )


_tell_of_missing_packages()
register()
register_galleries()
register_guide()
register_model_folders()


class AtelierExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
