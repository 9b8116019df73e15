"""What a run will need of the device's memory, found out before it begins.

One micro-step, forward and backward over the largest batch, is rehearsed through the model's own
code (:mod:`training.memory.rehearsal`). What kernels take inside one operation (the workspaces of
cuDNN) and what the allocator loses to gaps is not in it.

    total = base + text encoder + adapters + activations + workspace
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..optimizers.footprint import footprint
from ..runs.adapter_precision import AdapterStorage
from ..runs.batches import Draw
from ..runs.examples import Conditioning, Example
from .allocations import Allocations, storages_in
from .rehearsal import SHAPES, rehearsing

if TYPE_CHECKING:
    from ..runs.run import TrainingRun

log = logging.getLogger("lora_atelier")

NUMBER = 4
"""Bytes of a float32."""
LONGEST = 8
"""How many of the longest captions are looked at for the longest conditioning."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The parts, in bytes."""

    base: int
    """The frozen model's weights, as they are stored."""
    text_encoder: int
    """Those of the text encoders, where they are trained."""
    adapters: int
    """Trained numbers, their gradients, the optimizer's state, the moving average."""
    activations: int | None
    """What autograd keeps from the forward pass; None = the rehearsal failed."""
    workspace: int
    """What the busiest moment of a step needs beside the rest."""

    @property
    def beside_weights(self) -> int:
        """All but the frozen weights."""
        return self.adapters + (self.activations or 0) + self.workspace

    @property
    def total(self) -> int:
        return self.base + self.text_encoder + self.beside_weights


class Rehearsal(NamedTuple):
    """A micro-step that only seemed to happen, in bytes."""

    activations: int
    """More at the end of the forward pass than at its beginning."""
    peak: int
    """The most there was at once, adapters and gradients included."""


@torch.inference_mode(False)
@torch.enable_grad()
def estimate_memory(run: TrainingRun) -> MemoryEstimate:
    """Rehearse a micro-step of ``run``, and add up."""
    spec = run.spec
    batch = largest_batch(run)
    with rehearsing() as memory:
        network = run.new_network(SHAPES)
        storage = AdapterStorage(network, spec.adapter_precision, spec.seed, step=0)
        weights = memory.live
        rehearsal = _rehearse_or_say_why(run, network, batch, memory)
        gradients = sum(s.nbytes() for s in storages_in(list(network.parameters())))
        numbers = sum(p.numel() for p in network.parameters())
        del storage
    optimizer = footprint(spec.optimizer, run.model.device)
    average = numbers * NUMBER if spec.optimizer.ema_decay > 0 else 0
    step = numbers * optimizer.step
    if spec.adapter_precision.is_narrow:
        step += 2 * numbers * NUMBER - weights - gradients
    base, text_encoder = run.model.stored_bytes()
    return MemoryEstimate(
        base=base,
        text_encoder=text_encoder,
        adapters=weights + gradients + int(numbers * optimizer.state) + average,
        activations=None if rehearsal is None else rehearsal.activations,
        workspace=_workspace(rehearsal, weights + gradients, int(step)),
    )


class Batch(NamedTuple):
    """So many times the same example."""

    example: Example
    size: int


def largest_batch(run: TrainingRun) -> Batch:
    """The micro-batch with the most pixels, each under the longest of all captions."""
    buckets = run.plan.buckets
    counts = Counter(buckets)

    def size(item: int) -> int:
        return min(run.spec.train_batch_size, counts[buckets[item]])

    item = max(range(len(buckets)), key=lambda i: size(i) * prod(buckets[i]))
    example = run.example(Draw(item, epoch=0, position=0))
    return Batch(replace(example, conditioning=longest_conditioning(run)), size(item))


def longest_conditioning(run: TrainingRun) -> Conditioning:
    """That of the most numbers, among those of the captions of the most letters."""
    encoded = run.data.conditioning
    longest = sorted(encoded, key=len, reverse=True)[:LONGEST]
    return max((encoded[text] for text in longest), key=_numbers)


def _numbers(conditioning: Conditioning) -> int:
    return sum(t.numel() for t in tree_leaves(conditioning) if isinstance(t, Tensor))


def _rehearse_or_say_why(
    run: TrainingRun, network: nn.ModuleDict, batch: Batch, memory: Allocations
) -> Rehearsal | None:
    try:
        return _rehearse(run, network, batch, memory)
    except Exception as error:  # other people's code, which may need numbers or know no shapes
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        log.warning("The memory of this model's activations cannot be estimated: %s", reason)
        return None


def _rehearse(
    run: TrainingRun, network: nn.ModuleDict, batch: Batch, memory: Allocations
) -> Rehearsal:
    for adapter in network.values():
        adapter.module_dropout = 0.0  # it asks for the value of a random number
    prior = run.spec.objective.prior.prior_preservation > 0
    if run.spec.gradient_accumulation_steps > 1 or prior:  # backward finds gradients there already
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
    dtype = run.compute_dtype
    latents = torch.empty(batch.size, *batch.example.image.latent.shape, device=SHAPES)
    sigmas = torch.ones(batch.size, device=SHAPES)
    conditioning = _conditionings(run, batch)
    with run.model.rehearsing(network, dtype, memory) as predict:
        before = memory.live
        prediction = predict(latents, sigmas, conditioning, [batch.example.placement] * batch.size)
        loss = prediction.float().square().mean()
        activations = memory.live - before
        loss.backward()
    return Rehearsal(activations, memory.peak)


def _conditionings(run: TrainingRun, batch: Batch) -> list[Conditioning]:
    """One for each picture. Captions that are read anew at every step differ, for what is kept of
    each counts."""
    if not isinstance(batch.example.conditioning, str):
        return [batch.example.conditioning] * batch.size
    captions = sorted(run.data.conditioning, key=len, reverse=True)[: batch.size]
    return [captions[i % len(captions)] for i in range(batch.size)]


def _workspace(rehearsal: Rehearsal | None, adapters: int, step: int) -> int:
    """The optimizer's step comes when the activations are gone already."""
    if rehearsal is None:
        return step
    return max(rehearsal.peak - adapters - rehearsal.activations, step - rehearsal.activations, 0)
