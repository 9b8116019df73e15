"""One process of a team that trains the engine's small model: ``python team_member.py FOLDER``.

``RANK``, ``WORLD_SIZE`` and ``MASTER_PORT`` say which one, as launchers do. What becomes of each
case is saved as ``FOLDER/<case>-<rank>.pt``; `tests/unit/test_team.py` compares.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent

if "lora_atelier" not in sys.modules:  # a process of its own, and not pytest's
    pack = sys.modules["lora_atelier"] = types.ModuleType("lora_atelier")
    pack.__path__ = [str(TESTS.parent)]

import torch  # noqa: E402
from torch import nn  # noqa: E402

from lora_atelier.training.base_model.precision import accelerating  # noqa: E402
from lora_atelier.training.dataset.samples import Role  # noqa: E402
from lora_atelier.training.network.build import NetworkSpec  # noqa: E402
from lora_atelier.training.objective.objective import ObjectiveSpec, PriorSpec  # noqa: E402
from lora_atelier.training.optimizers.kinds import OptimizerType  # noqa: E402
from lora_atelier.training.optimizers.lr_scheduler import (  # noqa: E402
    LRSchedulerSpec,
    LRSchedulerType,
)
from lora_atelier.training.optimizers.optimizer import OptimizerSpec  # noqa: E402
from lora_atelier.training.runs.loop import train  # noqa: E402
from lora_atelier.training.runs.run import TrainingRun, TrainingState, start  # noqa: E402
from lora_atelier.training.runs.team import Team  # noqa: E402


def _small() -> Any:
    """The model and the listener that the engine's tests have in their conftest."""
    spec = importlib.util.spec_from_file_location("small_model", TESTS / "unit" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = _small()
CPU = torch.device("cpu")
STEPS = 5


class ExactModel(SMALL.SmallDiffusionModel):
    """In float64, so that what the order of a sum changes is not to be seen."""

    def __init__(self) -> None:
        super().__init__()
        with torch.inference_mode():
            self.net.double()

    def compute_dtype(self, choice: Any) -> torch.dtype:
        return torch.float64

    @contextmanager
    def training(
        self, network: Mapping[str, nn.Module], dtype: torch.dtype, memory_required: Any = None
    ) -> Iterator[Any]:
        adapters = {name.removeprefix("lora_unet_"): network[name] for name in network}
        context = SMALL.training_context(
            self.net, adapters, SMALL.lend, torch.float64, torch.float64, CPU
        )

        def predict(noisy: Any, sigmas: Any, conditioning: list, placements: list) -> Any:
            return self.net(noisy.double(), sigmas.double(), torch.stack(conditioning).double())

        with context:
            yield predict


class ExactRun(TrainingRun):
    def new_network(self, device: torch.device = CPU) -> nn.ModuleDict:
        return super().new_network(device).double()


def exact_run(repeats: tuple[int, ...] = (1, 1, 1, 1, 1), **choices: Any) -> TrainingRun:
    """As :func:`usual_run`, in float64."""
    run = usual_run(repeats, ExactModel(), **choices)
    return ExactRun(run.spec, run.data, run.model)


def usual_run(
    repeats: tuple[int, ...] = (1, 1, 1, 1, 1), model: Any = None, **choices: Any
) -> TrainingRun:
    """SGD without momentum, in float32."""
    choices.setdefault("train_batch_size", 4)
    return SMALL.small_run(
        repeats,
        model,
        optimizer=OptimizerSpec(OptimizerType.SGD, unet_lr=0.1, max_grad_norm=0.5),
        lr_scheduler=LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.0),
        **choices,
    )


def with_roles(run: TrainingRun, roles: Mapping[int, Role]) -> TrainingRun:
    samples = list(run.dataset.samples)
    for index, role in roles.items():
        samples[index] = replace(samples[index], role=role)
    dataset = replace(run.dataset, samples=tuple(samples))
    return type(run)(run.spec, replace(run.data, dataset=dataset), run.model)


def trained(run: TrainingRun, steps: int = STEPS, listener: Any = None) -> dict[str, Any]:
    return told(train(start(run), steps, listener or SMALL.RecordingListener()))


def told(state: TrainingState) -> dict[str, Any]:
    """What a state holds, as plain values."""
    return {
        "weights": dict(state.network),
        "losses": [record.loss for record in state.history],
        "norms": [record.grad_norm for record in state.history],
        "validations": [[p.loss, p.base_loss] for p in state.validations],
    }


def plain() -> dict[str, Any]:
    """Five pictures in batches of four: the second batch has one, and a share of it is empty."""
    return trained(exact_run())


def accumulated() -> dict[str, Any]:
    return trained(exact_run(train_batch_size=3, gradient_accumulation_steps=3))


def preserved() -> dict[str, Any]:
    """Each picture a second time under a class prompt, and one that only regularises."""
    prior = PriorSpec(prior_preservation=0.7, class_prompt="caption 0")
    run = usual_run(objective=ObjectiveSpec(prior=prior))
    return trained(with_roles(run, {3: Role.REGULARISATION}))


def validated() -> dict[str, Any]:
    run = exact_run(validate_every_n_steps=2)
    return trained(with_roles(run, {1: Role.VALIDATION, 4: Role.VALIDATION}))


def dropped_out() -> dict[str, Any]:
    """In float32 with Adam."""
    network = NetworkSpec(4, 4.0, network_dropout=0.5)
    return trained(SMALL.small_run(network=network, train_batch_size=4))


def lone_gradients() -> dict[str, Any]:
    """One parameter has a gradient in the last process alone, one nowhere, two types are mixed."""
    with accelerating(CPU, torch.float32) as accelerator:
        kinds = (torch.float32, torch.float32, torch.bfloat16)
        parameters = [nn.Parameter(torch.ones(3, dtype=kind)) for kind in kinds]
        team = Team(accelerator, parameters, CPU)
        if team.rank == team.size - 1:
            parameters[0].grad = torch.full((3,), 5.0)
        parameters[2].grad = torch.full((3,), 2.0, dtype=torch.bfloat16)
        loss = team.add_up_gradients(0.5)
    return {"loss": loss, "gradients": [p.grad for p in parameters], "key": team.key}


def refused() -> dict[str, Any]:
    return ended(lambda: trained(exact_run(train_batch_size=1)))


def other_step() -> dict[str, Any]:
    """The last process goes on from another step."""
    state = start(exact_run())
    return ended(lambda: told(train(replace(state, step=rank() * 40), 2, _Recorder())))


def stopped() -> dict[str, Any]:
    """The last process is cancelled before its fourth micro-step, in the middle of step 2."""
    error = KeyboardInterrupt("cancelled") if is_last() else None
    listener = _Recorder(micro_step=4, error=error)
    run = exact_run(gradient_accumulation_steps=2)
    return ended(lambda: trained(run, listener=listener)) | _kept(listener)


def failed_after_a_step() -> dict[str, Any]:
    """The first process, which writes, fails after step 2."""
    error = OSError("disk full") if rank() == 0 else None
    listener = _Recorder(step=2, error=error)
    return ended(lambda: trained(exact_run(), listener=listener)) | _kept(listener)


def finished() -> dict[str, Any]:
    """One process wishes the end after step 3."""
    return trained(exact_run(), listener=_Recorder(finish=3 if is_last() else 0))


def drifted() -> dict[str, Any]:
    """A weight of the last process changes; the first one wants to save."""
    listener = _Recorder(saves_at=3)
    return {**ended(lambda: trained(exact_run(), listener=listener)), **_kept(listener)}


def saved() -> dict[str, Any]:
    """As the last, but nothing drifts: asking changes nothing."""
    return trained(exact_run(), listener=_Recorder(saves_at=3, drifts=False))


def killed() -> dict[str, Any]:
    """The last process is gone after step 2, without a word."""
    return ended(lambda: trained(exact_run(), listener=_Recorder(dies_at=2)))


CASES: tuple[Callable[[], dict[str, Any]], ...] = (
    *(plain, accumulated, preserved, validated, dropped_out, lone_gradients, refused, other_step),
    *(stopped, failed_after_a_step, finished, drifted, saved, killed),
)


class _Recorder(SMALL.RecordingListener):
    def __init__(self, saves_at: int = 0, drifts: bool = True, dies_at: int = 0, **others: Any):
        super().__init__(**others)
        self.saves_at, self.drifts, self.dies_at = saves_at, drifts, dies_at

    def on_step(self, record: Any, last_step: int, freeze: Any) -> None:
        super().on_step(record, last_step, freeze)
        if record.step == self.dies_at and is_last():
            os._exit(9)
        if record.step != self.saves_at:
            return
        if is_last() and self.drifts:
            trainer = freeze.__self__
            next(trainer.network.parameters()).data[0] += 1e-9
        if rank() == 0:
            freeze()


def ended(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """How something came to an end."""
    try:
        return {"error": "", **work()}
    except (Exception, KeyboardInterrupt) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _kept(listener: Any) -> dict[str, Any]:
    return {"interrupted_at": [state.step for state in listener.interrupted]}


def rank() -> int:
    return int(os.environ.get("RANK", 0))


def is_last() -> bool:
    return rank() == int(os.environ.get("WORLD_SIZE", 1)) - 1


def main(folder: Path) -> None:
    for case in CASES:
        torch.save(ended(case), folder / f"{case.__name__}-{rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
