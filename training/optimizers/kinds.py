"""The optimizers that can be chosen: where each comes from, and how it is meant to be used.

Only torch's own are at hand. The others are imported when they are chosen: bitsandbytes is one of
the pack's requirements, transformers belongs to ComfyUI, the rest is optional.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from ..errors import AtelierError, needed_package
from .muon import MuonAndAdamW

Optimizer = Callable[..., torch.optim.Optimizer]


class OptimizerType(str, Enum):
    """Names as kohya-ss/sd-scripts spells them, as far as it has them."""

    ADAMW = "AdamW"
    ADAMW_8BIT = "AdamW8bit"
    PAGED_ADAMW_8BIT = "PagedAdamW8bit"
    LION = "Lion"
    LION_8BIT = "Lion8bit"
    ADAFACTOR = "Adafactor"
    PRODIGY = "Prodigy"
    ADAMW_SCHEDULE_FREE = "AdamWScheduleFree"
    CAME = "CAME"
    MUON = "Muon"
    SGD = "SGD"
    PYTORCH_OPTIMIZER = "pytorch_optimizer"


@dataclass(frozen=True)
class Rates:
    """Learning rates that people use with LoRAs."""

    low: float
    usual: float
    high: float
    why: str = ""
    """A half sentence that explains an unusual range."""


@dataclass(frozen=True)
class Kind:
    """One optimizer."""

    load: Callable[[], Optimizer]
    """Import its class."""
    rates: Rates | None
    """None: not known."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Arguments in which we differ from the package."""
    finds_its_rate: bool = False
    """It multiplies the learning rate by a step size of its own, ``d``."""
    averages: bool = False
    """The weights to use are an average of those it trains."""


def kind_of(optimizer_type: OptimizerType, optimizer_name: str = "") -> Kind:
    """The optimizer that was chosen.

    Args:
        optimizer_name: which one of the package pytorch-optimizer, for that type only.
    """
    if optimizer_type is not OptimizerType.PYTORCH_OPTIMIZER:
        return _KINDS[optimizer_type]
    name = optimizer_name.lower()
    finds_its_rate = name.startswith(("prodigy", "dadapt"))
    return Kind(
        load=lambda: _from_pytorch_optimizer(optimizer_name),
        rates=_FINDS_ITS_RATE if finds_its_rate else _LION if name == "lion" else None,
        finds_its_rate=finds_its_rate,
        averages=name.startswith(("schedulefree", "splus")),
    )


def _from(module: str, name: str, chosen: str, package: str = "") -> Callable[[], Optimizer]:
    purpose = f"optimizer_type {chosen}"
    return lambda: getattr(needed_package(module, purpose, package), name)


def _from_pytorch_optimizer(name: str) -> Optimizer:
    package = needed_package(
        "pytorch_optimizer", "optimizer_type pytorch_optimizer", "pytorch-optimizer"
    )
    known = package.get_supported_optimizers()
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=5)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"It has: {', '.join(known)}."
        raise AtelierError(
            f'optimizer_name is "{name}": pytorch-optimizer has no such optimizer. {hint}'
        )
    return package.load_optimizer(name)


_ADAM = Rates(1e-5, 1e-4, 1e-3)
_LION = Rates(3e-6, 3e-5, 3e-4, "a third of AdamW's, since each of its steps has full length")
_FINDS_ITS_RATE = Rates(0.1, 1.0, 10.0, "it finds the rate itself, and multiplies it by this")

_KINDS = {
    OptimizerType.ADAMW: Kind(lambda: torch.optim.AdamW, _ADAM),
    OptimizerType.ADAMW_8BIT: Kind(_from("bitsandbytes.optim", "AdamW8bit", "AdamW8bit"), _ADAM),
    OptimizerType.PAGED_ADAMW_8BIT: Kind(
        _from("bitsandbytes.optim", "PagedAdamW8bit", "PagedAdamW8bit"), _ADAM
    ),
    OptimizerType.LION: Kind(_from("lion_pytorch", "Lion", "Lion", "lion-pytorch"), _LION),
    OptimizerType.LION_8BIT: Kind(_from("bitsandbytes.optim", "Lion8bit", "Lion8bit"), _LION),
    OptimizerType.ADAFACTOR: Kind(
        _from("transformers.optimization", "Adafactor", "Adafactor"),
        _ADAM,
        # Else the rate would be scaled by each weight's own length, or not be used at all.
        {"scale_parameter": False, "relative_step": False},
    ),
    OptimizerType.PRODIGY: Kind(
        _from("prodigyopt", "Prodigy", "Prodigy"),
        _FINDS_ITS_RATE,
        # Its authors' advice for diffusion models (https://github.com/konstmish/prodigy).
        {"use_bias_correction": True, "safeguard_warmup": True},
        finds_its_rate=True,
    ),
    OptimizerType.ADAMW_SCHEDULE_FREE: Kind(
        _from("schedulefree", "AdamWScheduleFree", "AdamWScheduleFree"),
        # 1 to 10 times AdamW's (https://github.com/facebookresearch/schedule_free).
        Rates(3e-5, 3e-4, 1e-2, "one to ten times AdamW's"),
        averages=True,
    ),
    OptimizerType.CAME: Kind(_from("came_pytorch", "CAME", "CAME", "came-pytorch"), _ADAM),
    OptimizerType.MUON: Kind(lambda: MuonAndAdamW, _ADAM),
    OptimizerType.SGD: Kind(
        lambda: torch.optim.SGD,
        Rates(1e-3, 1e-1, 10.0, "its steps are as long as the gradient, which is short"),
        {"momentum": 0.9},
    ),
}
