"""A training run as a folder that holds all it takes to train it: no graph, pictures or VAE.

    job.json            settings, dataset, digests of the ingredients and of everything below
    base.json           the nodes that load the base model, in API format
    state.safetensors   where training goes on from
    cache/latents, cache/text   what VAE and text encoder made of pictures and captions
    workflow.json       the graph it was exported from, where it may be told
    README.txt          for whoever finds the folder

A job has the identity of its run: what was begun in the graph is finished outside, and the other
way round, each going on from the other's checkpoints.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..cache import digest_of
from ..dataset.fit import Variant
from ..dataset.samples import ImageDataset
from ..errors import AtelierError, require
from ..files import partial_of, write_whole
from ..network.existing_lora import ExistingLora
from ..runs.examples import Conditioning, EncodedDataset, View
from ..runs.identity import tensors_digest
from ..runs.run import Ingredients, TrainingRun, TrainingSpec, TrainingState
from ..runs.spec_json import from_json, to_json
from ..runs.state_file import load_state, read_header, read_network, save_state
from .dataset_json import dataset_from_json, dataset_to_json
from .kept import Keeping, Kept, kept_conditioning, kept_image

VERSION = 1
JOB, BASE, STATE, WORKFLOW, README = (
    *("job.json", "base.json", "state.safetensors", "workflow.json", "README.txt"),
)
LATENTS, TEXT = Path("cache", "latents"), Path("cache", "text")
A_DAY = 24 * 3600
"""Seconds."""

Tick = Callable[[], None]
"""Called after every entry; may raise to end the work."""


@dataclass(frozen=True)
class Job:
    """What a job folder holds; latents and captions are read when they are asked for."""

    folder: Path
    name: str
    spec: TrainingSpec
    data: EncodedDataset
    ingredients: Ingredients
    identity: str
    """Of the run. One that cannot be told from others has the digest of its job instead, so that it
    is found again at least from here."""
    step: int
    """Of the state in the folder."""
    base_prompt: Mapping[str, Any]
    """``{"prompt": nodes by their ids in API format, "model": [id, output], "clip": [id,
    output]}``: the graph upstream of MODEL and CLIP, and which outputs they are. "clip" is None
    where none was wired."""
    state_digest: str
    digest: str
    """Of the job's whole content."""

    @property
    def dataset(self) -> ImageDataset:
        """The pictures as the run knows them; they cannot be opened."""
        return self.data.dataset

    @property
    def state_path(self) -> Path:
        """The state to begin with."""
        return self.folder / STATE

    def require_whole(self) -> None:
        """Look for every file; what is in those of the cache is checked when they are read.

        Raises:
            AtelierError: some are missing, or the state is damaged.
        """
        require(_state_digest(self.state_path) == self.state_digest, _damaged(self.state_path))
        for kept in (self.data.images, self.data.conditioning):
            if isinstance(kept, Kept):
                kept.require_all()


def write_job(
    folder: Path,
    state: TrainingState,
    base_prompt: Mapping[str, Any],
    graph: Mapping[str, Any] | None = None,
    tick: Tick = lambda: None,
) -> Path:
    """Write a job, whole or not at all.

    Args:
        folder: the new folder. If there is one with another content, a number is added; one with
            the same content is left alone.
        base_prompt: as :attr:`Job.base_prompt`.
        graph: the workflow, for people; None leaves it out.

    Returns:
        The job's folder.

    Raises:
        AtelierError: the disk is full or the folder cannot be written, or no file can hold what
            the run trains on.
    """
    with _partial_folder(folder) as partial:
        description = _description(folder.name, partial, state, base_prompt, tick)
        job = {"version": VERSION, "digest": digest_of(description), **description}
        write_whole(partial / JOB, json.dumps(job, indent=1).encode())
        write_whole(partial / BASE, json.dumps(base_prompt, indent=1).encode())
        write_whole(partial / README, _readme(folder.name, state).encode())
        if graph is not None:
            write_whole(partial / WORKFLOW, json.dumps(graph).encode())
        return _placed(partial, folder, job["digest"])


def read_job(folder: Path) -> Job:
    """What is in a job folder, without a look at latents, captions and weights.

    Raises:
        AtelierError: it is damaged, no job, or of a newer version.
    """
    data = _read_description(folder)
    try:
        base_prompt = _read_json(folder / BASE)
        require(digest_of(base_prompt) == data["base"], _damaged(folder / BASE))
        header = read_header(folder / STATE)
        spec = from_json(TrainingSpec, data["spec"])
        return Job(
            folder=folder,
            name=data["name"],
            spec=_with_existing(spec, folder / STATE),
            data=_encoded(folder, data),
            ingredients=Ingredients(**data["ingredients"]),
            identity=_identity(data),
            step=header.step,
            base_prompt=base_prompt,
            state_digest=data["state"],
            digest=data["digest"],
        )
    except (KeyError, TypeError, IndexError) as error:
        raise AtelierError(_damaged(folder / JOB)) from error


def begin_job(job: Job, run: TrainingRun) -> TrainingState:
    """The state in the folder, as one of ``run``.

    Raises:
        AtelierError: a file of the job is damaged or missing.
    """
    job.require_whole()
    return load_state(job.state_path, run)


def folder_bytes(folder: Path) -> int:
    """Size of everything in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _description(
    name: str,
    partial: Path,
    state: TrainingState,
    base_prompt: Mapping[str, Any],
    tick: Tick,
) -> dict[str, Any]:
    """What job.json says; latents, captions and the state are written on the way."""
    run = state.run
    images, texts = Keeping(partial / LATENTS), Keeping(partial / TEXT)
    views = []
    for view, image in run.data.images.items():
        views.append([view.sample, *view.variant, images.image(image)])
        tick()
    captions: dict[str, str | None] = {}
    for text, conditioning in run.data.conditioning.items():
        # A text encoder that is trained reads the texts themselves, anew at every step.
        as_text = isinstance(conditioning, str)
        captions[text] = None if as_text else texts.conditioning(conditioning)
        tick()
    save_state(partial / STATE, state, is_end=True)
    return {
        "name": name,
        "identity": run.identity,
        "ingredients": asdict(run.ingredients),
        "spec": to_json(run.spec),
        "dataset": dataset_to_json(run.dataset),
        "images": views,
        "captions": captions,
        "base": digest_of(base_prompt),
        "state": _state_digest(partial / STATE),
    }


def _encoded(folder: Path, data: Mapping[str, Any]) -> EncodedDataset:
    views = {
        View(sample, Variant(resolution, crop, flip)): digest
        for sample, resolution, crop, flip, digest in data["images"]
    }
    images = Kept(folder / LATENTS, views, kept_image)
    conditioning: Mapping[str, Conditioning] = {text: text for text in data["captions"]}
    if None not in data["captions"].values():
        conditioning = Kept(folder / TEXT, data["captions"], kept_conditioning)
    return EncodedDataset(dataset_from_json(data["dataset"]), images, conditioning)


def _with_existing(spec: TrainingSpec, state: Path) -> TrainingSpec:
    """A LoRA that is continued has its layers and sizes, and its weights, in the state."""
    if spec.network.existing is None:
        return spec
    existing = ExistingLora(read_network(state), spec.network.existing.name)
    return replace(spec, network=replace(spec.network, existing=existing))


def _identity(data: Mapping[str, Any]) -> str:
    return data["identity"] or digest_of("job", data["digest"])


def _state_digest(path: Path) -> str:
    """Of all that a state file holds; the order in which it lies there says nothing."""
    header = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            form = file.metadata()["form"]
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, KeyError) as error:
        raise AtelierError(_damaged(path)) from error
    return digest_of(asdict(header), form, tensors_digest(tensors))


def _read_description(folder: Path) -> dict[str, Any]:
    """job.json, whose numbers and texts are all as they were written."""
    job = folder / JOB
    require(job.is_file(), f'"{folder}" is no training job: it holds no {JOB}.')
    data = _read_json(job)
    try:
        require(
            data["version"] <= VERSION,
            f'The job "{folder.name}" was written by a newer version of LoRA Atelier. Update the '
            "pack.",
        )
        said = {name: value for name, value in data.items() if name not in ("version", "digest")}
        require(data["digest"] == digest_of(said), _damaged(job))
    except (KeyError, TypeError, AttributeError) as error:
        raise AtelierError(_damaged(job)) from error
    return data


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise AtelierError(_damaged(path)) from error


def _damaged(path: Path) -> str:
    return (
        f'"{path}" is damaged or gone, so this job cannot be trained. Copy the job anew, or export '
        "it again."
    )


@contextmanager
def _partial_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the job's that is gone afterwards, unless it was renamed."""
    partial = partial_of(folder)
    try:
        partial.mkdir(parents=True)
        _remove_left_behind(partial)
        yield partial
    except OSError as error:
        raise AtelierError(f'The job "{folder}" could not be written: {error}.') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_left_behind(partial: Path) -> None:
    """Others that a killed process was writing; one of the last day may still be at work."""
    for other in partial.parent.glob(".*.partial"):
        if other != partial and time.time() - other.stat().st_mtime > A_DAY:
            shutil.rmtree(other, ignore_errors=True)


def _placed(partial: Path, folder: Path, digest: str) -> Path:
    """Where the job lies in the end: the first place that is free or has the same content."""
    number, place = 1, folder
    while True:
        if place.exists() and _holds(place, digest):
            return place
        if not place.exists():
            try:
                partial.rename(place)
                return place
            except OSError:
                if not place.exists():  # else another one was faster
                    raise
        number += 1
        place = folder.with_name(f"{folder.name}-{number}")


def _holds(folder: Path, digest: str) -> bool:
    """Whether a whole job of this content lies there."""
    try:
        job = read_job(folder)
        job.require_whole()
        return job.digest == digest
    except AtelierError:
        return False


def _readme(name: str, state: TrainingState) -> str:
    run = state.run
    return (
        f"{name}: a LoRA training job of the ComfyUI node pack LoRA Atelier.\n"
        f"{len(run.dataset.samples)} pictures, from step {state.step} to "
        f"{run.spec.max_train_steps}.\n\n"
        "Train it, with ComfyUI and the pack installed and the base model in its folder:\n\n"
        "    accelerate launch --num_processes 1 <ComfyUI>/custom_nodes/<the pack>/launch.py "
        "<this folder>\n\n"
        "It goes on from its last checkpoint when it is started again. The result is in\n"
        "ComfyUI's output folder, in atelier/runs; in the graph, Load Training Job shows it.\n"
    )
