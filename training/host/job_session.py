"""From a job folder and a base model to a run that is ready to train: no pictures, no VAE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import AtelierError, require
from ..jobs.job_folder import Job, begin_job
from ..runs.run import TrainingRun, TrainingState
from .base_facts import base_facts
from .digests import clip_digest, model_digest
from .launch_command import precision_options
from .session import GraphModels, trained_models


def start_job(job: Job, model: Any, clip: Any, vae: Any = None) -> TrainingState:
    """The state in the job, as one of the same run in the graph.

    Args:
        clip: None only if the job's conditioning was ready, and no text encoder read anything.
        vae: only for what the graph does with the run afterwards, such as previews.

    Raises:
        AtelierError: the model or text encoder is another one than the job was made for, or cannot
            be trained here, or the job's state is damaged.
    """
    require(
        clip is not None or job.ingredients.conditioning != "",
        f'clip: none is wired, or this checkpoint holds none, but the job "{job.name}" was made '
        "with a text encoder. Wire the same one.",
    )
    diffusion_model = trained_models(model, clip, job.spec)
    diffusion_model.compute_dtype(job.spec.mixed_precision)  # refuses what cannot compute here
    _require_same_base(job, model, clip)
    diffusion_model.log_notes()
    run = TrainingRun(
        job.spec,
        job.data,
        diffusion_model,
        job.ingredients,
        job.identity,
        GraphModels(model, clip, vae),
        base_facts(model),
    )
    return begin_job(job, run)


def _require_same_base(job: Job, model: Any, clip: Any) -> None:
    clip_now = "" if clip is None else clip_digest(clip) or ""
    given = replace(job.ingredients, model=model_digest(model) or "", clip=clip_now)
    others = job.ingredients.differences(given)
    if others:
        here = " ".join(precision_options()) or "none"
        raise AtelierError(
            f'{" and ".join(others)}: not the one the job "{job.name}" was made for. Its latents '
            "and captions belong to that base model. Load the same files, with the same LoRAs and "
            "samplings on them, in the same version of ComfyUI, started with the same options of "
            f"precision (such as --bf16-unet or --fp32-text-enc; here: {here}); or export the job "
            "again."
        )
