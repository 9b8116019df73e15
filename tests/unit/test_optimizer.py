"""Optimizers by name."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.optimizer import OptimizerSpec, OptimizerType, build_optimizer

ROOT = Path(__file__).resolve().parents[2]


def test_adamw_follows_the_formula_of_the_paper() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in plain float64 numbers."""
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = build_optimizer([weight], OptimizerSpec(unet_lr=0.1, weight_decay=0.2))
    w, m, v = 1.0, 0.0, 0.0
    for step, gradient in enumerate([0.5, -2.0, 0.25], start=1):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        w -= 0.1 * 0.2 * w
        w -= 0.1 * (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.999**step)) + 1e-8)
        assert weight.item() == pytest.approx(w, abs=1e-12)


@pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf, -1e-4])
def test_a_rate_that_is_no_number_or_negative_is_refused_in_words(rate: float) -> None:
    with pytest.raises(AtelierError, match=f"unet_lr is {rate}: .*1e-4 is a good start"):
        OptimizerSpec(unet_lr=rate)


@pytest.mark.parametrize("widget", ["weight_decay", "max_grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
def test_other_widgets_are_held_to_numbers_too(widget: str, value: float) -> None:
    with pytest.raises(AtelierError, match=f"{widget} is {value}"):
        OptimizerSpec(**{widget: value})


def test_adamw8bit_keeps_its_state_in_bytes_and_trains() -> None:
    torch.manual_seed(0)
    weight, goal = nn.Parameter(torch.zeros(64, 64)), torch.randn(64, 64)
    spec = OptimizerSpec(OptimizerType.ADAMW_8BIT, unet_lr=0.05, weight_decay=0.0)
    optimizer = build_optimizer([weight], spec)
    for _ in range(60):
        optimizer.zero_grad()
        (weight - goal).square().sum().backward()
        optimizer.step()
    assert optimizer.state[weight]["state1"].dtype == torch.uint8
    assert (weight - goal).square().mean() < 0.05 * goal.square().mean()


WITHOUT_BITSANDBYTES = """
import importlib.abc, sys, types

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "bitsandbytes":
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
pack = sys.modules["lora_atelier"] = types.ModuleType("lora_atelier")
pack.__path__ = [sys.argv[1]]
import torch
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.optimizer import OptimizerSpec, OptimizerType, build_optimizer

weights = [torch.nn.Parameter(torch.zeros(1))]
build_optimizer(weights, OptimizerSpec(OptimizerType.ADAMW))
try:
    build_optimizer(weights, OptimizerSpec(OptimizerType.ADAMW_8BIT))
except AtelierError as error:
    sys.stdout.write(str(error))
"""


def test_without_its_package_adamw8bit_says_how_to_install_it(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", WITHOUT_BITSANDBYTES, str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "AdamW8bit" in done.stdout
    assert "pip install bitsandbytes" in done.stdout
