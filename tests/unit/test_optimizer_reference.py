"""Every optimizer takes the steps that its own package takes with the same arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_atelier.training.network.adapters.lora import LoRA
from lora_atelier.training.optimizers.averaging import keeps_an_average
from lora_atelier.training.optimizers.optimizer import OptimizerSpec, OptimizerType, build_optimizer
from lora_atelier.training.random_streams import generator

STEPS = 8
RATE, DECAY = 3e-3, 0.02
Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def network() -> nn.ModuleDict:
    """64 × 64 weights, so that 8-bit optimizers keep bytes, and a convolution."""
    layers = {"linear": nn.Linear(64, 96), "conv": nn.Conv2d(4, 6, 3)}
    adapters = {n: LoRA(layer, 64, 64.0, generator(1, n)) for n, layer in layers.items()}
    return nn.ModuleDict(adapters)


def gradient(parameter: Tensor, step: int, place: int) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator(2, step, place))
    return 0.1 * noise + parameter.detach()


def train(optimizer: torch.optim.Optimizer, adapters: nn.ModuleDict) -> None:
    for step in range(STEPS):
        for place, weight in enumerate(adapters.parameters()):
            weight.grad = gradient(weight, step, place)
        optimizer.step()


def groups(adapters: nn.ModuleDict, ratio: float = 1.0) -> list[dict[str, Any]]:
    """The parameter groups by hand."""
    down = [adapter.lora_down.weight for adapter in adapters.values()]
    up = [adapter.lora_up.weight for adapter in adapters.values()]
    if ratio == 1:
        both = [w for pair in zip(down, up, strict=True) for w in pair]
        return [{"params": both, "lr": RATE}]
    return [{"params": down, "lr": RATE}, {"params": up, "lr": RATE * ratio}]


def _adamw(groups: list) -> Any:
    return torch.optim.AdamW(groups, lr=RATE, weight_decay=DECAY, betas=(0.8, 0.95), eps=1e-6)


def _adamw_8bit(groups: list) -> Any:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(groups, lr=RATE, weight_decay=DECAY, betas=(0.8, 0.95))


def _paged_adamw_8bit(groups: list) -> Any:
    from bitsandbytes.optim import PagedAdamW8bit

    return PagedAdamW8bit(groups, lr=RATE, weight_decay=DECAY)


def _lion(groups: list) -> Any:
    from lion_pytorch import Lion

    return Lion(groups, lr=RATE, weight_decay=DECAY, betas=(0.95, 0.98))


def _lion_8bit(groups: list) -> Any:
    from bitsandbytes.optim import Lion8bit

    return Lion8bit(groups, lr=RATE, weight_decay=DECAY)


def _adafactor(groups: list) -> Any:
    from transformers.optimization import Adafactor

    return Adafactor(
        groups, lr=RATE, weight_decay=DECAY, scale_parameter=False, relative_step=False, beta1=0.9
    )


def _prodigy(groups: list) -> Any:
    from prodigyopt import Prodigy

    return Prodigy(
        groups,
        lr=RATE,
        weight_decay=DECAY,
        use_bias_correction=True,
        safeguard_warmup=True,
        d_coef=2.0,
    )


def _schedule_free(groups: list) -> Any:
    from schedulefree import AdamWScheduleFree

    optimizer = AdamWScheduleFree(groups, lr=RATE, weight_decay=DECAY, r=1.0)
    optimizer.train()
    return optimizer


def _came(groups: list) -> Any:
    from came_pytorch import CAME

    return CAME(groups, lr=RATE, weight_decay=DECAY, betas=(0.9, 0.99, 0.999), eps=(1e-28, 1e-15))


def _sgd(groups: list) -> Any:
    return torch.optim.SGD(groups, lr=RATE, weight_decay=DECAY, momentum=0.9, nesterov=True)


def _soap(groups: list) -> Any:
    from pytorch_optimizer import SOAP

    return SOAP(groups, lr=RATE, weight_decay=DECAY, precondition_frequency=3)


REFERENCES: dict[str, tuple[OptimizerType, dict[str, str], Make]] = {
    "AdamW": (OptimizerType.ADAMW, {"betas": "0.8, 0.95", "eps": "1e-6"}, _adamw),
    "AdamW8bit": (OptimizerType.ADAMW_8BIT, {"betas": "0.8, 0.95"}, _adamw_8bit),
    "PagedAdamW8bit": (OptimizerType.PAGED_ADAMW_8BIT, {}, _paged_adamw_8bit),
    "Lion": (OptimizerType.LION, {"betas": "0.95, 0.98"}, _lion),
    "Lion8bit": (OptimizerType.LION_8BIT, {}, _lion_8bit),
    "Adafactor": (OptimizerType.ADAFACTOR, {"optimizer_args": "beta1=0.9"}, _adafactor),
    "Prodigy": (OptimizerType.PRODIGY, {"optimizer_args": "d_coef=2"}, _prodigy),
    "AdamWScheduleFree": (
        OptimizerType.ADAMW_SCHEDULE_FREE,
        {"optimizer_args": "r=1.0"},
        _schedule_free,
    ),
    "CAME": (OptimizerType.CAME, {"betas": "0.9 0.99 0.999", "eps": "1e-28 1e-15"}, _came),
    "SGD": (OptimizerType.SGD, {"optimizer_args": "nesterov=true"}, _sgd),
    "pytorch_optimizer": (
        OptimizerType.PYTORCH_OPTIMIZER,
        {"optimizer_name": "SOAP", "optimizer_args": "precondition_frequency=3"},
        _soap,
    ),
}


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(
    ("name", "ratio"),
    # Prodigy takes one rate for all; that LoRA+ is refused there is tested beside the settings.
    [(n, r) for n in REFERENCES for r in (1.0, 4.0) if (n, r) != ("Prodigy", 4.0)],
)
def test_the_steps_are_those_of_the_package(name: str, ratio: float) -> None:
    kind, texts, make = REFERENCES[name]
    ours, theirs = network(), network()
    spec = OptimizerSpec(kind, RATE, DECAY, loraplus_lr_ratio=ratio, **texts)
    mine, reference = build_optimizer(ours, spec), make(groups(theirs, ratio))
    assert type(mine) is type(reference)
    train(mine, ours)
    train(reference, theirs)
    if keeps_an_average(mine):
        mine.eval()
        reference.eval()
    start = network()
    for name, weight in ours.named_parameters():
        assert torch.equal(weight, theirs.get_parameter(name)), name
        assert not torch.equal(weight, start.get_parameter(name)), name


def test_every_optimizer_has_a_reference() -> None:
    kinds = {kind for kind, _, _ in REFERENCES.values()}
    assert kinds | {OptimizerType.MUON} == set(OptimizerType)


@pytest.mark.parametrize("ratio", [1.0, 4.0], ids=["all alike", "LoRA+"])
def test_muon_takes_the_matrices_and_adamw_the_rest(ratio: float) -> None:
    ours, theirs = network(), network()
    spec = OptimizerSpec(
        OptimizerType.MUON,
        RATE,
        DECAY,
        loraplus_lr_ratio=ratio,
        optimizer_args="momentum=0.9 ns_steps=4",
    )
    train(build_optimizer(ours, spec), ours)
    linear, conv = theirs["linear"], theirs["conv"]
    muon = torch.optim.Muon(
        [
            {"params": [linear.lora_down.weight], "lr": RATE},
            {"params": [linear.lora_up.weight], "lr": RATE * ratio},
        ],
        weight_decay=DECAY,
        momentum=0.9,
        ns_steps=4,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(
        [
            {"params": [conv.lora_down.weight], "lr": RATE},
            {"params": [conv.lora_up.weight], "lr": RATE * ratio},
        ],
        weight_decay=DECAY,
    )
    for step in range(STEPS):
        for place, weight in enumerate(theirs.parameters()):
            weight.grad = gradient(weight, step, place)
        muon.step()
        adamw.step()
    for name, weight in ours.named_parameters():
        assert torch.equal(weight, theirs.get_parameter(name)), name


def test_muon_goes_on_from_its_own_state() -> None:
    """Its two parts share groups and state; a loaded one must reach both."""
    spec = OptimizerSpec(OptimizerType.MUON, RATE, DECAY)
    straight, stopped = network(), network()
    optimizer = build_optimizer(straight, spec)
    train(optimizer, straight)
    train(optimizer, straight)
    first = build_optimizer(stopped, spec)
    train(first, stopped)
    second = build_optimizer(stopped, spec)
    second.load_state_dict(first.state_dict())
    second.param_groups[0]["lr"] = RATE  # as a schedule does; must be the group Muon reads
    train(second, stopped)
    for name, weight in straight.named_parameters():
        assert torch.equal(weight, stopped.get_parameter(name)), name
    second.param_groups[0]["lr"] = 0.0
    before = stopped["linear"].lora_down.weight.detach().clone()
    train(second, stopped)
    assert torch.equal(before, stopped["linear"].lora_down.weight)


def _specs() -> dict[str, OptimizerSpec]:
    texts = {name: (kind, typed) for name, (kind, typed, _) in REFERENCES.items()}
    texts["Muon"] = (OptimizerType.MUON, {})
    return {name: OptimizerSpec(kind, RATE, DECAY, **t) for name, (kind, t) in texts.items()}


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", _specs())
def test_loss_scaling_leaves_the_steps_as_they_are_and_skips_an_overflow(name: str) -> None:
    """What float16 training does around each step, with torch's own scaler on the CPU."""
    plain, scaled = network(), network()
    spec = _specs()[name]
    reference, optimizer = build_optimizer(plain, spec), build_optimizer(scaled, spec)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))  # makes its scale
    for step in range(STEPS):
        for place, (a, b) in enumerate(zip(plain.parameters(), scaled.parameters(), strict=True)):
            a.grad = gradient(a, step, place)
            b.grad = 1024.0 * gradient(b, step, place)
        scaler.unscale_(optimizer)
        reference.step()
        scaler.step(optimizer)
        scaler.update()
    for key, weight in scaled.named_parameters():
        assert torch.equal(weight, plain.get_parameter(key)), key
        weight.grad = torch.full_like(weight, float("inf"))
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    for key, weight in scaled.named_parameters():
        assert torch.equal(weight, plain.get_parameter(key)), key
