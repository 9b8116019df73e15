"""Which run is which: equal digests mean that training would give equal weights.

So a graph that is queued again after a cancel or a crash finds the states that the same run left on
disk. What only decides how long a run is, what is looked at on the way, or how much memory it takes
is left out: a longer run is the same one, extended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..cache import digest_of
from ..dataset.pictures import Picture
from ..dataset.samples import ImageDataset, Mask, Role, Sample
from ..optimizers.lr_scheduler import LRSchedulerSpec
from ..optimizers.optimizer import OptimizerSpec
from .run import Ingredients, TrainingSpec
from .spec_json import to_json

VERSION = 1
"""Part of every identity: raise it when the same settings would give other weights."""

WITHOUT_EFFECT = (
    "max_train_steps",
    "validate_every_n_steps",
    "gradient_checkpointing",
    "on_divergence",
)
"""Settings that do not change the weights at a given step: the first but for the schedule, the last
unless a run goes wrong, and then it is taken up again."""


def run_identity(ingredients: Ingredients, spec: TrainingSpec) -> str:
    """Of a run from its first step on; "" when an ingredient is unknown, which equals nothing."""
    if not ingredients.are_known:
        return ""
    settings = {n: v for n, v in to_json(spec).items() if n not in WITHOUT_EFFECT}
    existing = spec.network.existing
    return digest_of(
        VERSION,
        {name: digest for name, digest in asdict(ingredients).items() if digest},
        settings,
        "" if existing is None else tensors_digest(existing.tensors),
    )


def branch_identity(
    identity: str, step: int, optimizer: OptimizerSpec | None, scheduler: LRSchedulerSpec | None
) -> str:
    """Of a run that goes on from ``step`` of another with other settings."""
    if not identity:
        return ""
    return digest_of(VERSION, identity, step, to_json(optimizer), to_json(scheduler))


def dataset_digest(dataset: ImageDataset, content: Callable[[Picture], str]) -> str:
    """Of all that training sees of a dataset; validation pictures do not count.

    Args:
        content: digest of a picture's content.
    """

    def mask(sample: Sample) -> Any:
        if sample.mask is None or isinstance(sample.mask, Mask):
            return to_json(sample.mask)
        return {"picture": content(sample.mask)}

    return digest_of(
        [
            (
                content(s.image),
                list(s.image.size),
                s.name,
                list(s.captions),
                s.num_repeats,
                s.role.value,
                s.loss_weight,
                mask(s),
                to_json(s.fit),
                to_json(s.caption_options),
            )
            for s in dataset.samples
            if s.role is not Role.VALIDATION
        ]
    )


@torch.no_grad()
def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Of named tensors, every number of them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
