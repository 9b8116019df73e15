"""In which order the pictures are seen: a function of the seed and the position alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from .random_streams import generator


@dataclass(frozen=True)
class Draw:
    """One picture at one place of the run."""

    image: int
    """Index into the dataset."""
    epoch: int
    position: int
    """Place within the epoch; with ``epoch`` it keys the noise this picture gets."""


@dataclass(frozen=True)
class BatchPlan:
    """Cuts the endless sequence of epochs into micro-batches.

    Every picture is seen ``num_repeats`` times an epoch, and none twice before every other one
    that is due has been seen once. The last batch of an epoch may be short; no batch spans two.
    """

    num_repeats: tuple[int, ...]
    train_batch_size: int
    seed: int

    @property
    def batches_per_epoch(self) -> int:
        return -(-sum(self.num_repeats) // self.train_batch_size)

    def batch(self, micro_step: int) -> list[Draw]:
        """The pictures of micro-batch ``micro_step`` (0, 1, … over the whole run)."""
        epoch, index = divmod(micro_step, self.batches_per_epoch)
        order = epoch_order(self.num_repeats, self.seed, epoch)
        first = index * self.train_batch_size
        chosen = order[first : first + self.train_batch_size]
        return [Draw(image, epoch, first + i) for i, image in enumerate(chosen)]


@lru_cache(maxsize=4)
def epoch_order(num_repeats: tuple[int, ...], seed: int, epoch: int) -> tuple[int, ...]:
    """Dataset indices of one epoch: one shuffled pass over the pictures still due after another."""
    order: list[int] = []
    for turn in range(max(num_repeats)):
        due = [i for i, repeats in enumerate(num_repeats) if repeats > turn]
        rng = generator(seed, "order", epoch, turn)
        order += [due[i] for i in torch.randperm(len(due), generator=rng).tolist()]
    return tuple(order)
