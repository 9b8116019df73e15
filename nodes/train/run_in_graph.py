"""A training run under the eyes of the person at the graph: taken up where it was left, watched,
saved on the way, cut where previews are due, ended early when asked to."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from ...training.dataset.summary import left_out
from ...training.errors import AtelierError
from ...training.results.lora_file import SavePrecision, save_lora, trained_lora
from ...training.results.loss_chart import smoothed
from ...training.results.loss_history import loss_map
from ...training.results.preview_spec import PreviewSpec, due
from ...training.runs.checkpoints import Checkpoints, CheckpointSpec, OnSaveError
from ...training.runs.folder_lock import training_alone
from ...training.runs.history_file import RunLog
from ...training.runs.listener import Listener
from ...training.runs.loop import train
from ...training.runs.run import StepRecord, TrainingRun, TrainingState
from ...training.runs.validation import ValidationPoint
from ...training.runs.watchman import Watchman
from ..graph.outputs import runs_folder, safe_name, shown
from ..live.previews import PreviewGallery
from ..live.progress import StepReporter, duration, show_text
from ..live.run_monitor import RunMonitor

log = logging.getLogger("lora_atelier")


class Resume(str, Enum):
    """What becomes of the states that the same run left on disk."""

    RESUME = "resume"
    START_AGAIN = "start_again"


@dataclass(frozen=True)
class Advice:
    """What a person does to have a run go on, where it was begun."""

    resume: str = "Queue again"
    after_start_again: str = "Set resume to resume and queue again"
    before_the_next: str = "Set resume to resume before you queue again"


@dataclass(frozen=True)
class RunOptions:
    """What does not change the weights that come out."""

    resume: Resume = Resume.RESUME
    checkpoints: CheckpointSpec = field(default_factory=CheckpointSpec)
    previews: PreviewSpec | None = None
    advice: Advice = Advice()


def train_in_graph(
    begin: TrainingState, last_step: int, options: RunOptions, monitor: RunMonitor
) -> TrainingState:
    """Train on until ``last_step``, or until the person asks for the end.

    Raises:
        AtelierError: training failed, another process trains this run, or a checkpoint could not be
            written and was to stop it.
    """
    files = Checkpoints(begin.run, run_folder(begin.run), options.checkpoints)
    with training_alone(files.folder, options.advice.resume.lower()):
        return _trained(begin, last_step, files, options, monitor)


def train_beside(begin: TrainingState, last_step: int, options: RunOptions) -> TrainingState:
    """What every other process of a team does while one is in :func:`train_in_graph`: the same
    steps from the same checkpoint. It writes nothing, and ends when that one does."""
    files = Checkpoints(begin.run, run_folder(begin.run), options.checkpoints)
    resumes = options.resume is Resume.RESUME
    state = (files.newest(begin.step, last_step) if resumes else None) or begin
    return train(state, last_step - state.step, _Companion()) if state.step < last_step else state


def run_folder(run: TrainingRun) -> Path:
    """Below output/atelier/runs; the same for the same run, and a new one for a run that cannot be
    told from others."""
    ending = run.identity[:8] or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    return runs_folder() / f"{safe_name(run.dataset.name)}-{ending}"


def results(state: TrainingState) -> tuple[Any, Any, Any, dict[str, Any]]:
    """MODEL and CLIP of the graph with the LoRA on them, LORA_MODEL and LOSS_MAP of a state."""
    from ...training.host.result import apply_lora

    lora, models = trained_lora(state), state.run.models
    model, clip = apply_lora(models.model, models.clip, lora)
    return model, clip, lora, loss_map(state.history, state.validations)


def summary(state: TrainingState, seconds: float) -> str:
    """What stays on the node: single steps scatter, so the loss is the chart's moving average."""
    loss = smoothed([record.loss for record in state.history])[-1]
    epochs = state.history[-1].epoch + 1
    text = f"{state.step} steps, {epochs} epochs in {duration(seconds)} · loss {loss:.4f} (average)"
    return "\n".join([text, *left_out(state.run.dataset)])


def _trained(
    begin: TrainingState,
    last_step: int,
    files: Checkpoints,
    options: RunOptions,
    monitor: RunMonitor,
) -> TrainingState:
    """As :func:`train_in_graph`, in a folder that is this process's own meanwhile."""
    state = _taken_up(begin, last_step, files, options, monitor)
    with RunLog(files.folder, state, options.checkpoints.tensorboard) as run_log:
        listener = _GraphListener(state, last_step, files, options, run_log, monitor)
        watchman = Watchman(state, last_step)
        previews = _Previews(begin.run, options.previews, files.folder, monitor)
        previews.draw_base(state, listener)
        first = state.step
        # Asked to finish before the first step, it still takes one: there must be a result.
        while state.step < last_step and (state.step == first or not monitor.finish_requested()):
            stop = min(last_step, previews.next_after(state.step))
            state = train(state, stop - state.step, listener, watchman)
            is_end = state.step == last_step or monitor.finish_requested()
            listener.save_between(state, is_end)  # before pictures, which take their time
            previews.draw(state, is_end, listener)
    return state


def _taken_up(
    begin: TrainingState,
    last_step: int,
    files: Checkpoints,
    options: RunOptions,
    monitor: RunMonitor,
) -> TrainingState:
    """The newest state of this run on disk, or ``begin``."""
    if options.resume is Resume.START_AGAIN:
        if replaced := files.start_again(after=begin.step):
            text = f"Starts again: the first checkpoint replaces {replaced} of an earlier run. "
            text += f"{options.advice.before_the_next}, or the next run starts again too."
            monitor.message(text, "warning")
            log.warning(text)
        return begin
    if not begin.run.identity:
        monitor.message(
            "This run cannot be resumed by queueing again: other nodes changed the model in ways "
            "that cannot be told from file. Use Save Training State instead.",
        )
        return begin
    found = files.newest(begin.step, last_step)
    if found is None:
        return begin
    monitor.recall(found.history[begin.step :], found.validations[len(begin.validations) :])
    text = f"resumed at step {found.step} from {shown(files.folder)}"
    monitor.message(text)
    log.info("Training %s", text)
    return found


class _Previews:
    """Draws pictures between the pieces in which a run is trained; without a spec it draws none."""

    def __init__(
        self, run: TrainingRun, spec: PreviewSpec | None, folder: Path, monitor: RunMonitor
    ) -> None:
        from ...training.host.progress import raise_if_cancelled

        self.run, self.spec, self.monitor = run, spec, monitor
        if spec is not None:
            self.gallery = PreviewGallery(
                spec, *run.models, folder, monitor.message, raise_if_cancelled
            )

    def next_after(self, step: int) -> int:
        """The next step at which to draw."""
        if self.spec is None:
            return sys.maxsize
        accumulation = self.run.spec.gradient_accumulation_steps
        return due(self.spec, step, self.run.plan.batches_per_epoch, accumulation)

    def draw_base(self, state: TrainingState, listener: _GraphListener) -> None:
        """The row without the adapter, where it is wanted and not there from an earlier start."""
        if self.spec is not None and self.spec.base_row and not self.gallery.has_base():
            self._draw(None, state, listener)

    def draw(self, state: TrainingState, is_end: bool, listener: _GraphListener) -> None:
        """The row of a state, if it is due; the end always is."""
        if self.spec is not None and (is_end or self.next_after(state.step - 1) == state.step):
            self._draw(state, state, listener)

    def _draw(
        self, shown: TrainingState | None, state: TrainingState, listener: _GraphListener
    ) -> None:
        try:
            for picture in self.gallery.make(shown, state.step):
                self.monitor.preview(*picture)
        except BaseException:  # Cancel
            listener.on_interrupted(state)
            raise


class _Companion(Listener):
    """Of a process whose run another one writes down: only looks for Cancel."""

    def on_micro_step(self) -> None:
        from ...training.host.progress import raise_if_cancelled

        raise_if_cancelled()


class _GraphListener(Listener):
    """Tells the running node, its monitor and the run's files what happens; looks for Cancel."""

    def __init__(
        self,
        state: TrainingState,
        last_step: int,
        files: Checkpoints,
        options: RunOptions,
        run_log: RunLog,
        monitor: RunMonitor,
    ) -> None:
        self.first_step, self.last_step = state.step, last_step
        self.reached = state.step
        self.measured = -1
        """The last step after which the validation pictures were looked at."""
        self.files, self.options = files, options
        self.run_log, self.monitor = run_log, monitor
        self.reporter = StepReporter(monitor, state.step, last_step - state.step)
        self.finish_requested = monitor.finish_requested

    def on_micro_step(self) -> None:
        from ...training.host.progress import raise_if_cancelled

        self.monitor.micro_step(raise_if_cancelled)

    def on_step(
        self, record: StepRecord, last_step: int, freeze: Callable[[], TrainingState]
    ) -> None:
        self.reached = record.step
        self.run_log.step(record)
        self.reporter.step(record, self.last_step)
        if record.step == self.last_step:
            return
        if self.files.due(record.step):
            self.save(freeze())
        elif self.measured == record.step and self.files.is_best(state := freeze()):
            self.save(state)

    def on_validation(self, point: ValidationPoint) -> None:
        self.measured = point.step
        self.run_log.validation(point)
        self.monitor.validation(point)

    def on_rolled_back(self, state: TrainingState, message: str) -> None:
        self.reached = state.step
        self.run_log.rewind(state)
        self.monitor.rewind(state.history, state.validations)
        self.monitor.message(message, "warning")
        log.warning(message)
        self.save(state, goes_back=True)

    def on_interrupted(self, state: TrainingState) -> None:
        """Keep the work so far. Nothing here may hide why the run ended."""
        if state.step == self.first_step:
            return
        path = self.files.lora_path(state)
        try:
            save_lora(path, trained_lora(state), SavePrecision.FLOAT)
            self.files.save(state, goes_back=state.step < self.reached)
        except AtelierError as error:
            text = f"stopped at step {state.step}; the work so far could not be saved: {error}"
        else:
            text = f"stopped at step {state.step}; the LoRA so far is in {shown(path)}. "
            text += self._how_to_go_on()
        show_text(text)
        self.monitor.message(text, "warning")
        log.warning("Training %s", text)

    def _how_to_go_on(self) -> str:
        if not self.files.run.identity:
            return "Load Training State goes on from the state beside it."
        advice, starts_again = self.options.advice, self.options.resume is Resume.START_AGAIN
        what = advice.after_start_again if starts_again else advice.resume
        return f"{what} to go on from there."

    def save_between(self, state: TrainingState, is_end: bool) -> None:
        """The state between two pieces, and the last one, which no later run would find if it
        could not be told from others."""
        if is_end and not self.files.run.identity:
            return
        if state.step > self.first_step:
            self.save(state, is_end)

    def save(self, state: TrainingState, is_end: bool = False, goes_back: bool = False) -> None:
        """A checkpoint; where it fails, the person has chosen what follows."""
        try:
            self.files.save(state, is_end, goes_back)
        except AtelierError as error:
            if self.files.spec.on_save_error is OnSaveError.STOP and not is_end:
                raise
            what_now = "The LoRA itself is passed on." if is_end else "The run goes on."
            text = f"No checkpoint of step {state.step}: {error} {what_now}"
            self.monitor.message(text, "warning")
            log.warning(text)
