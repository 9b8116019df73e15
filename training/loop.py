"""The training loop: a state and a number of steps give a later state."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from .averaging import MovingAverage, keeps_an_average, weights_to_use
from .batch_losses import loss_terms
from .errors import AtelierError
from .lr_scheduler import build_lr_scheduler
from .network import limit_norms
from .optimizer import build_optimizer, effective_rate
from .precision import accelerating
from .random_streams import global_stream
from .run import Predict, StepRecord, TrainingRun, TrainingState

MAX_SKIPPED_IN_A_ROW = 20


class Listener(Protocol):
    """Hears of a run as it goes; may raise to end it."""

    def on_micro_step(self) -> None:
        """Before every forward pass; the place to look for Cancel."""

    def on_step(self, record: StepRecord, last_step: int) -> None:
        """After every optimizer step."""

    def on_interrupted(self, state: TrainingState) -> None:
        """The loop is being left by an exception; ``state`` is the last whole step."""


class TrainingDiverged(AtelierError):
    """The numbers of a run are no longer finite."""


@torch.inference_mode(False)  # the host runs nodes in inference mode, which enable_grad won't lift
@torch.enable_grad()
def train(state: TrainingState, steps: int, listener: Listener) -> TrainingState:
    """Train on from ``state`` for ``steps`` optimizer steps; ``state`` itself stays as it is."""
    model = state.run.model
    dtype = model.compute_dtype(state.run.spec.mixed_precision)
    with accelerating(model.device, dtype) as accelerator:
        trainer = _Trainer(state, accelerator)
        last_step = state.step + steps
        try:
            with model.training(trainer.network, dtype) as predict:
                while trainer.step < last_step:
                    record = trainer.train_step(predict, listener.on_micro_step)
                    listener.on_step(record, last_step)
        except BaseException:
            listener.on_interrupted(trainer.freeze())
            raise
        return trainer.freeze()


class _Trainer:
    """The moving parts of one call of :func:`train`: weights, optimizer, schedule, position."""

    def __init__(self, state: TrainingState, accelerator: Any) -> None:
        self.run: TrainingRun = state.run
        self.accelerator = accelerator
        self.step = state.step
        self.history = list(state.history)
        spec, model = state.run.spec, state.run.model
        self.network = state.run.new_network()
        self.network.load_state_dict(state.training_weights or state.network)
        self.network.to(model.device)
        self.average: MovingAverage | None = None
        if spec.optimizer.ema_decay > 0:
            self.average = MovingAverage(self.network, spec.optimizer.ema_decay)
            self.average.load(state.network)
        self.bare_optimizer = build_optimizer(self.network, spec.optimizer)
        self.scheduler = build_lr_scheduler(
            self.bare_optimizer, spec.lr_scheduler, spec.max_train_steps, spec.samples
        )
        self.optimizer = self.accelerator.prepare_optimizer(
            self.bare_optimizer, device_placement=False
        )
        if state.optimizer is not None:
            for name, part in self._stateful().items():
                part.load_state_dict(deepcopy(state.optimizer[name]))

    def train_step(self, predict: Predict, on_micro_step: Callable[[], None]) -> StepRecord:
        """One optimizer step over ``gradient_accumulation_steps`` micro-batches."""
        accumulation = self.run.spec.gradient_accumulation_steps
        first = self.step * accumulation
        batches = [self.run.plan.batch(first + i) for i in range(accumulation)]
        pictures = sum(len(batch) for batch in batches)  # the last batch of an epoch may be short
        loss = 0.0
        self.optimizer.zero_grad(set_to_none=True)  # also what an interrupted step left behind
        with self._dropouts():
            for batch in batches:
                for term in loss_terms(self.run.spec.objective):
                    on_micro_step()
                    batch_loss = term(self.run, batch, predict).sum() / pictures
                    self.accelerator.backward(batch_loss)
                    loss += batch_loss.item()
        rate = float(self.optimizer.param_groups[0]["lr"])
        return self._apply(
            StepRecord(self.step + 1, batches[-1][-1].epoch, loss, rate, self._clip())
        )

    def _apply(self, record: StepRecord) -> StepRecord:
        """Take the optimizer step, unless its numbers are not finite."""
        scaling = self.accelerator.scaler is not None
        if not math.isfinite(record.loss) or not (scaling or math.isfinite(record.grad_norm)):
            raise TrainingDiverged(_divergence_message(record))
        with global_stream(self.run.model.device, self.run.spec.seed, "optimizer", record.step):
            self.optimizer.step()
        skipped = self.optimizer.step_was_skipped
        record = replace(record, learning_rate=effective_rate(self.bare_optimizer), skipped=skipped)
        if not skipped:
            limit_norms(self.network, self.run.spec.network)
            if record.step < self.run.spec.max_train_steps:  # past it the rate holds
                self.scheduler.step(record.loss)
            if self.average is not None:
                self.average.update(self.network, record.step)
        self.history.append(record)
        self.step = record.step
        if len(self.history) >= MAX_SKIPPED_IN_A_ROW and all(
            r.skipped for r in self.history[-MAX_SKIPPED_IN_A_ROW:]
        ):
            raise TrainingDiverged(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row overflowed in fp16. "
                "Choose mixed_precision bf16, or a lower unet_lr."
            )
        return record

    def _dropouts(self) -> AbstractContextManager[None]:
        """Adapters draw from torch's stream what drops out: let it be that of this step."""
        if not self.run.spec.network.drops_out:
            return nullcontext()
        return global_stream(self.run.model.device, self.run.spec.seed, "dropout", self.step)

    def _clip(self) -> float:
        limit = self.run.spec.optimizer.max_grad_norm or math.inf
        return float(self.accelerator.clip_grad_norm_(self.network.parameters(), limit))

    def _stateful(self) -> dict[str, Any]:
        parts = {"optimizer": self.optimizer, "lr_scheduler": self.scheduler}
        if self.accelerator.scaler is not None:
            parts["scaler"] = self.accelerator.scaler
        return parts

    def freeze(self) -> TrainingState:
        """The present as a value that later steps cannot change."""
        if self.step == 0:
            optimizer = None
        else:
            optimizer = {name: _copied(p.state_dict()) for name, p in self._stateful().items()}
        raw = to_use = _copied(dict(self.network.state_dict()))
        if self.step > 0 and (self.average is not None or keeps_an_average(self.bare_optimizer)):
            with weights_to_use(self.network, self.bare_optimizer, self.average):
                to_use = _copied(dict(self.network.state_dict()))
        return TrainingState(
            run=self.run,
            step=self.step,
            network=to_use,
            optimizer=optimizer,
            history=tuple(self.history),
            training_weights=None if to_use is raw else raw,
        )


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return deepcopy(value)


def _divergence_message(record: StepRecord) -> str:
    what = "loss" if not math.isfinite(record.loss) else "gradient"
    return (
        f"Training diverged at step {record.step}: the {what} is not a finite number. "
        f"The rate was {record.learning_rate:g}: try a tenth of it, a longer warm-up, or "
        "mixed_precision bf16 or no. The LoRA of the step before is kept."
    )
