"""The LoRA file: kohya keys, safetensors, metadata, written whole or not at all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..dataset.samples import ImageDataset, Role
from ..errors import require
from ..files import write_whole
from ..network.metadata import network_metadata
from ..objective.metadata import objective_metadata
from ..runs.run import TrainingSpec, TrainingState


class SavePrecision(str, Enum):
    """Number format of the saved file."""

    FP16 = "fp16"
    BF16 = "bf16"
    FLOAT = "float"


_DTYPES = {
    SavePrecision.FP16: torch.float16,
    SavePrecision.BF16: torch.bfloat16,
    SavePrecision.FLOAT: torch.float32,
}


class TrainedLora(dict[str, Tensor]):
    """ComfyUI's LORA_MODEL (key -> tensor) that remembers how it was trained.

    Core nodes read it as the plain dict it is; Save LoRA writes ``metadata`` into the file.
    """

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        super().__init__(tensors)
        self.metadata = dict(metadata)


def trained_lora(state: TrainingState) -> TrainedLora:
    """The adapters of ``state`` with the metadata other programs look for."""
    return TrainedLora(state.network, lora_metadata(state))


def lora_metadata(state: TrainingState) -> dict[str, str]:
    """``ss_*`` as kohya-ss/sd-scripts writes them (train_network.py), every value a string."""
    spec, dataset = state.run.spec, state.run.dataset
    precision = spec.adapter_precision
    values = {
        **network_metadata(spec.network, state.network),
        "ss_optimizer": spec.optimizer.written,
        **rates_metadata(spec),
        "ss_max_grad_norm": spec.optimizer.max_grad_norm,
        "ss_lr_scheduler": spec.lr_scheduler.lr_scheduler.value,
        "ss_lr_warmup_steps": spec.lr_scheduler.warmup_steps(spec.max_train_steps, spec.samples),
        **objective_metadata(spec.objective, state.run.model.schedule),
        "ss_mixed_precision": spec.mixed_precision.value,
        "ss_batch_size_per_device": spec.train_batch_size,
        "ss_gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "ss_gradient_checkpointing": spec.gradient_checkpointing,
        "ss_max_train_steps": spec.max_train_steps,
        "ss_steps": state.step,
        "ss_seed": spec.seed,
        "ss_num_train_images": dataset.images_per_epoch,
        "ss_num_batches_per_epoch": state.run.plan.batches_per_epoch,
        "ss_resolution": _resolutions(dataset),
        "ss_tag_frequency": json.dumps({dataset.name: tag_frequency(state)}, ensure_ascii=False),
        "ss_training_finished_at": datetime.now(timezone.utc).timestamp(),
        "atelier.adapter_precision": precision.value if precision.is_narrow else "",
        "atelier.dataset_source": dataset.sources,
        "atelier.dataset_license": dataset.licenses,
    }
    return {key: str(value) for key, value in values.items() if value != ""}


def rates_metadata(spec: TrainingSpec) -> dict[str, object]:
    """Learning rates of the parts that are trained; "" for those that are not."""
    network, optimizer = spec.network, spec.optimizer
    return {
        "ss_unet_lr": optimizer.unet_lr if network.trains_diffusion_model else "",
        "ss_text_encoder_lr": optimizer.text_encoder_lr if network.trains_text_encoders else "",
    }


def tag_frequency(state: TrainingState) -> dict[str, int]:
    """Tag -> how many pictures of one epoch carry it; what LoRA managers show."""
    count: Counter[str] = Counter()
    for sample in state.run.dataset.with_role(Role.TRAIN):
        for tag in dict.fromkeys(tag.strip() for tag in sample.caption.split(",")):
            count[tag] += sample.num_repeats
    del count[""]
    return dict(count.most_common())


def _resolutions(dataset: ImageDataset) -> str:
    """``(512, 512)``, and one such pair after another when there are several."""
    found = sorted({r for sample in dataset.samples for r in sample.fit.resolutions})
    return ", ".join(f"({r}, {r})" for r in found)


def save_lora(path: Path, lora: Mapping[str, Tensor], precision: SavePrecision) -> None:
    """Write the LoRA with whatever metadata it remembers, whole or not at all.

    Raises:
        AtelierError: a weight is not finite, before or after conversion; nothing is written.
    """
    tensors = {key: value.to(_DTYPES[precision]).contiguous() for key, value in lora.items()}
    broken = [key for key, value in tensors.items() if not bool(value.isfinite().all())]
    require(
        not broken,
        f"The LoRA holds numbers that are not finite in save_precision {precision.value} "
        f"({len(broken)} of {len(tensors)} tensors, e.g. {broken[:1]}). It was not saved: training "
        "diverged, or fp16 is too narrow; try bf16 or float.",
    )
    metadata = {"format": "pt", **getattr(lora, "metadata", {})}
    write_whole(path, save(tensors, metadata=metadata))
