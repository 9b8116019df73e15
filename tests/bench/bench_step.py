"""What a training step costs, next to the frozen forward pass it cannot do without.

Both are timed in turn in one process, so that the ratio holds on a busy machine. The floor is about
2: backward through frozen layers costs one more pass (the gradient of the input, none of the
weights), and the side paths add a little. Run it with `make bench`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch

from comfy_modules import make_importable

make_importable()

from lora_atelier.training.loop import train  # noqa: E402
from tiny_training import CAPTIONS, encode, load_parts, make_run, normal, quick_spec  # noqa: E402

ROUNDS = 15


class _Clock:
    """Seconds of each step of a run, in turn with the host's own forward pass."""

    def __init__(self, forward: Callable[[], None]) -> None:
        self.forward = forward
        self.ratios: list[float] = []
        self.started = time.perf_counter()

    def on_micro_step(self) -> None:
        pass

    def on_step(self, record, last_step: int) -> None:
        step = time.perf_counter() - self.started
        started = time.perf_counter()
        self.forward()
        self.ratios.append(step / (time.perf_counter() - started))
        self.started = time.perf_counter()

    def on_interrupted(self, state) -> None:
        pass


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

    from lora_atelier.training.run import start

    clock = _Clock(forward)
    train(start(run), ROUNDS + 2, clock)
    ratios = clock.ratios[2:]
    sys.stdout.write(
        f"\nbatch {batch_size}: step / forward = {median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds)\n"
    )
