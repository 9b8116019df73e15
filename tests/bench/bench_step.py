"""What a training step costs, next to the frozen forward pass it cannot do without.

Both are timed in turn in one process, so that the ratio holds on a busy machine. The floor is about
2: backward through frozen layers costs one more pass (the gradient of the input, none of the
weights), and the side paths add a little. Gradient checkpointing is compared with going without in
the same way; it computes the blocks' forward pass twice. Run it with `make bench`.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch

from comfy_modules import make_importable

make_importable()

from in_memory import PLACEMENT  # noqa: E402
from lora_atelier.training.host.diffusion_model import HostDiffusionModel  # noqa: E402
from lora_atelier.training.memory.allocations import Allocations  # noqa: E402
from lora_atelier.training.network.spec import NetworkSpec  # noqa: E402
from lora_atelier.training.runs.listener import Listener  # noqa: E402
from lora_atelier.training.runs.loop import train  # noqa: E402
from tiny_training import (  # noqa: E402
    CAPTIONS,
    encode,
    load_parts,
    make_run,
    normal,
    predicting,
    quick_spec,
    worked_network,
)

ROUNDS = 15


class _Clock(Listener):
    """Seconds of each step of a run, in turn with the host's own forward pass."""

    def __init__(self, forward: Callable[[], None]) -> None:
        self.forward = forward
        self.ratios: list[float] = []
        self.started = time.perf_counter()

    def on_step(self, record, last_step: int, freeze) -> None:
        step = time.perf_counter() - self.started
        started = time.perf_counter()
        self.forward()
        self.ratios.append(step / (time.perf_counter() - started))
        self.started = time.perf_counter()


@pytest.mark.parametrize("batch_size", (1, 4))
def test_a_step_against_a_forward_pass(batch_size: int, tiny_checkpoint: Path) -> None:
    parts = load_parts(tiny_checkpoint)
    run = make_run(
        parts.model, encode(parts.clip, CAPTIONS), quick_spec(train_batch_size=batch_size)
    )
    base = parts.model.model
    x, sigma = normal(1, batch_size, 4, 8, 8), torch.ones(batch_size)
    context = normal(2, batch_size, 77, 768)

    @torch.no_grad()
    def forward() -> None:
        base.apply_model(x, sigma, c_crossattn=context)

    from lora_atelier.training.runs.run import start

    clock = _Clock(forward)
    train(start(run), ROUNDS + 2, clock)
    ratios = clock.ratios[2:]
    sys.stdout.write(
        f"\nbatch {batch_size}: step / forward = {median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds)\n"
    )


@pytest.mark.parametrize("size", (8, 32))
def test_what_gradient_checkpointing_costs_and_saves(size: int, tiny_checkpoint: Path) -> None:
    """One forward and backward pass with it next to one without, on latents of ``size`` squared."""
    parts = load_parts(tiny_checkpoint)
    conditioning = [next(iter(encode(parts.clip, CAPTIONS[:1]).values()))]
    x, sigma = normal(1, 1, 4, size, size), torch.ones(1)
    seconds, kept = defaultdict(list), {}
    models = {
        on: HostDiffusionModel(parts.model, gradient_checkpointing=on) for on in (False, True)
    }
    network = worked_network(models[True], NetworkSpec(16, 16.0))
    for _ in range(ROUNDS + 2):
        for on, model in models.items():
            with predicting(model, network) as predict:
                started = time.perf_counter()
                predict(x, sigma, conditioning, [PLACEMENT]).square().mean().backward()
                seconds[on].append(time.perf_counter() - started)
    for on, model in models.items():
        with predicting(model, network) as predict, Allocations() as memory:
            loss = predict(x, sigma, conditioning, [PLACEMENT]).square().mean()
            kept[on] = memory.live
            del loss
    ratios = [on / off for on, off in zip(seconds[True][2:], seconds[False][2:], strict=True)]
    sys.stdout.write(
        f"\nlatents {size}×{size}: gradient checkpointing takes {median(ratios):.2f} times as long "
        f"({min(ratios):.2f} to {max(ratios):.2f}) and keeps {kept[True] / 2**20:.1f} MiB of "
        f"{kept[False] / 2**20:.1f} between forward and backward\n"
    )
