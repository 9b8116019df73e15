"""A training job, from its folder to the finished LoRA, in one process or as one of several."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from ...training.errors import require
from ...training.jobs.job_folder import Job, read_job
from ...training.results.lora_file import SavePrecision, save_lora, trained_lora
from ...training.runs.branch import with_batch_size
from ...training.runs.checkpoints import Checkpoints, CheckpointSpec
from ...training.runs.preflight import preflight
from ...training.runs.run import TrainingState
from ...training.runs.team import require_enough
from ..graph.upstream import graph_metadata
from ..live.monitor import watched
from ..train.run_in_graph import (
    Advice,
    Resume,
    RunOptions,
    run_folder,
    train_beside,
    train_in_graph,
)
from .host import CATCH, models_of

ADVICE = Advice(
    resume="Start it again",
    after_start_again="Start it again without --start-again",
    before_the_next="Leave out --start-again the next time",
)

log = logging.getLogger("lora_atelier")


@dataclass(frozen=True)
class JobOptions:
    """What the command line says; None = as the job has it."""

    train_batch_size: int | None = None
    max_train_steps: int | None = None
    start_again: bool = False
    save_every_n_steps: int = 0
    save_precision: SavePrecision = SavePrecision.FP16

    @property
    def of_the_run(self) -> RunOptions:
        return RunOptions(
            resume=Resume.START_AGAIN if self.start_again else Resume.RESUME,
            checkpoints=CheckpointSpec(save_every_n_steps=self.save_every_n_steps),
            advice=ADVICE,
        )


def opened_job(folder: Path, options: JobOptions, processes: int) -> Job:
    """Read a job, and refuse what cannot be trained before anything is loaded.

    Raises:
        AtelierError: the folder holds no whole job, or its batches are too small for so many
            processes.
    """
    job = read_job(folder)
    require_enough(options.train_batch_size or job.spec.train_batch_size, processes)
    return job


def train_job(job: Job, options: JobOptions, is_main: bool) -> Path | None:
    """Train a job to its end; what it leaves behind is what the same run leaves in the graph.

    Args:
        is_main: this process is the one that writes.

    Returns:
        The LoRA's file, of the process that writes.

    Raises:
        AtelierError: the base model is another one, training failed, or nothing is left to train.
        InterruptProcessingException: the host's, after a request to stop; the work so far is kept.
    """
    state = _begun(job, options)
    last = state.run.spec.max_train_steps
    require(
        state.step < last,
        f"max_train_steps is {last}, and this job begins at step {state.step}: nothing is left to "
        "train. Give --max_train_steps a larger number.",
    )
    if not is_main:
        train_beside(state, last, options.of_the_run)
        return None
    told = {
        "ss_output_name": state.run.dataset.name,
        **_base_metadata(job),
    }
    with watched(state.history, state.validations) as monitor:
        state = train_in_graph(state, last, options.of_the_run, monitor)
    path = Checkpoints(state.run, run_folder(state.run), CheckpointSpec()).lora_path(state)
    save_lora(path, trained_lora(state), options.save_precision, told)
    return path


def _begun(job: Job, options: JobOptions) -> TrainingState:
    """The state to go on from, with the settings of the command line."""
    from ...training.host.job_session import start_job  # the host's models: not at start-up

    state = start_job(job, *models_of(job.base_prompt))
    if options.train_batch_size is not None:
        state = with_batch_size(state, options.train_batch_size)
    if options.max_train_steps is not None:
        spec = replace(state.run.spec, max_train_steps=options.max_train_steps)
        state = replace(state, run=replace(state.run, spec=spec))
    for sentence in preflight(state.run.spec):
        log.warning(sentence)
    return state


def _base_metadata(job: Job) -> dict[str, str]:
    """Name and hashes of the base model's file, as Save LoRA finds them in the graph. A large file
    takes its time to be read, once; so this comes before the training, when nothing can be lost."""
    base = job.base_prompt
    end = {"inputs": {name: base[name] for name in ("model", "clip")}}
    seen_from = SimpleNamespace(prompt={**base["prompt"], CATCH: end}, unique_id=CATCH)
    known = graph_metadata(seen_from)
    return {name: value for name, value in known.items() if name.startswith("ss_")}
