"""In which order the pictures are seen: a function of the seed and the position alone."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import torch

from ..random_streams import generator


@dataclass(frozen=True, slots=True)
class Draw:
    """One picture at one place of the run."""

    item: int
    """Index into the plan's items."""
    epoch: int
    position: int
    """Place within the epoch; with ``epoch`` it keys the noise this picture gets."""


@dataclass(frozen=True)
class BatchPlan:
    """Cuts the endless sequence of epochs into micro-batches.

    An epoch is made of turns: every item that is still due is seen once in each, so that each is
    seen ``num_repeats`` times an epoch and none twice before every other one that is due. A batch
    holds items of one bucket only and never spans two turns, so the last batch of each bucket in a
    turn may be short.
    """

    num_repeats: tuple[int, ...]
    """Of each item; 0 = never seen."""
    buckets: tuple[Hashable, ...]
    """Of each item; only items of equal buckets share a batch."""
    train_batch_size: int
    seed: int

    @cached_property
    def batches_per_epoch(self) -> int:
        """The same in every epoch: only the order differs."""
        return len(self._order(0).starts) - 1

    def batch(self, micro_step: int) -> list[Draw]:
        """The pictures of micro-batch ``micro_step`` (0, 1, … over the whole run)."""
        epoch, index = divmod(micro_step, self.batches_per_epoch)
        order = self._order(epoch)
        first, end = order.starts[index], order.starts[index + 1]
        return [Draw(order.items[place], epoch, place) for place in range(first, end)]

    @cached_property
    def _order(self) -> Callable[[int], _Order]:
        """The order of an epoch; the last two are kept, for a step may reach into the next one."""
        return lru_cache(maxsize=2)(partial(_order_of_epoch, self))


@dataclass(frozen=True)
class _Order:
    """The batches of one epoch, packed: a large dataset has 100,000 items and more."""

    items: array[int]
    """In the order in which they are seen."""
    starts: array[int]
    """Where each batch begins in ``items``, and the end."""


def _order_of_epoch(plan: BatchPlan, epoch: int) -> _Order:
    items, starts = array("q"), array("q", [0])
    for batch in _batches(plan, epoch):
        items.extend(batch)
        starts.append(len(items))
    return _Order(items, starts)


def _batches(plan: BatchPlan, epoch: int) -> Iterator[list[int]]:
    """One shuffled turn after another over the items that are still due."""
    due = list(range(len(plan.num_repeats)))
    for turn in range(max(plan.num_repeats)):
        due = [item for item in due if plan.num_repeats[item] > turn]
        yield from _turn(plan, due, generator(plan.seed, "order", epoch, turn))


def _turn(plan: BatchPlan, due: list[int], rng: torch.Generator) -> list[list[int]]:
    """Every due item once: shuffled, and each put into the open batch of its bucket.

    The batches come in the order in which they were begun, so among items of one bucket the batch
    size changes the order of none: four accumulated batches of one are a batch of four.
    """
    batches: list[list[int]] = []
    open_batch: dict[Hashable, list[int]] = {}
    for place in torch.randperm(len(due), generator=rng).tolist():
        item = due[place]
        batch = open_batch.get(plan.buckets[item])
        if batch is None or len(batch) == plan.train_batch_size:
            batch = open_batch[plan.buckets[item]] = []
            batches.append(batch)
        batch.append(item)
    return batches
