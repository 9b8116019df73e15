"""Learning-rate schedules, from ``transformers``, with the warm-up that suits the run.

Automatic warm-up takes a share of the steps that grows with the pictures n that the run looks at:

    share(n) = 5 % + 2.5 % · log10(n / 10,000), at least 5 %, at most 20 %

which is 5 % up to 10,000 pictures and 10 % at a million.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch

from ..errors import AtelierError, needed_package, require, require_number
from .arguments import check_arguments, parse_arguments

PLATEAU_AVERAGE = 0.98
"""Decay of the moving average of the loss that `reduce_lr_on_plateau` watches: about 50 steps."""


class LRSchedulerType(str, Enum):
    """Shape of the rate after warm-up, under the names of ``transformers.get_scheduler``."""

    CONSTANT = "constant"
    COSINE = "cosine"
    LINEAR = "linear"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    INVERSE_SQRT = "inverse_sqrt"
    WARMUP_STABLE_DECAY = "warmup_stable_decay"
    COSINE_WITH_MIN_LR = "cosine_with_min_lr"
    REDUCE_ON_PLATEAU = "reduce_lr_on_plateau"


class WarmupType(str, Enum):
    """What the length of the warm-up is taken from."""

    RATIO = "ratio"
    STEPS = "steps"
    AUTO = "auto"


_DEFAULTS: dict[LRSchedulerType, dict[str, Any]] = {
    LRSchedulerType.COSINE_WITH_RESTARTS: {"num_cycles": 3},
    LRSchedulerType.POLYNOMIAL: {"power": 2.0},
    LRSchedulerType.COSINE_WITH_MIN_LR: {"min_lr_rate": 0.1},
    # A single step's loss tells little: look at many of its average before giving up on a rate.
    LRSchedulerType.REDUCE_ON_PLATEAU: {"factor": 0.5, "patience": 100, "threshold": 1e-3},
}
"""Arguments in which we differ from transformers, whose own would make another shape of these."""

_SET_BY_THE_RUN = (
    *("optimizer", "last_epoch", "mode", "verbose"),
    *("num_warmup_steps", "num_training_steps", "num_stable_steps"),
)


@dataclass(frozen=True)
class LRSchedulerSpec:
    """How the learning rate moves over the run."""

    lr_scheduler: LRSchedulerType = LRSchedulerType.COSINE
    lr_warmup_ratio: float = 0.05
    """Share of the steps in which the rate climbs from 0 to its full value, for `ratio`."""
    lr_warmup: WarmupType = WarmupType.RATIO
    lr_warmup_steps: int = 0
    """Optimizer steps of warm-up, for `steps`."""
    lr_scheduler_args: str = ""
    """The schedule's own arguments, ``name=value name=value``."""

    def __post_init__(self) -> None:
        require_number(
            "lr_warmup_ratio",
            self.lr_warmup_ratio,
            0,
            1,
            "0.05 suits small sets, 0.1 to 0.2 very large ones.",
        )
        require_number(
            "lr_warmup_steps", self.lr_warmup_steps, 0, 10_000_000, "50 to 500 is usual, 0 = none."
        )
        parse_arguments("lr_scheduler_args", self.lr_scheduler_args)

    def warmup_steps(self, max_train_steps: int, samples: int) -> int:
        """Optimizer steps of warm-up.

        Args:
            samples: pictures the whole run looks at, repeats counted.
        """
        if self.lr_warmup is WarmupType.STEPS:
            return self.lr_warmup_steps
        share = self.lr_warmup_ratio
        if self.lr_warmup is WarmupType.AUTO:
            share = warmup_share(samples)
        return round(share * max_train_steps)


def warmup_share(samples: int) -> float:
    """Automatic warm-up, 0.05 to 0.2: see the formula above."""
    return min(0.2, 0.05 + 0.025 * math.log10(max(samples, 10_000) / 10_000))


class Schedule(Protocol):
    """Sets the learning rates of an optimizer."""

    def step(self, loss: float) -> None:
        """After an optimizer step: the rate of the next one."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], taken: int) -> None:
        """Go on from there; where it was laid out for a shorter run, at the rate of the longer.

        Args:
            taken: optimizer steps so far.
        """
        ...

    def jump(self, step: int) -> None:
        """Go on as if ``step`` steps had been taken with this schedule."""
        ...

    def scale(self, factor: float) -> None:
        """From now on all rates are multiplied by ``factor``."""
        ...

    def factor(self, step: int) -> float:
        """Share of the full rate with which step number ``step`` (from 0) is taken."""
        ...


def build_lr_scheduler(
    optimizer: torch.optim.Optimizer, spec: LRSchedulerSpec, max_train_steps: int, samples: int
) -> Schedule:
    """A schedule whose horizon is ``max_train_steps`` optimizer steps.

    Args:
        samples: pictures the whole run looks at; decides automatic warm-up.

    Raises:
        AtelierError: an argument of the schedule does not exist or does not fit.
    """
    transformers = needed_package("transformers.optimization", "The learning-rate schedule")
    warmup = spec.warmup_steps(max_train_steps, samples)
    arguments = _arguments(spec, transformers, max_train_steps, warmup)
    name = spec.lr_scheduler.value
    if spec.lr_scheduler is LRSchedulerType.CONSTANT:
        name = "constant_with_warmup"  # without warm-up it is constant
    try:
        schedule = transformers.get_scheduler(
            name, optimizer, warmup, max_train_steps, scheduler_specific_kwargs=arguments
        )
    except ZeroDivisionError as error:
        raise AtelierError(
            f"lr_scheduler {name}: min_lr is a rate, which means nothing where the learning rate "
            "is 0. Give min_lr_rate instead, or a learning rate."
        ) from error
    except (ValueError, TypeError) as error:
        raise AtelierError(f"lr_scheduler {name}: {error}") from error
    if spec.lr_scheduler is LRSchedulerType.REDUCE_ON_PLATEAU:
        return _Plateau(optimizer, schedule, warmup)
    return _Planned(schedule, max_train_steps)


def check_lr_scheduler(
    spec: LRSchedulerSpec, max_train_steps: int, samples: int, lr: float = 1e-4
) -> Schedule:
    """The schedule over a toy, so that whatever is wrong is said before anything is loaded.

    Raises:
        AtelierError: as :func:`build_lr_scheduler`.
    """
    toy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return build_lr_scheduler(toy, spec, max_train_steps, samples)


class _Planned:
    """A schedule that depends on the step alone."""

    def __init__(self, schedule: torch.optim.lr_scheduler.LambdaLR, horizon: int) -> None:
        self.schedule = schedule
        self.horizon = horizon

    def step(self, loss: float) -> None:
        self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        return {"planned": self.schedule.state_dict(), "horizon": self.horizon}

    def load_state_dict(self, state: dict[str, Any], taken: int) -> None:
        self.schedule.load_state_dict(state["planned"])
        if state["horizon"] != self.horizon:
            self.jump(taken)

    def factor(self, step: int) -> float:
        return float(self.schedule.lr_lambdas[0](step))

    def jump(self, step: int) -> None:
        self.schedule.last_epoch = min(step, self.horizon - 1)
        self._set_rates()

    def scale(self, factor: float) -> None:
        self.schedule.base_lrs = [rate * factor for rate in self.schedule.base_lrs]
        self._set_rates()

    def _set_rates(self) -> None:
        schedule = self.schedule
        rates = [
            base * shape(schedule.last_epoch)
            for base, shape in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, base, rate in zip(
            schedule.optimizer.param_groups, schedule.base_lrs, rates, strict=True
        ):
            group["initial_lr"], group["lr"] = base, rate
        schedule._last_lr = rates


class _Plateau:
    """Warm-up, then the full rate until the smoothed loss no longer falls.

    ``transformers`` has no warm-up here; it is the straight line of its other schedules. The loss
    is averaged from the first step on and judged from the end of the warm-up on.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.ReduceLROnPlateau,
        warmup: int,
    ) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup = warmup
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.steps = 0
        self.losses = 0
        """How many the average has seen; fewer than the steps after a jump."""
        self.average = 0.0
        self._warm_up()

    def step(self, loss: float) -> None:
        self.steps += 1
        self.losses += 1
        self.average = PLATEAU_AVERAGE * self.average + (1 - PLATEAU_AVERAGE) * loss
        if self.steps <= self.warmup:
            self._warm_up()
        else:
            self.schedule.step(self.average / (1 - PLATEAU_AVERAGE**self.losses))

    def state_dict(self) -> dict[str, Any]:
        return {
            "plateau": self.schedule.state_dict(),
            "steps": self.steps,
            "losses": self.losses,
            "average": self.average,
            "rates": self.rates,
        }

    def load_state_dict(self, state: dict[str, Any], taken: int) -> None:
        self.schedule.load_state_dict(state["plateau"])
        self.steps = state["steps"]
        self.losses = state["losses"]
        self.average = state["average"]
        self.rates = state["rates"]

    def factor(self, step: int) -> float:
        return min(1.0, step / max(1, self.warmup)) if step < self.warmup else 1.0

    def jump(self, step: int) -> None:
        self.steps = step
        self._warm_up()

    def scale(self, factor: float) -> None:
        self.rates = [rate * factor for rate in self.rates]
        for group in self.optimizer.param_groups:
            group["lr"] *= factor

    def _warm_up(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.factor(self.steps)


def _arguments(
    spec: LRSchedulerSpec, transformers: Any, max_train_steps: int, warmup: int
) -> dict[str, Any]:
    """The schedule's own arguments: ours, and over them those that were typed."""
    typed = parse_arguments("lr_scheduler_args", spec.lr_scheduler_args)
    kind = spec.lr_scheduler
    function = _function(kind, transformers)
    check_arguments("lr_scheduler_args", kind.value, function, typed, _SET_BY_THE_RUN)
    arguments = {**_DEFAULTS.get(kind, {}), **typed}
    if kind is LRSchedulerType.COSINE_WITH_MIN_LR and "min_lr" in typed:
        require(
            "min_lr_rate" not in typed,
            "lr_scheduler_args: min_lr is a rate and min_lr_rate a share of unet_lr. Give one.",
        )
        del arguments["min_lr_rate"]
    if kind is LRSchedulerType.WARMUP_STABLE_DECAY:
        left = max_train_steps - warmup
        decay = arguments.setdefault("num_decay_steps", min(left, math.ceil(max_train_steps / 10)))
        require(
            isinstance(decay, int) and 0 <= decay <= left,
            f"num_decay_steps is {decay}, but after {warmup} steps of warm-up only {left} of the "
            f"{max_train_steps} steps are left. Make it or the warm-up shorter.",
        )
    return arguments


def _function(kind: LRSchedulerType, transformers: Any) -> Callable[..., Any]:
    """Where the names of the schedule's arguments stand."""
    if kind is LRSchedulerType.REDUCE_ON_PLATEAU:
        return torch.optim.lr_scheduler.ReduceLROnPlateau.__init__
    name = transformers.SchedulerType(kind.value)
    return transformers.TYPE_TO_SCHEDULER_FUNCTION[name]
