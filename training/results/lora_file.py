"""The LoRA file: safetensors and metadata, read back, and there as a whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import AtelierError, require
from ..files import whole_file
from ..network.metadata import network_metadata
from ..objective.metadata import objective_metadata
from ..runs.run import TrainingSpec, TrainingState
from ..version import VERSION
from .lora_facts import base_metadata, dataset_metadata, modelspec_metadata
from .safetensors_hashes import hash_metadata, with_metadata

Check = Callable[[Mapping[str, Tensor]], None]
"""Looks at what a file gives back; raises if it is not what it should be."""


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

    Args:
        models: MODEL, CLIP and VAE it was trained on, which know what its keys mean; opaque here.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], models: Any = None
    ) -> None:
        super().__init__(tensors)
        self.metadata = dict(metadata)
        self.models = models


def trained_lora(state: TrainingState) -> TrainedLora:
    """The adapters of ``state`` with the metadata other programs look for."""
    return TrainedLora(state.network, lora_metadata(state), state.run.models)


def lora_metadata(state: TrainingState) -> dict[str, str]:
    """``ss_*`` as kohya-ss/sd-scripts writes them (train_network.py), every value a string."""
    spec, dataset = state.run.spec, state.run.dataset
    precision, base = spec.adapter_precision, state.run.base
    micro_steps = spec.max_train_steps * spec.gradient_accumulation_steps
    values = {
        **network_metadata(spec.network, state.network),
        "ss_optimizer": spec.optimizer.written,
        **rates_metadata(spec),
        "ss_max_grad_norm": spec.optimizer.max_grad_norm,
        "ss_lr_scheduler": spec.lr_scheduler.lr_scheduler.value,
        "ss_lr_warmup_steps": spec.lr_scheduler.warmup_steps(spec.max_train_steps, spec.samples),
        **objective_metadata(spec.objective, state.run.model.schedule),
        "ss_mixed_precision": state.run.mixed_precision.value,
        "ss_batch_size_per_device": spec.train_batch_size,
        "ss_total_batch_size": spec.train_batch_size * spec.gradient_accumulation_steps,
        "ss_gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "ss_gradient_checkpointing": spec.gradient_checkpointing,
        "ss_torch_compile": spec.compile_blocks,
        "ss_cache_latents": True,
        "ss_max_train_steps": spec.max_train_steps,
        "ss_steps": state.step,
        "ss_epoch": state.history[-1].epoch if state.history else 0,
        "ss_num_epochs": -(-micro_steps // state.run.plan.batches_per_epoch),
        "ss_num_batches_per_epoch": state.run.plan.batches_per_epoch,
        "ss_seed": spec.seed,
        "ss_training_finished_at": datetime.now(timezone.utc).timestamp(),
        **dataset_metadata(dataset),
        **base_metadata(base),
        **modelspec_metadata(dataset),
        "atelier.adapter_precision": precision.value if precision.is_narrow else "",
        "atelier.versions": ", ".join(
            filter(None, (f"LoRA Atelier {VERSION}", f"PyTorch {torch.__version__}", base.host))
        ),
    }
    return as_strings(values)


def as_strings(values: Mapping[str, object]) -> dict[str, str]:
    """Metadata as a file holds them; what is "" is left out."""
    return {key: str(value) for key, value in values.items() if value != ""}


def rates_metadata(spec: TrainingSpec) -> dict[str, object]:
    """Learning rates of the parts that are trained; "" for those that are not."""
    network, optimizer = spec.network, spec.optimizer
    return {
        "ss_unet_lr": optimizer.unet_lr if network.trains_diffusion_model else "",
        "ss_text_encoder_lr": optimizer.text_encoder_lr if network.trains_text_encoders else "",
    }


def save_lora(
    path: Path,
    lora: Mapping[str, Tensor],
    precision: SavePrecision,
    metadata: Mapping[str, str] | None = None,
    check: Check = lambda read: None,
) -> None:
    """Write the LoRA with whatever metadata it remembers, whole or not at all.

    Args:
        metadata: what else is to be said of it.
        check: is given what the finished file holds, before it gets its name.

    Raises:
        AtelierError: a weight is not finite, before or after conversion, or the file does not give
            back what went in; there is no file then, or still the old one.
    """
    tensors = in_precision(lora, precision)
    require_finite(tensors, precision)
    content = save(tensors, metadata=_only_ss(getattr(lora, "metadata", {})))
    told = {**getattr(lora, "metadata", {}), **(metadata or {}), **hash_metadata(content)}
    with whole_file(path) as partial:
        partial.write_bytes(with_metadata(content, {"format": "pt", **told}))
        read = _read_back(partial)
        require(
            read.keys() == tensors.keys()
            and all(_same(read[key], value) for key, value in tensors.items()),
            f'"{path.name}" did not give back what was written: the disk may be broken. It was not '
            "kept; save it elsewhere.",
        )
        check(read)


def in_precision(lora: Mapping[str, Tensor], precision: SavePrecision) -> dict[str, Tensor]:
    """Its tensors as they are in the file."""
    dtype = _DTYPES[precision]
    return {key: value.detach().to("cpu", dtype).contiguous() for key, value in lora.items()}


def require_finite(tensors: Mapping[str, Tensor], precision: SavePrecision) -> None:
    """Refuse a LoRA that would break every picture.

    Raises:
        AtelierError: a number is NaN or infinite.
    """
    broken = [key for key, value in tensors.items() if not bool(value.isfinite().all())]
    require(
        not broken,
        f"The LoRA holds numbers that are not finite in save_precision {precision.value} "
        f"({len(broken)} of {len(tensors)} tensors, e.g. {broken[:1]}). It was not saved: training "
        "diverged, or fp16 is too narrow; try bf16 or float.",
    )


def _only_ss(metadata: Mapping[str, str]) -> dict[str, str]:
    """What counts in the hash, in an order of its own."""
    return {key: metadata[key] for key in sorted(metadata) if key.startswith("ss_")}


def _read_back(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise AtelierError(
            f"The LoRA file cannot be read back ({error}): the disk may be broken. It was not kept."
        ) from error


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
