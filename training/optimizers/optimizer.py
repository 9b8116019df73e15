"""The optimizer of a run: what a person chooses, and what is built of it.

LoRA+ (Hayou et al. 2024, arXiv:2402.12354): the ``up`` matrices, which start at zero, learn
``loraplus_lr_ratio`` times faster than the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import AtelierError, require, require_number
from ..network.adapters.lora import LoRA
from ..network.existing_lora import of_text_encoder
from ..random_streams import generator, global_stream
from .arguments import check_arguments, fits, parameters, parse_arguments, parse_numbers
from .kinds import Kind, OptimizerType, kind_of

BETAS_EXAMPLE = "0.9, 0.999"
EPS_EXAMPLE = "1e-8"
_NOT_TO_BE_TYPED = (
    *("params", "lr", "weight_decay", "betas", "eps"),
    *("maximize", "differentiable", "capturable"),  # for other loops than ours
    *("optim_bits", "args", "is_paged"),  # bitsandbytes: said by the optimizer's name
)


@dataclass(frozen=True)
class OptimizerSpec:
    """The optimizer and its rates. Texts that are empty leave the choice to the optimizer."""

    optimizer_type: OptimizerType = OptimizerType.ADAMW
    unet_lr: float = 1e-4
    """Learning rate of the diffusion model's adapters (U-Net or DiT)."""
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    """Gradients longer than this are scaled down to it; 0 = never."""
    loraplus_lr_ratio: float = 1.0
    """The ``up`` matrices learn with ``unet_lr`` times this; 1 = all alike."""
    betas: str = ""
    eps: str = ""
    optimizer_args: str = ""
    """More of the optimizer's own arguments, ``name=value name=value``."""
    optimizer_name: str = ""
    """Which one of the package pytorch-optimizer; for that type only."""
    ema_decay: float = 0.0
    """The LoRA is a moving average of the trained weights with this decay; 0 = they themselves."""
    text_encoder_lr: float = 5e-5
    """Learning rate of the text encoders' adapters, where they are trained."""

    def __post_init__(self) -> None:
        require_number("unet_lr", self.unet_lr, 0, 1e6, "1e-4 is a good start for AdamW.")
        require_number(
            "text_encoder_lr", self.text_encoder_lr, 0, 1e6, "Half of unet_lr or less is usual."
        )
        require_number("weight_decay", self.weight_decay, 0, 10, "0.01 is usual, 0 = off.")
        require_number("max_grad_norm", self.max_grad_norm, 0, 1e6, "1 is usual, 0 = off.")
        require_number(
            "loraplus_lr_ratio", self.loraplus_lr_ratio, 1e-3, 1e3, "1 = off, 4 to 16 is usual."
        )
        require_number("ema_decay", self.ema_decay, 0, 0.999999, "0.999 is usual, 0 = off.")
        parse_numbers("betas", self.betas, BETAS_EXAMPLE)
        parse_numbers("eps", self.eps, EPS_EXAMPLE)
        parse_arguments("optimizer_args", self.optimizer_args)
        from_package = self.optimizer_type is OptimizerType.PYTORCH_OPTIMIZER
        require(
            from_package or not self.optimizer_name.strip(),
            f'optimizer_name is "{self.optimizer_name}", but optimizer_type is '
            f"{self.optimizer_type.value}. Choose pytorch_optimizer there, or empty this text.",
        )
        require(
            not from_package or bool(self.optimizer_name.strip()),
            "optimizer_name is empty: optimizer_type pytorch_optimizer needs the name of one of "
            "that package's optimizers, for example soap.",
        )
        require(
            self.loraplus_lr_ratio == 1 or not self.kind.finds_its_rate,
            f"loraplus_lr_ratio is {self.loraplus_lr_ratio:g}, but {self.label} finds one learning "
            "rate for all weights. Set it to 1, or choose another optimizer.",
        )
        require(
            self.ema_decay == 0 or not self.kind.averages,
            f"ema_decay is {self.ema_decay:g}, but {self.label} averages the weights already. "
            "Set it to 0.",
        )

    @property
    def kind(self) -> Kind:
        """What is known of the chosen optimizer."""
        return kind_of(self.optimizer_type, self.optimizer_name.strip())

    @property
    def label(self) -> str:
        """The optimizer's name for people."""
        return self.optimizer_name.strip() or self.optimizer_type.value

    @property
    def written(self) -> str:
        """As kohya-ss/sd-scripts writes it into a file: ``Prodigy(d_coef=2,decouple=False)``."""
        arguments = parse_arguments("optimizer_args", self.optimizer_args)
        typed = ",".join(f"{name}={value}" for name, value in arguments.items())
        return f"{self.label}({typed})" if typed else self.label


def build_optimizer(network: Mapping[str, nn.Module], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """The optimizer over the adapters of ``network``, ready to train.

    Raises:
        AtelierError: its package is not installed, an argument does not exist or has no fitting
            value, or it cannot be used with these adapters.
    """
    constructor = spec.kind.load()
    arguments = _arguments(spec, constructor)
    groups = parameter_groups(network, spec)
    arguments["lr"] = groups[0]["lr"]  # what schedules with a min_lr measure it against
    try:
        optimizer = constructor(groups, **arguments)
    except AtelierError:
        raise
    except Exception as error:  # other people's code: whatever it is, the settings caused it
        reason = str(error) or "unet_lr, betas or eps is outside its range."
        raise AtelierError(f"{spec.label} refuses these settings: {reason}") from error
    if hasattr(optimizer, "train"):  # those that keep an average have two modes
        optimizer.train()
    return optimizer


def check_optimizer(spec: OptimizerSpec) -> None:
    """Build the optimizer over a toy, so that whatever is wrong is said before anything is loaded.

    One of pytorch-optimizer also has to take a step: some need a closure, second derivatives or the
    whole model.

    Raises:
        AtelierError: as :func:`build_optimizer`.
    """
    cpu = torch.device("cpu")
    with global_stream(cpu, 0, "toy"), cpu:
        toy = nn.ModuleDict({"toy": LoRA(nn.Linear(8, 8), 4, 4.0, generator(0, "toy"))})
        optimizer = build_optimizer(toy, spec)
        if spec.optimizer_type is OptimizerType.PYTORCH_OPTIMIZER:
            for parameter in toy.parameters():
                parameter.grad = torch.ones_like(parameter)
            try:
                optimizer.step()
            except Exception as error:  # as above
                raise AtelierError(
                    f"optimizer_name {spec.label}: this optimizer cannot train a LoRA here "
                    f"({type(error).__name__}: {error}). Choose another one."
                ) from error


def parameter_groups(network: Mapping[str, nn.Module], spec: OptimizerSpec) -> list[dict[str, Any]]:
    """The parameters at ``unet_lr``, then those of text encoders at ``text_encoder_lr``; with LoRA+
    the ``up`` matrices of both in groups of their own. Parts that are not trained have no group.

    Raises:
        AtelierError: LoRA+ was asked for and there are no such matrices.
    """
    plus = spec.loraplus_lr_ratio
    rates = {(False, False): spec.unet_lr, (True, False): spec.text_encoder_lr}
    rates |= {(text, True): rate * plus for (text, _), rate in rates.items()}
    found: dict[tuple[bool, bool], list[nn.Parameter]] = {kind: [] for kind in rates}
    for layer, adapter in network.items():
        for name, parameter in adapter.named_parameters():
            faster = plus != 1 and name.startswith("lora_up.")
            found[of_text_encoder(layer), faster].append(parameter)
    require(
        plus == 1 or any(parameters for (_, faster), parameters in found.items() if faster),
        f"loraplus_lr_ratio is {plus:g}, but this network has no up matrices "
        "that could learn faster. Set it to 1, or choose the algorithm LoRA.",
    )
    return [{"params": found[kind], "lr": rate} for kind, rate in rates.items() if found[kind]]


def effective_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the last step, of the first group.

    ``lr`` of the schedule, times the step size ``d`` that an optimizer found for itself (Prodigy,
    D-adaptation), and with a warm-up of its own where it reports that (schedule-free).
    """
    group = optimizer.param_groups[0]
    return float(group.get("scheduled_lr", group["lr"])) * float(group.get("d", 1.0))


def _arguments(spec: OptimizerSpec, constructor: Any) -> dict[str, Any]:
    """Everything the constructor gets beside the parameters."""
    function = constructor.__init__ if inspect.isclass(constructor) else constructor
    known = parameters(function)
    typed = parse_arguments("optimizer_args", spec.optimizer_args)
    check_arguments("optimizer_args", spec.label, function, typed, _NOT_TO_BE_TYPED)
    arguments = {"lr": spec.unet_lr, **spec.kind.defaults, **typed}
    if "weight_decay" in known:
        arguments["weight_decay"] = spec.weight_decay
    else:
        _require_unused(spec, "weight_decay", spec.weight_decay, 0)
    for widget, text, example in (
        ("betas", spec.betas, BETAS_EXAMPLE),
        ("eps", spec.eps, EPS_EXAMPLE),
    ):
        value = parse_numbers(widget, text, example)
        if value is None:
            continue
        if widget not in known:
            _require_unused(spec, widget, text, "empty")
        require(
            fits(known[widget], value),
            f'{widget} is "{text}": {spec.label} wants {_count(known[widget])}, '
            f"its own choice is {known[widget]}.",
        )
        arguments[widget] = value
    missing = [n for n, default in known.items() if default is inspect.Parameter.empty]
    missing = [n for n in missing if n not in arguments and n != "params"]
    require(
        not {"model", "optimizer"} & set(missing),
        f"optimizer_name {spec.label}: this optimizer cannot train a LoRA here (it is built on a "
        f"whole {' and '.join(missing)}). Choose another one.",
    )
    require(
        not missing,
        f"{spec.label} also needs {', '.join(missing)}: write {'=… '.join(missing)}=… into "
        "optimizer_args.",
    )
    return arguments


def _require_unused(spec: OptimizerSpec, widget: str, value: Any, unused: Any) -> None:
    require(
        value == unused,
        f"{widget} is {value}, but {spec.label} has no such setting. Make it {unused}; what it "
        "has goes into optimizer_args.",
    )


def _count(default: Any) -> str:
    return f"{len(default)} numbers" if isinstance(default, tuple) else "one number"
