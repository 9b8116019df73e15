"""From the wires of the graph to a dataset report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..cache import TensorCache
from ..dataset.analysis import measure_dataset
from ..dataset.digests import ContentDigests
from ..dataset.report import (
    DatasetReport,
    distinct_captions,
    examine,
    sound,
    training_places,
)
from ..dataset.samples import ImageDataset
from ..dataset.spread import spread_of
from .progress import HostProgress
from .tokens import token_counts
from .vision import image_embeddings


def inspect_dataset(
    dataset: ImageDataset,
    train_batch_size: int,
    gradient_accumulation_steps: int,
    cache: Path,
    clip: Any = None,
    clip_vision: Any = None,
) -> DatasetReport:
    """Look at every picture and caption, with a progress bar and Cancel.

    Args:
        cache: folder in which measurements are kept by content.
        clip: counts tokens; None = they are not counted.
        clip_vision: says how far apart the pictures are; None = that is not asked.
    """
    tick = HostProgress(_steps(dataset, clip is not None, clip_vision is not None)).tick
    analysis = measure_dataset(
        dataset, ContentDigests(cache), TensorCache(cache / "analysis"), tick
    )
    samples = sound(dataset, analysis)
    tokens = spread = None
    if clip is not None:
        tokens = token_counts(clip, distinct_captions(samples), tick)
    if clip_vision is not None and training_places(samples):
        training = [samples[i] for i in training_places(samples)]
        spread = spread_of(image_embeddings(clip_vision, training, tick))
    return examine(
        dataset, analysis, train_batch_size, gradient_accumulation_steps, tokens, spread, tick
    )


def _steps(dataset: ImageDataset, tokens: bool, embeddings: bool) -> int:
    """How often it ticks, if no picture is broken: each is measured and compared."""
    steps = 2 * len(dataset.samples)
    steps += len(distinct_captions(dataset.samples)) if tokens else 0
    return steps + (len(training_places(dataset.samples)) if embeddings else 0)
