"""Several datasets as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count

from ..errors import require
from .samples import ImageDataset, Sample

LONGEST_NAME = 60
"""Characters; the name becomes part of file names."""


def combine(datasets: Sequence[ImageDataset], name: str = "") -> ImageDataset:
    """All samples in order, each with everything that was said of it.

    A sample whose name is taken already gets the name of its dataset before it
    (``glossy/fox.png``, then ``glossy_2/fox.png``); the others keep theirs.

    Args:
        name: of the new dataset; "" joins those of the old ones (``glossy+photos``).
    """
    require(len(datasets) > 0, "Combine Datasets: no dataset is connected.")
    taken: set[str] = set()
    samples: list[Sample] = []
    for dataset in datasets:
        for sample in dataset.samples:
            free = next(n for n in _names(dataset.name, sample.name) if n not in taken)
            taken.add(free)
            samples.append(replace(sample, name=free))
    problems = tuple(problem for dataset in datasets for problem in dataset.problems)
    return ImageDataset(tuple(samples), name.strip() or _joined(datasets), problems)


def _names(dataset: str, sample: str) -> Iterable[str]:
    yield sample
    yield f"{dataset}/{sample}"
    for number in count(2):
        yield f"{dataset}_{number}/{sample}"


def _joined(datasets: Sequence[ImageDataset]) -> str:
    joined = "+".join(dict.fromkeys(dataset.name for dataset in datasets))
    return joined if len(joined) <= LONGEST_NAME else joined[: LONGEST_NAME - 1] + "…"
