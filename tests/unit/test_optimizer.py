"""Optimizer settings: what is built of them, and what is refused in words."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_optimizer
import torch
from torch import nn

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.adapters.loha import LoHa
from lora_atelier.training.network.adapters.lora import LoRA
from lora_atelier.training.optimizers.kinds import kind_of
from lora_atelier.training.optimizers.optimizer import (
    OptimizerSpec,
    OptimizerType,
    build_optimizer,
    check_optimizer,
    effective_rate,
    parameter_groups,
)
from lora_atelier.training.random_streams import generator

ROOT = Path(__file__).resolve().parents[2]
OTHERS = [kind for kind in OptimizerType if kind is not OptimizerType.PYTORCH_OPTIMIZER]


def network() -> nn.ModuleDict:
    """A LoRA on a linear layer and one on a convolution: matrices and kernels."""
    rng = generator(0, "test")
    layers = {"linear": nn.Linear(6, 8), "conv": nn.Conv2d(3, 5, 3)}
    return nn.ModuleDict({name: LoRA(layer, 2, 2.0, rng) for name, layer in layers.items()})


def spec(kind: OptimizerType, **choices: object) -> OptimizerSpec:
    if kind is OptimizerType.PYTORCH_OPTIMIZER:
        choices.setdefault("optimizer_name", "soap")
    return OptimizerSpec(kind, **choices)


def test_adamw_follows_the_formula_of_the_paper() -> None:
    """Loshchilov & Hutter 2019, algorithm 2, in plain float64 numbers."""
    adapters = nn.ModuleDict({"one": nn.Linear(1, 1, bias=False)}).double()
    weight = adapters["one"].weight
    weight.data.fill_(1.0)
    optimizer = build_optimizer(adapters, OptimizerSpec(unet_lr=0.1, weight_decay=0.2))
    w, m, v = 1.0, 0.0, 0.0
    for step, gradient in enumerate([0.5, -2.0, 0.25], start=1):
        weight.grad = torch.tensor([[gradient]], dtype=torch.float64)
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


@pytest.mark.parametrize(
    "widget", ["weight_decay", "max_grad_norm", "loraplus_lr_ratio", "ema_decay"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
def test_other_widgets_are_held_to_numbers_too(widget: str, value: float) -> None:
    with pytest.raises(AtelierError, match=f"{widget} is {value}"):
        OptimizerSpec(**{widget: value})


def test_without_loraplus_all_weights_are_one_group() -> None:
    (group,) = parameter_groups(network(), OptimizerSpec(unet_lr=3e-4))
    assert group["lr"] == 3e-4
    assert len(group["params"]) == 4


def test_with_loraplus_the_up_matrices_learn_faster() -> None:
    adapters = network()
    slow, fast = parameter_groups(adapters, OptimizerSpec(unet_lr=1e-4, loraplus_lr_ratio=16))
    assert (slow["lr"], fast["lr"]) == (1e-4, pytest.approx(16e-4))
    named = {id(parameter): name for name, parameter in adapters.named_parameters()}
    names = [[named[id(p)] for p in group["params"]] for group in (slow, fast)]
    assert names == [
        ["linear.lora_down.weight", "conv.lora_down.weight"],
        ["linear.lora_up.weight", "conv.lora_up.weight"],
    ]


def test_loraplus_needs_up_matrices() -> None:
    adapters = nn.ModuleDict({"a": LoHa(nn.Linear(6, 8), 2, 2.0, generator(0))})
    assert build_optimizer(adapters, OptimizerSpec())
    with pytest.raises(AtelierError, match="loraplus_lr_ratio is 4, but this network has no up"):
        build_optimizer(adapters, OptimizerSpec(loraplus_lr_ratio=4))


@pytest.mark.parametrize("name", ["prodigy", "dadaptadam"])
def test_an_optimizer_that_finds_its_rate_takes_no_loraplus(name: str) -> None:
    with pytest.raises(AtelierError, match="loraplus_lr_ratio is 4, but Prodigy finds one"):
        spec(OptimizerType.PRODIGY, loraplus_lr_ratio=4)
    with pytest.raises(AtelierError, match=f"but {name} finds one"):
        spec(OptimizerType.PYTORCH_OPTIMIZER, optimizer_name=name, loraplus_lr_ratio=4)


@pytest.mark.parametrize("kind", OptimizerType)
def test_every_optimizer_passes_its_own_check(kind: OptimizerType) -> None:
    check_optimizer(spec(kind))


@pytest.mark.parametrize("kind", OptimizerType)
def test_every_optimizer_names_its_arguments_when_one_is_mistyped(kind: OptimizerType) -> None:
    with pytest.raises(AtelierError, match="has no argument momentun. .*It takes: ") as error:
        check_optimizer(spec(kind, optimizer_args="momentun=0.9"))
    listed = str(error.value).partition("It takes: ")[2]
    assert not {"lr", "params", "weight_decay", "betas", "eps"} & set(
        listed.rstrip(".").split(", ")
    )


@pytest.mark.parametrize(
    ("kind", "choices", "words"),
    [
        (OptimizerType.ADAMW, {"betas": "0.9"}, 'betas is "0.9": AdamW wants 2 numbers'),
        (OptimizerType.ADAMW, {"betas": "0.9, 2"}, "AdamW refuses these settings: Invalid beta"),
        (OptimizerType.ADAMW, {"eps": "1, 2"}, 'eps is "1, 2": AdamW wants one number'),
        (OptimizerType.ADAMW, {"eps": "tiny"}, 'eps is "tiny": write numbers'),
        (OptimizerType.ADAMW, {"optimizer_args": "lr=1"}, "lr cannot be set here"),
        (OptimizerType.ADAMW, {"optimizer_args": "maximize=True"}, "maximize cannot be set here"),
        (OptimizerType.CAME, {"betas": "0.9, 0.99"}, "CAME wants 3 numbers"),
        (OptimizerType.CAME, {"eps": "1e-8"}, "CAME wants 2 numbers"),
        (OptimizerType.SGD, {"betas": "0.9, 0.99"}, "betas is 0.9, 0.99, but SGD has no such"),
        (OptimizerType.LION, {"eps": "1e-8"}, "eps is 1e-8, but Lion has no such setting"),
        (OptimizerType.LION, {"unet_lr": 0.0}, "Lion refuses these settings: unet_lr, betas or"),
        (
            OptimizerType.ADAFACTOR,
            {"optimizer_args": "relative_step=True"},
            "Adafactor refuses these settings: Cannot combine manual",
        ),
    ],
)
def test_settings_an_optimizer_does_not_take_are_refused(
    kind: OptimizerType, choices: dict, words: str
) -> None:
    with pytest.raises(AtelierError, match=words):
        check_optimizer(spec(kind, **choices))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("prodgy", "has no such optimizer. Did you mean prodigy"),
        ("zzzzqq", "has no such optimizer. It has: a2grad, .*, yogi"),
        ("sm3", "weight_decay is 0.01, but sm3 has no such setting. Make it 0"),
        ("ranger21", "ranger21 also needs num_iterations: write num_iterations=… into"),
        ("adammini", "adammini: this optimizer cannot train a LoRA here .*whole model"),
        ("sophiah", r"sophiah: this optimizer cannot train a LoRA here \(RuntimeError"),
        ("muon", "muon refuses these settings: `use_muon` must be set"),
    ],
)
def test_what_pytorch_optimizer_cannot_give_is_said_in_words(name: str, words: str) -> None:
    with pytest.raises(AtelierError, match=words):
        check_optimizer(spec(OptimizerType.PYTORCH_OPTIMIZER, optimizer_name=name))


def test_a_name_and_its_type_belong_together() -> None:
    with pytest.raises(AtelierError, match="but optimizer_type is Lion. Choose pytorch_optimizer"):
        OptimizerSpec(OptimizerType.LION, optimizer_name="soap")
    with pytest.raises(AtelierError, match="optimizer_name is empty"):
        OptimizerSpec(OptimizerType.PYTORCH_OPTIMIZER, optimizer_name=" ")


def test_what_averages_already_takes_no_moving_average() -> None:
    with pytest.raises(AtelierError, match="ema_decay is 0.9, but AdamWScheduleFree averages"):
        OptimizerSpec(OptimizerType.ADAMW_SCHEDULE_FREE, ema_decay=0.9)
    for name in ("schedulefreeradam", "splus"):
        with pytest.raises(AtelierError, match=f"ema_decay is 0.9, but {name} averages"):
            spec(OptimizerType.PYTORCH_OPTIMIZER, optimizer_name=name, ema_decay=0.9)


def test_the_check_leaves_the_global_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    check_optimizer(spec(OptimizerType.PYTORCH_OPTIMIZER, optimizer_name="dash"))
    assert torch.equal(before, torch.get_rng_state())


def test_the_check_works_where_nodes_run() -> None:
    with torch.inference_mode():
        check_optimizer(spec(OptimizerType.PYTORCH_OPTIMIZER))


def test_the_effective_rate_counts_what_an_optimizer_found_for_itself() -> None:
    optimizer = build_optimizer(network(), spec(OptimizerType.PRODIGY, unet_lr=0.5))
    assert effective_rate(optimizer) == pytest.approx(0.5 * 1e-6)
    optimizer.param_groups[0]["d"] = 3e-4
    assert effective_rate(optimizer) == pytest.approx(1.5e-4)


def test_adamw8bit_keeps_its_state_in_bytes_and_trains() -> None:
    torch.manual_seed(0)
    adapters, goal = nn.ModuleDict({"a": nn.Linear(64, 64, bias=False)}), torch.randn(64, 64)
    weight = adapters["a"].weight
    weight.data.zero_()
    optimizer = build_optimizer(
        adapters, OptimizerSpec(OptimizerType.ADAMW_8BIT, unet_lr=0.05, weight_decay=0.0)
    )
    for _ in range(60):
        optimizer.zero_grad()
        (weight - goal).square().sum().backward()
        optimizer.step()
    assert optimizer.state[weight]["state1"].dtype == torch.uint8
    assert (weight - goal).square().mean() < 0.05 * goal.square().mean()


WITHOUT = """
import importlib.abc, sys, types

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}")

ABSENT = ("bitsandbytes", "lion_pytorch", "prodigyopt", "schedulefree", "came_pytorch",
          "pytorch_optimizer")
sys.meta_path.insert(0, Absent())
pack = sys.modules["lora_atelier"] = types.ModuleType("lora_atelier")
pack.__path__ = [sys.argv[1]]
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.optimizers.optimizer import (
    OptimizerSpec, OptimizerType, check_optimizer
)

for kind in OptimizerType:
    name = "soap" if kind is OptimizerType.PYTORCH_OPTIMIZER else ""
    try:
        check_optimizer(OptimizerSpec(kind, optimizer_name=name))
    except AtelierError as error:
        sys.stdout.write(f"{kind.value}: {error}\\n")
    else:
        sys.stdout.write(f"{kind.value}: ok\\n")
"""


def test_without_its_package_an_optimizer_says_how_to_install_it(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", WITHOUT, str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert {kind for kind, text in told.items() if text == "ok"} == {
        *("AdamW", "Adafactor", "Muon", "SGD")
    }
    packages = {
        "AdamW8bit": "bitsandbytes",
        "PagedAdamW8bit": "bitsandbytes",
        "Lion": "lion-pytorch",
        "Lion8bit": "bitsandbytes",
        "Prodigy": "prodigyopt",
        "AdamWScheduleFree": "schedulefree",
        "CAME": "came-pytorch",
        "pytorch_optimizer": "pytorch-optimizer",
    }
    for kind, package in packages.items():
        assert told[kind].startswith(f"optimizer_type {kind} needs the package {package} ")
        assert told[kind].endswith(f"runs ComfyUI: python -m pip install {package}")


def test_names_are_written_once_for_all() -> None:
    """They stand in saved workflows, in this order."""
    assert [kind.value for kind in OptimizerType] == [
        *("AdamW", "AdamW8bit", "PagedAdamW8bit", "Lion", "Lion8bit", "Adafactor", "Prodigy"),
        *("AdamWScheduleFree", "CAME", "Muon", "SGD", "pytorch_optimizer"),
    ]


def test_it_is_known_which_optimizers_average() -> None:
    """All that have a second mode for it, of the whole big package too."""
    big = OptimizerType.PYTORCH_OPTIMIZER
    names = pytorch_optimizer.get_supported_optimizers()
    known = {name for name in names if kind_of(big, name).averages}
    assert known == {n for n in names if hasattr(pytorch_optimizer.load_optimizer(n), "eval")}
    for kind in OTHERS:
        assert kind_of(kind).averages is hasattr(kind_of(kind).load(), "eval"), kind


def test_every_optimizer_has_a_usual_rate_but_those_of_the_big_package() -> None:
    for kind in OTHERS:
        rates = kind_of(kind).rates
        assert rates is not None and rates.low < rates.usual < rates.high
    assert kind_of(OptimizerType.PYTORCH_OPTIMIZER, "soap").rates is None
