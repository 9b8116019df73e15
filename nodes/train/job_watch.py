"""A job's run as it stands on disk, and as it goes on while another process trains it."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...training.errors import AtelierError
from ...training.jobs.history_tail import HistoryTail
from ...training.jobs.job_folder import Job
from ...training.runs.branch import with_batch_size
from ...training.runs.folder_lock import is_trained
from ...training.runs.history_file import RUN
from ...training.runs.run import StepRecord, TrainingState
from ...training.runs.spec_json import to_json
from ...training.runs.state_file import StateHeader, load_state, read_header
from ..graph.outputs import safe_name
from ..live.progress import StepReporter, duration
from ..live.run_monitor import RunMonitor
from .run_in_graph import run_folder

LOOK_SECONDS = 1.0
PAUSE_SECONDS = 0.1
"""Between two looks at Cancel and Finish."""
ATTEMPTS = 5
"""To read the newest state, while newer ones take its place."""

CHOSEN_AT_LAUNCH = ("train_batch_size", "max_train_steps")
"""Settings that the launcher may have changed."""

Step = Callable[[StepRecord, int], Any]
"""``step(record, last step of the run)``."""

log = logging.getLogger("lora_atelier")


def run_folders(job: Job) -> list[Path]:
    """Of the job's own run, and of those that the launcher made of it with other settings."""
    own = run_folder(job)
    wanted = _kept_settings(to_json(job.spec))
    others = [
        folder
        for folder in sorted(own.parent.glob(f"{safe_name(job.dataset.name)}-*"))
        if folder != own and _kept_settings(_told(folder).get("settings")) == wanted
    ]
    return [own, *others]


def last_run(begun: TrainingState, folders: Sequence[Path]) -> JobRun:
    """The one that was trained last.

    Args:
        begun: the job's own state.
        folders: as :func:`run_folders` lists them.
    """
    runs = [JobRun(begun, folders[0])]
    for folder in folders[1:]:
        told = _told(folder)
        there = with_batch_size(begun, told["settings"]["train_batch_size"])
        if told["identity"] == there.run.identity:
            runs.append(JobRun(there, folder))
    return max(runs, key=lambda run: run.tail.changed() or 0.0)


class JobRun:
    """What a run of a job has left behind so far.

    Args:
        begun: the job's own state.
        folder: of the run; need not be there.
    """

    def __init__(self, begun: TrainingState, folder: Path) -> None:
        self.begun, self.folder = begun, folder
        self.tail = HistoryTail(folder)
        self.reached = begun.step
        """Last step that was drawn."""

    @property
    def last_step(self) -> int:
        """Where it is to end: the launcher may have been told another step than the job."""
        horizon = self.begun.run.spec.max_train_steps
        return _told(self.folder).get("settings", {}).get("max_train_steps", horizon)

    def newest(self) -> TrainingState:
        """The latest state of the run's last start, or the job's own."""
        for _ in range(ATTEMPTS):
            try:
                return self._newest_on_disk() or self.begun
            except (AtelierError, OSError) as error:
                log.info("A state has been replaced by a newer one: %s", error)
        return self.begun

    def silent_for(self) -> float | None:
        """Seconds since a line was added to its history; None: it has not been trained yet."""
        changed = self.tail.changed()
        return None if changed is None else max(0.0, time.time() - changed)

    def is_trained(self) -> bool:
        """Whether a process is at it."""
        return is_trained(self.folder)

    def follow(self, monitor: RunMonitor) -> None:
        """Show every step on the running node until nobody trains the run any more, or the person
        asks to finish, which ends the watching alone.

        Raises:
            InterruptProcessingException: the host's, after a press on Cancel.
        """
        from ...training.host.progress import raise_if_cancelled

        reporter = StepReporter(monitor, self.begun.step, self.last_step - self.begun.step)
        looked = float("-inf")
        while not monitor.finish_requested():
            monitor.micro_step(raise_if_cancelled)
            if time.monotonic() - looked >= LOOK_SECONDS:
                goes_on = self.is_trained()
                self.catch_up(monitor, reporter.step)  # after the question: nothing is missed
                if not goes_on:
                    break
                looked = time.monotonic()
            time.sleep(PAUSE_SECONDS)

    def catch_up(self, monitor: RunMonitor, step: Step | None = None) -> None:
        """Draw what has been trained since the last time.

        Args:
            step: gets each step that is new; the monitor's own when None.
        """
        news, last_step = self.tail.news(), self.last_step
        records = news.records
        if news.is_new:  # how fast old steps are read says nothing of how fast they were trained
            monitor.rewind(records[:-1], news.validations)
            records = records[-1:]
        else:
            for point in news.validations:
                monitor.validation(point)
        for record in records:
            (step or monitor.step)(record, last_step)
            self.reached = record.step

    def describe(self, state: TrainingState) -> str:
        """Where the run is, for the node."""
        silent, last_step = self.silent_for(), self.last_step
        if silent is None:
            return f"step {state.step} of {last_step}: not trained outside yet"
        reached = max(self.reached, state.step)
        if self.is_trained():
            now = f"being trained, last step {duration(silent)} ago"
        elif state.step >= last_step:
            now = "finished"
        else:
            now = f"not being trained, last step {duration(silent)} ago"
        text = f"step {reached} of {last_step}: {now}"
        return text if reached == state.step else f"{text}\nThe state is that of step {state.step}."

    def _newest_on_disk(self) -> TrainingState | None:
        history = HistoryTail(self.folder)
        written = history.changed()
        records = {record.step: record for record in history.news().records}
        for path in sorted((self.folder / "state").glob("step*.safetensors"), reverse=True):
            header = _header(path)
            if header is None or not self._continues(header):
                continue
            is_beyond = header.step > max(records, default=0)
            if is_beyond and written is not None and path.stat().st_mtime < written:
                continue  # left by an earlier start, which came further
            spec = replace(self.begun.run.spec, max_train_steps=header.horizon)
            state = load_state(path, replace(self.begun.run, spec=spec))
            if is_beyond or _is_told(state, records):
                return state
        return None

    def _continues(self, header: StateHeader) -> bool:
        """Whether it is a later state of this very run, laid out for the steps of its last start or
        for fewer, from which that has gone on."""
        horizon = self.last_step if _told(self.folder) else header.horizon
        return (
            header.identity == self.begun.run.identity
            and header.step > self.begun.step
            and (header.horizon == horizon or header.step <= header.horizon < horizon)
        )


def _is_told(state: TrainingState, records: Mapping[int, StepRecord]) -> bool:
    """Whether the history of the last start led to a state: one of an earlier start may have come
    here at other learning rates."""
    own, told = state.history[-1], records.get(state.step)
    return told is not None and _numbers(own) == _numbers(told)


def _numbers(record: StepRecord) -> list[float | None]:
    """The file holds nothing for what is no finite number."""
    return [n if math.isfinite(n) else None for n in (record.loss, record.learning_rate)]


def _told(folder: Path) -> dict[str, Any]:
    """What a run says of itself; nothing, where it says nothing that can be read."""
    try:
        told = json.loads((folder / RUN).read_bytes())
        return told if told["settings"]["train_batch_size"] and told["identity"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _kept_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    return {k: v for k, v in (settings or {}).items() if k not in CHOSEN_AT_LAUNCH}


def _header(path: Path) -> StateHeader | None:
    """None, where the file is damaged or just gone."""
    try:
        return read_header(path)
    except AtelierError as error:
        log.warning("A checkpoint is passed over: %s", error)
        return None
