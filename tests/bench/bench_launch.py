"""What is lost by sharing a run: two processes of one thread against one process of two threads.

Both train the same batches of the tiny SD1.5 at 256 px, where arithmetic dominates, and take turns
of a few steps, so that the ratio holds on a busy machine. On two cores the arithmetic is the same:
what is missing to 1 is the price of talking, of waiting for the slower one, and of smaller batches.
Run it with `make bench`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from statistics import median

TESTS = Path(__file__).resolve().parents[1]
BATCH, STEPS, TURNS = 4, 2, 5
SIZE = 32
"""Of the latents; px / 8."""
TARGET = 0.85


class Member:
    """A process that trains a few steps whenever it is told to."""

    def __init__(self, threads: int, rank: int = 0, size: int = 1, port: int = 0) -> None:
        words = {"OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}
        if size > 1:
            words |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
            words |= {"LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | {name: str(value) for name, value in words.items()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self) -> None:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def seconds(self) -> float:
        for line in self.process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise RuntimeError(f"a member ended with {self.process.wait()}")


def test_two_processes_against_one() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone, team = [Member(2)], [Member(1, rank, 2, port) for rank in range(2)]
    try:
        turns = [(_turn(alone), _turn(team)) for _ in range(TURNS + 1)][1:]  # one to get warm
    finally:
        for member in (*alone, *team):
            member.process.kill()
    ratios = [one / two for one, two in turns]
    pictures = BATCH * STEPS
    sys.stdout.write(
        f"\n2 processes × 1 thread / 1 process × 2 threads = {median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f} over {TURNS} turns; target {TARGET}); "
        f"{pictures / median(two for _, two in turns):.2f} against "
        f"{pictures / median(one for one, _ in turns):.2f} pictures a second\n"
    )


def _turn(members: Sequence[Member]) -> float:
    for member in members:
        member.begin()
    return max(member.seconds() for member in members)


def train_by_turns() -> None:
    """What a member does."""
    sys.path[:0] = [str(TESTS), str(TESTS.parent / "dev")]
    pack = sys.modules["lora_atelier"] = types.ModuleType("lora_atelier")
    pack.__path__ = [str(TESTS.parent)]
    from comfy_modules import make_importable

    make_importable()
    from in_memory import encoded_dataset
    from lora_atelier.training.host.diffusion_model import HostDiffusionModel
    from lora_atelier.training.runs.listener import Listener
    from lora_atelier.training.runs.loop import train
    from lora_atelier.training.runs.run import TrainingRun, start
    from tiny import tiny_sd15
    from tiny_training import CAPTIONS, encode, load_parts, normal, quick_spec

    parts = load_parts(tiny_sd15())
    latents = [normal(1000 + i, 4, SIZE, SIZE) for i in range(len(CAPTIONS))]
    data = encoded_dataset(latents, encode(parts.clip, CAPTIONS))
    spec = quick_spec(train_batch_size=BATCH, max_train_steps=STEPS * (TURNS + 1))
    state = start(TrainingRun(spec, data, HostDiffusionModel(parts.model)))
    for _ in sys.stdin:
        started = time.perf_counter()
        state = train(state, STEPS, Listener())
        sys.stdout.write(f"seconds {time.perf_counter() - started}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    train_by_turns()
