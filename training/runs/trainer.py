"""The moving parts of a run: weights, optimizer, schedule, position; and one step of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..base_model.backward import backward_told
from ..network.build import limit_norms
from ..objective.batch_losses import loss_terms
from ..optimizers.averaging import MovingAverage, keeps_an_average, weights_to_use
from ..optimizers.lr_scheduler import build_lr_scheduler
from ..optimizers.optimizer import build_optimizer, effective_rate
from ..random_streams import global_stream
from .adapter_precision import AdapterStorage
from .identity import tensors_digest
from .listener import Listener
from .run import Predict, StepRecord, TrainingRun, TrainingState
from .team import DIGEST_BITS, Team, require_enough
from .validation import validate


class Trainer:
    """A state thawed: what :func:`training.runs.loop.train` moves on."""

    def __init__(self, state: TrainingState, accelerator: Any) -> None:
        self.run: TrainingRun = state.run
        self.accelerator = accelerator
        self.network = state.run.new_network()
        self.network.to(state.run.model.device)
        trained = [p for p in self.network.parameters() if p.requires_grad]
        self.team = Team(accelerator, trained, state.run.model.device)
        require_enough(state.run.spec.train_batch_size, self.team.size)
        self.is_torn = False
        """True while weights and their bookkeeping change: an error then leaves half a step."""
        self.take(state)

    def go_back(self, state: TrainingState) -> None:
        """Become what the run was before."""
        # It would unscale by all its optimizers, and the one so far has the same gradients.
        self.accelerator.free_memory()
        self.take(state)

    def take(self, state: TrainingState) -> None:
        """Become what ``state`` was, in the adapters that are attached to the model."""
        self.step = state.step
        self.history = list(state.history)
        self.validations = list(state.validations)
        spec = state.run.spec
        for parameter in self.network.parameters():  # those of narrow adapters
            wide = torch.promote_types(parameter.dtype, torch.float32)
            parameter.grad, parameter.data = None, parameter.data.to(wide)
        self.network.load_state_dict(state.training_weights or state.network)
        self.storage = AdapterStorage(self.network, spec.adapter_precision, spec.seed, self.step)
        with self.storage.widened(self.step):
            self._build(state)

    def _build(self, state: TrainingState) -> None:
        """What is built on the weights."""
        spec = state.run.spec
        self.average: MovingAverage | None = None
        if spec.optimizer.ema_decay > 0:
            self.average = MovingAverage(self.network, spec.optimizer.ema_decay)
            if state.step > 0:
                self.average.load(state.network)
        self.bare_optimizer = build_optimizer(self.network, spec.optimizer)
        self.scheduler = build_lr_scheduler(
            self.bare_optimizer, spec.lr_scheduler, spec.max_train_steps, spec.samples
        )
        self.optimizer = self.accelerator.prepare_optimizer(
            self.bare_optimizer, device_placement=False
        )
        if state.optimizer is not None:
            self._recall(deepcopy(dict(state.optimizer)))

    def _recall(self, remembered: dict[str, Any]) -> None:
        """What a state knows of optimizer, schedule and loss scaler; a branch may lack some."""
        taken = sum(not record.skipped for record in self.history)
        schedule = remembered.pop("lr_scheduler", None)
        for name, part in self._stateful().items():
            if name in remembered:
                part.load_state_dict(remembered[name])
        if schedule is None:
            self.scheduler.jump(taken)
        else:
            self.scheduler.load_state_dict(schedule, taken)

    def train_step(self, predict: Predict, on_micro_step: Callable[[], None]) -> StepRecord:
        """One optimizer step over ``gradient_accumulation_steps`` micro-batches, of each of which
        this process computes its share."""
        accumulation = self.run.spec.gradient_accumulation_steps
        first = self.step * accumulation
        batches = [self.run.plan.batch(first + i) for i in range(accumulation)]
        pictures = sum(len(batch) for batch in batches)  # the last batch of an epoch may be short
        losses = []
        self.optimizer.zero_grad(set_to_none=True)  # also what an interrupted step left behind
        with self._dropouts():
            for batch in map(self.team.share, batches):
                for term in loss_terms(self.run.spec.objective):
                    on_micro_step()
                    if not batch:  # of a short one there may be nothing left for this process
                        continue
                    batch_loss = term(self.run, batch, predict).sum() / pictures
                    with backward_told():
                        self.accelerator.backward(batch_loss)
                    losses.append(batch_loss.detach())
        # Read together: each reading makes the processor wait for all that a GPU has still to do.
        loss = self.team.add_up_gradients(sum(torch.stack(losses).tolist()) if losses else 0.0)
        rate = float(self.optimizer.param_groups[0]["lr"])
        with self.storage.widened(self.step + 1):
            return self._apply(
                StepRecord(self.step + 1, batches[-1][-1].epoch, loss, rate, self._clip())
            )

    def _apply(self, record: StepRecord) -> StepRecord:
        """Take the optimizer step, unless its numbers are not finite."""
        finite = math.isfinite(record.loss) and math.isfinite(record.grad_norm)
        if finite or self.scales_losses:  # the scaler passes over what is not finite by itself
            stream = (self.run.spec.seed, "optimizer", record.step)
            self.is_torn = True
            with global_stream(self.run.model.device, *stream):
                self.optimizer.step()
        skipped = self.optimizer.step_was_skipped or not (finite or self.scales_losses)
        record = replace(record, learning_rate=effective_rate(self.bare_optimizer), skipped=skipped)
        if not skipped:
            limit_norms(self.network, self.run.spec.network)
            if record.step < self.run.spec.max_train_steps:  # past it the rate holds
                self.scheduler.step(record.loss)
            if self.average is not None:
                self.average.update(self.network, record.step)
        self.history.append(record)
        self.step = record.step
        self.is_torn = False
        return record

    @property
    def scales_losses(self) -> bool:
        """fp16: an overflow is to be expected now and then."""
        return self.accelerator.scaler is not None

    def is_finite(self) -> bool:
        """Whether all weights are."""
        return bool(torch.nn.utils.get_total_norm(self.network.parameters()).isfinite())

    def scale_rates(self, factor: float) -> None:
        """Learn at ``factor`` times the rate from now on."""
        self.scheduler.scale(factor)

    def validate(self, predict: Predict, listener: Listener, is_end: bool = False) -> None:
        """Measure the held-out loss where it is due: at step 0, every so many steps, at the end."""
        every = self.run.spec.steps_between_validations
        measured = self.validations and self.validations[-1].step == self.step
        if every is None or measured or not self.run.held_out.batches:
            return
        if self.step % every == 0 or is_end:
            with self._as_saved():
                point = validate(self.run, self.step, predict, listener.on_micro_step, self.team)
            self.validations.append(point)
            listener.on_validation(point)

    @contextmanager
    def _as_saved(self) -> Iterator[None]:
        """Inside, the network is the one that would be saved, and nothing drops out."""
        self.network.eval()
        try:
            with self.storage.widened(self.step), self._weights_to_use():
                yield
        finally:
            self.network.train()

    @property
    def _is_averaged(self) -> bool:
        """The weights to use are not those that are trained."""
        averaged = self.average is not None or keeps_an_average(self.bare_optimizer)
        return averaged and self.step > 0

    def _weights_to_use(self) -> AbstractContextManager[None]:
        if not self._is_averaged:
            return nullcontext()
        return weights_to_use(self.network, self.bare_optimizer, self.average)

    def _dropouts(self) -> AbstractContextManager[None]:
        """Adapters draw from torch's stream what drops out: let it be that of this step."""
        if not self.run.spec.network.drops_out:
            return nullcontext()
        key = ("dropout", self.step, *self.team.key)
        return global_stream(self.run.model.device, self.run.spec.seed, *key)

    def _clip(self) -> float:
        limit = self.run.spec.optimizer.max_grad_norm or math.inf
        return float(self.accelerator.clip_grad_norm_(self.network.parameters(), limit))

    def _stateful(self) -> dict[str, Any]:
        parts = {"optimizer": self.optimizer, "lr_scheduler": self.scheduler}
        if self.accelerator.scaler is not None:
            parts["scaler"] = self.accelerator.scaler
        return parts

    def digest(self) -> int:
        """Of the weights, in as many bits as a :class:`Team` compares."""
        return int(tensors_digest(dict(self.network.state_dict())), 16) % (1 << DIGEST_BITS)

    def freeze_for_file(self) -> TrainingState:
        """As :meth:`freeze`, of weights that all processes have: one asks, the others answer in
        :meth:`Team.agree_to_finish`."""
        self.team.compare_first(self.digest)
        return self.freeze()

    def freeze(self) -> TrainingState:
        """The present as a value that later steps cannot change."""
        if self.step == 0:
            optimizer = None
        else:
            optimizer = {name: _copied(p.state_dict()) for name, p in self._stateful().items()}
        with self.storage.widened(self.step):
            raw = to_use = _copied(dict(self.network.state_dict()))
            if self._is_averaged:
                with self._weights_to_use():
                    to_use = _copied(dict(self.network.state_dict()))
        return TrainingState(
            run=self.run,
            step=self.step,
            network=to_use,
            optimizer=optimizer,
            history=tuple(self.history),
            training_weights=None if to_use is raw else raw,
            validations=tuple(self.validations),
        )


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return deepcopy(value)
