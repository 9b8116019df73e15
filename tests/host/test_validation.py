"""The held-out loss of real runs: from a folder on disk, through VAE and text encoder."""

from __future__ import annotations

import importlib.util
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora_atelier.training.dataset.combine import combine
from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.folder import FolderOptions, load_folder
from lora_atelier.training.dataset.samples import ImageDataset, Role
from lora_atelier.training.host.session import start_run
from lora_atelier.training.network.build import NetworkSpec
from lora_atelier.training.network.targets import TextEncoders
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.results.loss_history import loss_map, read_loss_map
from lora_atelier.training.runs.listener import Listener
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingState
from lora_atelier.training.runs.validation import BAND_NAMES
from tiny_training import Parts, load_parts, quick_spec

DEMO = Path(__file__).resolve().parents[2] / "demo"
FIT = FitOptions((64,))


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures with their captions."""
    place = tmp_path / "pictures"
    place.mkdir()
    for file in sorted((DEMO / "images" / "glossy" / "train").iterdir())[:12]:
        shutil.copy(file, place)
    return place


@torch.inference_mode()  # as nodes run
def begin(parts: Parts, folder: Path, cache: Path, **choices) -> TrainingState:
    dataset = load_folder(folder, FolderOptions(fit=FIT, validation_fraction=0.34))
    spec = quick_spec(train_batch_size=2, **choices)
    return start_run(parts.model, parts.clip, parts.vae, dataset, spec, cache)


@pytest.mark.parametrize("text_encoders", [TextEncoders.NONE, TextEncoders.CLIP])
def test_a_folder_s_share_is_measured_and_changes_nothing(
    text_encoders: TextEncoders, parts: Parts, folder: Path, tmp_path: Path
) -> None:
    """Also where the text encoder, which reads the captions, is trained: the base has neither."""
    network = NetworkSpec(4, 2.0, text_encoders=text_encoders)
    often, never = (
        begin(parts, folder, tmp_path / "cache", network=network, validate_every_n_steps=every)
        for every in (2, -1)
    )
    held = often.run.dataset.with_role(Role.VALIDATION)
    assert 0 < len(held) < 6
    with torch.inference_mode():
        one, other = (train(begun, 4, Listener()) for begun in (often, never))
    assert all(torch.equal(one.network[key], value) for key, value in other.network.items())
    first, middle, last = one.validations
    assert [p.step for p in one.validations] == [0, 2, 4] and other.validations == ()
    assert first.bands == pytest.approx(first.base_bands, rel=1e-5)
    assert len({p.loss for p in one.validations}) == 3
    assert first.base_bands == middle.base_bands == last.base_bands
    assert all(math.isfinite(loss) for loss in last.bands)


def test_the_base_line_is_the_same_whatever_was_trained(
    parts: Parts, folder: Path, tmp_path: Path
) -> None:
    """In a new run that goes on from trained weights, the base is measured beside them."""
    state = train(begin(parts, folder, tmp_path / "cache"), 4, Listener())
    later = replace(state, run=replace(state.run), validations=())
    again = train(later, 1, Listener())
    assert again.validations[-1].base_bands == state.validations[-1].base_bands
    assert again.validations[-1].bands != state.validations[-1].base_bands


def test_a_broken_picture_that_is_held_out_may_be_skipped(
    parts: Parts, folder: Path, tmp_path: Path
) -> None:
    held = load_folder(folder, FolderOptions(fit=FIT, validation_fraction=0.34))
    for sample in held.with_role(Role.VALIDATION):
        file = folder / sample.name
        file.write_bytes(file.read_bytes()[:600])  # its header is whole, its pixels are not
    state = train(begin(parts, folder, tmp_path / "cache"), 1, Listener())
    assert state.run.dataset.with_role(Role.VALIDATION) == ()
    assert state.validations == () and len(state.run.dataset.problems) > 0


def test_the_loss_map_holds_steps_losses_and_the_base_line(
    parts: Parts, folder: Path, tmp_path: Path
) -> None:
    state = train(begin(parts, folder, tmp_path / "cache"), 3, Listener())
    wire = loss_map(state.history, state.validations)
    points = state.validations
    assert wire["validation"] == [[p.step, p.loss, p.base_loss] for p in points]
    read = read_loss_map(wire)
    assert read.validation == tuple((p.step, p.loss) for p in points)
    assert list(read.validation_bands) == list(BAND_NAMES)
    for band, series in enumerate(read.validation_bands.values()):
        assert series == tuple((p.step, p.bands[band]) for p in points)
    assert "validation" not in loss_map(state.history)


@pytest.fixture(scope="module")
def demo_parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    spec = importlib.util.spec_from_file_location("demo_assemble", DEMO / "base" / "assemble.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path_factory.mktemp("demo") / "base.safetensors"
    module.assemble(path)
    return load_parts(path)


def some_of(source: str, count: int, place: Path, role: Role) -> ImageDataset:
    """The first pictures of a folder of the demo, with their captions."""
    place.mkdir()
    for file in sorted((DEMO / "images" / "glossy" / source).iterdir())[: 2 * count]:
        shutil.copy(file, place)
    return load_folder(place, FolderOptions(fit=FIT, role=role))


@pytest.mark.slow
def test_four_pictures_learned_by_heart_show_in_the_validation_loss(
    demo_parts: Parts, tmp_path: Path
) -> None:
    """The demo's base model on four pictures, with a large rank: soon the training loss goes on to
    fall alone, while that of other pictures of the style no longer does."""
    train_on = some_of("train", 4, tmp_path / "four", Role.TRAIN)
    held_out = some_of("heldout", 6, tmp_path / "others", Role.VALIDATION)
    spec = quick_spec(
        network=NetworkSpec(16, 16.0),
        optimizer=OptimizerSpec(unet_lr=4e-3),
        train_batch_size=4,
        max_train_steps=60,
        validate_every_n_steps=20,
    )
    models = demo_parts.model, demo_parts.clip, demo_parts.vae
    with torch.inference_mode():
        begun = start_run(*models, combine([train_on, held_out]), spec, tmp_path / "cache")
        state = train(begun, 60, Listener())
    losses = [record.loss for record in state.history]
    base, *trained = [point.loss for point in state.validations]
    assert sum(losses[-15:]) < 0.75 * sum(losses[10:25])
    assert trained[-1] > 0.95 * trained[0]
    assert trained[0] < 0.95 * base  # at first, what is learned helps all of them
