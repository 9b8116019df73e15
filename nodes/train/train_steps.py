"""The node that trains on from a state."""

from __future__ import annotations

import math
import time
from enum import Enum

from comfy_api.latest import io

from ...training.errors import require_number
from ...training.optimizers.lr_scheduler import LRSchedulerSpec
from ...training.optimizers.optimizer import OptimizerSpec
from ...training.results.preview_spec import PreviewSpec
from ...training.runs.branch import branch
from ...training.runs.checkpoints import CheckpointSpec
from ...training.runs.preflight import preflight
from ...training.runs.run import TrainingRun, TrainingState
from ..graph.checks import choice, verdict
from ..graph.wires import AtelierOptimizer, AtelierScheduler, AtelierState
from ..live.monitor import watched
from ..live.progress import show_text
from .run_in_graph import Resume, RunOptions, results, summary, train_in_graph
from .training_inputs import keeping_inputs, result_outputs


class Unit(str, Enum):
    """What the length of a piece of training is counted in."""

    STEPS = "steps"
    EPOCHS = "epochs"


class TrainSteps(io.ComfyNode):
    """A training state -> a later one, with the LoRA as it is then."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierTrainSteps",
            display_name="Train Steps",
            category="training/atelier",
            description=(
                "Trains on from a state for some steps or epochs. The state that comes in stays as "
                "it is, so several of these nodes may go on from the same one with different "
                "learning rates. After max_train_steps of Start Training the last learning rate "
                "holds."
            ),
            inputs=[
                AtelierState.Input(
                    "state", tooltip="From Start Training, Train Steps or Load Training State."
                ),
                io.Int.Input(
                    "amount",
                    default=200,
                    min=1,
                    max=10_000_000,
                    tooltip=(
                        "How long to train on, in what unit says. Raising it later extends the "
                        "run: what was trained already is not trained again."
                    ),
                ),
                io.Combo.Input(
                    "unit",
                    options=Unit,
                    default=Unit.STEPS,
                    tooltip=(
                        "steps: optimizer steps. epochs: passes over the dataset, repeats counted."
                    ),
                ),
                AtelierOptimizer.Input(
                    "optimizer",
                    optional=True,
                    tooltip=(
                        "Goes on with another optimizer or other learning rates. Not connected: as "
                        "before. With new rates alone the optimizer keeps what it remembers."
                    ),
                ),
                AtelierScheduler.Input(
                    "scheduler",
                    optional=True,
                    tooltip=(
                        "Goes on with another schedule, as if it had been there from the first "
                        "step. Not connected: as before."
                    ),
                ),
                *keeping_inputs(),
            ],
            outputs=result_outputs(),
        )

    @classmethod
    def validate_inputs(cls, amount: int | None = None) -> bool | str:
        return verdict(_check_amount, amount)

    @classmethod
    def execute(
        cls,
        state: TrainingState,
        amount: int,
        unit: str,
        optimizer: OptimizerSpec | None = None,
        scheduler: LRSchedulerSpec | None = None,
        resume: str = Resume.RESUME.value,
        checkpoints: CheckpointSpec | None = None,
        preview: PreviewSpec | None = None,
    ) -> io.NodeOutput:
        _check_amount(amount)
        state = branch(state, optimizer, scheduler)
        lines = preflight(state.run.spec)
        steps = amount
        if choice("unit", unit, Unit) is Unit.EPOCHS:
            steps = steps_of_epochs(state.run, amount)
        last_step, horizon = state.step + steps, state.run.spec.max_train_steps
        if last_step > horizon:
            lines.append(
                f"From step {horizon} on the learning rate holds: the schedule was laid out for "
                "max_train_steps on Start Training."
            )
        options = RunOptions(
            choice("resume", resume, Resume), checkpoints or CheckpointSpec(), preview
        )
        started = time.monotonic()
        with watched(state.history, state.validations) as monitor:
            state = train_in_graph(state, last_step, options, monitor)
        show_text("\n".join([summary(state, time.monotonic() - started), *lines]))
        return io.NodeOutput(state, *results(state))


def steps_of_epochs(run: TrainingRun, epochs: int) -> int:
    """Optimizer steps in which so many epochs are seen, the last of them perhaps with a few
    pictures of the next one."""
    return math.ceil(epochs * run.plan.batches_per_epoch / run.spec.gradient_accumulation_steps)


def _check_amount(amount: int) -> None:
    require_number("amount", amount, 1, 10_000_000, "200 steps is a good piece.")
