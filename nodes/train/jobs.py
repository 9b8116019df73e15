"""Nodes that write a run as a job for ``accelerate launch``, and show what became of it."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui

from ...training.errors import AtelierError, require
from ...training.jobs.job_folder import (
    JOB,
    folder_bytes,
    read_job,
    write_job,
)
from ...training.results.loss_chart import smoothed
from ...training.runs.folder_lock import is_trained
from ...training.runs.history_file import HISTORY, RUN
from ...training.runs.run import TrainingState
from ..graph.checks import verdict
from ..graph.outputs import output_folder, safe_name, shown
from ..graph.wires import AtelierState
from ..live.browsers import running_node
from ..live.monitor import watched
from ..live.progress import show_text
from .job_base import base_of_state
from .job_watch import last_run, run_folders
from .run_in_graph import results
from .training_inputs import result_outputs

CATEGORY = "training/atelier"
NO_JOB = "none"
LAUNCHER = Path(__file__).parents[2] / "launch.py"


class ExportTrainingJob(io.ComfyNode):
    """ATELIER_STATE -> a folder that trains without this graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierExportJob",
            display_name="Export Training Job",
            category=CATEGORY,
            is_output_node=True,
            description=(
                "Writes a run as a folder that trains without this graph, in a terminal and on "
                "several GPUs if there are: settings, encoded pictures and captions, the state to "
                "go on from, and the nodes that load the base model. The node shows the command. "
                "Load Training Job brings the result back."
            ),
            inputs=[
                AtelierState.Input(
                    "state",
                    tooltip=(
                        "From Start Training, or from Train Steps or Train LoRA to go on from "
                        "there. Batch size, steps and everything else are those of the state."
                    ),
                ),
                io.String.Input(
                    "job_name",
                    default="",
                    tooltip=(
                        "Name of the folder below output/atelier/jobs; empty = that of the "
                        "dataset. If another job has the name, a number is added."
                    ),
                ),
            ],
            outputs=[
                io.String.Output(
                    "job_folder",
                    display_name="job_folder",
                    tooltip="Full path of the job's folder, as accelerate launch takes it.",
                )
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, job_name: str | None = None) -> bool | str:
        return verdict(_check_name, job_name)

    @classmethod
    def execute(cls, state: TrainingState, job_name: str) -> io.NodeOutput:
        # The host's: not at start-up.
        from ...training.host.launch_command import launch_command
        from ...training.host.progress import HostProgress
        from ...training.host.settings import may_tell_graph

        _check_name(job_name)
        prompt, node = getattr(cls.hidden, "prompt", None) or {}, running_node().node
        base = base_of_state(prompt, node)
        info = getattr(cls.hidden, "extra_pnginfo", None) or {}
        graph = info.get("workflow") if may_tell_graph() else None
        data = state.run.data
        progress = HostProgress(len(data.images) + len(data.conditioning))
        place = jobs_folder() / safe_name(job_name.strip() or state.run.dataset.name)
        folder = write_job(place, state, base, graph, progress.tick)
        megabytes = folder_bytes(folder) / 1e6
        text = (
            f"{shown(folder)}: {megabytes:,.1f} MB, from step {state.step} to "
            f"{state.run.spec.max_train_steps}. In ComfyUI's folder, enter:\n"
            f"{launch_command(LAUNCHER, folder)}"
        )
        show_text(text)
        return io.NodeOutput(str(folder), ui=ui.PreviewText(text))


class LoadTrainingJob(io.ComfyNode):
    """A job and its base model -> what its run has come to."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierLoadJob",
            display_name="Load Training Job",
            category=CATEGORY,
            description=(
                "Brings an exported job back into the graph: the newest state its run has saved, "
                "and the LoRA on the models as it is then. Queue again, and it shows what is new. "
                "Pictures and VAE are not needed."
            ),
            inputs=[
                io.Combo.Input(
                    "job",
                    options=[NO_JOB, *jobs()],
                    tooltip=(
                        "A job below output/atelier/jobs: those of Export Training Job. Press R to "
                        "refresh the list."
                    ),
                ),
                io.Model.Input(
                    "model",
                    tooltip=(
                        "The base model the job was exported with, with the same LoRAs and "
                        "samplings on it. Another one is refused."
                    ),
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip=(
                        "Its text encoder. Another one is refused. Only a job whose conditioning "
                        "was wired ready-made needs none."
                    ),
                ),
                io.Boolean.Input(
                    "watch",
                    default=False,
                    tooltip=(
                        "On: while the job is being trained outside, the node waits, draws its "
                        "loss, and passes on the end; Finish now passes on what there is. Off: "
                        "passes on what there is at once."
                    ),
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Only for Training Previews on a Train Steps that goes on from here.",
                ),
            ],
            outputs=result_outputs(),
        )

    @classmethod
    def validate_inputs(cls, job: str | None = None) -> bool | str:
        return verdict(_path, job)

    @classmethod
    def fingerprint_inputs(cls, job: str | None = None, **others: Any) -> str:
        """Another one as soon as the run has taken a step or saved a state, or has ended."""
        if job is None or job == NO_JOB:
            return ""
        folder = _path(job)
        files, trained = [folder / JOB], []
        for run in run_folders(read_job(folder)):
            files += [run / RUN, run / HISTORY, *sorted((run / "state").glob("step*.safetensors"))]
            trained.append(str(is_trained(run)))
        facts = [f"{path.name} {_stamp(path)}" for path in files]
        return hashlib.sha256("\n".join([job, *facts, *trained]).encode()).hexdigest()

    @classmethod
    def execute(
        cls, job: str, model: Any, clip: Any = None, watch: bool = False, vae: Any = None
    ) -> io.NodeOutput:
        from ...training.host.job_session import start_job  # the host's models: not at start-up

        opened = read_job(_path(job))
        run = last_run(start_job(opened, model, clip, vae), run_folders(opened))
        with watched() as monitor:
            if watch and run.is_trained():
                monitor.message(
                    "Trained outside. Finish now ends the watching; the training goes on."
                )
                run.follow(monitor)
            state = run.newest()
            if run.silent_for() is None:
                monitor.recall(state.history, state.validations)
            run.catch_up(monitor)
        lines = [run.describe(state)]
        if state.history:
            loss = smoothed([record.loss for record in state.history])[-1]
            lines.append(f"loss {loss:.4f} (average)")
        show_text("\n".join(lines))
        trained_model, trained_clip, lora, losses = results(state)
        return io.NodeOutput(state, trained_model, trained_clip, lora, losses)


def jobs_folder() -> Path:
    """Exported jobs, a folder each."""
    return output_folder() / "atelier" / "jobs"


def jobs() -> list[str]:
    """Names of the jobs, the newest first."""
    times = {}
    for path in jobs_folder().glob(f"*/{JOB}"):
        if not path.parent.name.startswith("."):  # one that is being written
            with suppress(OSError):  # deleted meanwhile
                times[path.parent.name] = path.stat().st_mtime
    return sorted(times, key=lambda name: (times[name], name), reverse=True)


def _path(job: str) -> Path:
    """The folder of the job that was chosen.

    Raises:
        AtelierError: none was, or it is not below output/atelier/jobs.
    """
    require(job != NO_JOB, "job is none: choose a job. Press R to refresh the list.")
    require(
        job in jobs(),
        f'job: there is no "{job}" below output/atelier/jobs. Press R to refresh the list.',
    )
    return jobs_folder() / job


def _check_name(job_name: str) -> None:
    """Raises :class:`AtelierError` for what is no plain name."""
    if re.search(r"[/\\:]|^\s*\.", job_name):
        raise AtelierError(
            f'job_name is "{job_name}": it must be a plain name without slashes, such as '
            "my_style. The folder is made below output/atelier/jobs."
        )


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:  # there is none yet, or no more
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"
