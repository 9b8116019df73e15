"""Evaluate LoRA measures what LoraLoader, KSampler and the run's own validation give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import folder_paths
import nodes as host_nodes
import numpy as np
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from safetensors.torch import save_file

from in_memory import FIT
from lora_atelier.nodes.results.evaluate import EvaluateLoRA
from lora_atelier.nodes.results.evaluated_loras import labels, listed_loras
from lora_atelier.nodes.results.lora_files import named_files
from lora_atelier.nodes.train.run_in_graph import run_folder
from lora_atelier.training.dataset.pictures import ImageFile, ImagePixels
from lora_atelier.training.dataset.samples import ImageDataset, Role, Sample
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.evaluation.spec import EvaluationSpec, Prompts
from lora_atelier.training.host.evaluation import Evaluator, Measured
from lora_atelier.training.host.grid import GridLora
from lora_atelier.training.host.session import start_run
from lora_atelier.training.results.lora_file import SavePrecision, save_lora, trained_lora
from lora_atelier.training.results.preview_spec import PreviewSpec
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingState
from lora_atelier.training.runs.state_file import save_state
from tiny_training import CAPTIONS, Parts, Recorder, load_parts, quick_spec
from tiny_vision import tiny_vision
from widget_runs import call

PREVIEW = PreviewSpec(
    ("not used",), seeds=(3,), width=64, height=64, steps=2, cfg=2.0, sampler_name="euler"
)
PROMPTS = Prompts(("a fox", "two cats"), "prompts as written", False)


def smooth(seed: int) -> ImagePixels:
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return ImagePixels(np.asarray(Image.fromarray(small).resize((64, 64))))


def dataset(held_out: int) -> ImageDataset:
    roles = [Role.TRAIN] * (len(CAPTIONS) - held_out) + [Role.VALIDATION] * held_out
    return ImageDataset(
        tuple(
            Sample(smooth(i), f"{i}.png", (caption,), role=role, fit=FIT)
            for i, (caption, role) in enumerate(zip(CAPTIONS, roles, strict=True))
        ),
        name="evaluated",
    )


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """ComfyUI's folders, all new; and inference mode, as in a node."""
    for name in ("output", "temp", "loras"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    loras = ([str(tmp_path / "loras")], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", loras)
    folder_paths.filename_list_cache.pop("loras", None)
    with torch.inference_mode():
        yield tmp_path
    folder_paths.filename_list_cache.pop("loras", None)


def begun(parts: Parts, cache: Path, held_out: int) -> TrainingState:
    spec = quick_spec(validate_every_n_steps=2, train_batch_size=2)
    return start_run(parts.model, parts.clip, parts.vae, dataset(held_out), spec, cache)


@pytest.fixture(scope="module")
def state(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> TrainingState:
    """Two steps on two pictures; two are held out."""
    with torch.inference_mode():
        start = begun(parts, tmp_path_factory.mktemp("cache"), held_out=2)
    return train(start, 2, Recorder())


@pytest.fixture(scope="module")
def strong(state: TrainingState) -> TrainingState:
    """A LoRA that is to be seen."""
    up = {k: v * 40 if "lora_up" in k else v for k, v in state.network.items()}
    return replace(state, network=up)


def measured(state: TrainingState, strengths: tuple[float, ...], images: int = 2) -> list[Measured]:
    spec = EvaluationSpec(PREVIEW, ("mine",), PROMPTS, strengths, images)
    lora = GridLora("mine", lambda: trained_lora(state))
    return list(Evaluator(state.run, [lora], spec, lambda amount: None).measure())


def evaluated(state: TrainingState, clip_vision: Any = None, **widgets: Any) -> tuple[Any, ...]:
    few = {"images_per_checkpoint": 2, "strengths": "1", "prompts": "a fox\ntwo cats"}
    links = {"state": state, "preview": PREVIEW, "clip_vision": clip_vision}
    return call("AtelierEvaluate", {**few, **widgets}, **links)


def drawn_by_nodes(parts: Parts, prompt: str) -> np.ndarray:
    encode = host_nodes.CLIPTextEncode().encode
    (latent,) = host_nodes.EmptyLatentImage().generate(64, 64)
    (sampled,) = host_nodes.KSampler().sample(
        parts.model,
        *(3, PREVIEW.steps, PREVIEW.cfg, PREVIEW.sampler_name, PREVIEW.scheduler),
        *(encode(parts.clip, prompt)[0], encode(parts.clip, "")[0], latent),
    )
    image = host_nodes.VAEDecode().decode(parts.vae, sampled)[0][0]
    return np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(int)


def test_pictures_are_those_of_lora_loader_and_ksampler(
    parts: Parts, strong: TrainingState, folders: Path
) -> None:
    save_lora(folders / "loras/mine.safetensors", trained_lora(strong), SavePrecision.FLOAT)
    base, half = measured(strong, (0.5,))
    loaded = host_nodes.LoraLoader().load_lora(
        parts.model, parts.clip, "mine.safetensors", 0.5, 0.5
    )
    for one, models in ((base, parts), (half, Parts(*loaded, parts.vae))):
        for prompt, picture in zip(PROMPTS.texts, one.pictures, strict=True):
            expected = drawn_by_nodes(models, prompt)
            assert np.abs(picture - expected).max() <= 1  # both are drawn as one batch
    assert np.abs(base.pictures[0].astype(int) - half.pictures[0]).mean() > 3


def test_losses_are_those_of_the_runs_own_validation(state: TrainingState) -> None:
    base, whole = measured(state, (1.0,))
    point = state.validations[-1]
    assert point.step == 2 and point.bands != point.base_bands
    np.testing.assert_allclose(base.losses.mean(axis=0), point.base_bands, rtol=1e-5)
    np.testing.assert_allclose(whole.losses.mean(axis=0), point.bands, rtol=1e-4)
    assert abs(point.loss - point.base_loss) > 1e-3 * point.base_loss  # the LoRA is to be heard


def test_training_pictures_go_through_the_vae_and_back(parts: Parts, state: TrainingState) -> None:
    spec = EvaluationSpec(PREVIEW, ("mine",), PROMPTS, (1.0,), 2)
    evaluator = Evaluator(state.run, [], spec, lambda amount: None)
    for place, painted in enumerate(evaluator.repainted([0, 1])):
        pixels = torch.from_numpy(smooth(place).pixels.astype(np.float32) / 255).unsqueeze(0)
        (latent,) = host_nodes.VAEEncode().encode(parts.vae, pixels)
        image = host_nodes.VAEDecode().decode(parts.vae, latent)[0][0]
        expected = np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(int)
        assert np.abs(painted - expected).max() <= 1


def test_the_models_of_the_graph_stay_as_they_are(parts: Parts, strong: TrainingState) -> None:
    mm.unload_all_models()
    before = {k: v.clone() for k, v in parts.model.model.state_dict().items()}
    measured(strong, (1.0,))
    mm.unload_all_models()
    assert not parts.model.patches and not parts.clip.patcher.patches
    after = parts.model.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_run_brings_its_loras_its_states_and_its_end(state: TrainingState) -> None:
    state = replace(state, step=30, run=replace(state.run, identity="0123456789abcdef"))
    folder = run_folder(state.run)
    for step, factor in ((10, 2.0), (20, 3.0), (40, 5.0)):  # the last is not taken
        other = {k: v * factor for k, v in state.network.items()}
        kept = replace(state, step=step, network=other)
        name = f"{folder.name}-step{step:08d}.safetensors"
        save_lora(folder / "lora" / name, trained_lora(kept), SavePrecision.FLOAT)
        if step == 20:
            save_state(folder / "state" / "step00000015.safetensors", replace(kept, step=15))
    # Of the same settings, but not of this run: damaged, or of one that was laid out longer.
    (folder / "state" / "step00000017.safetensors").write_bytes(b"cut short")
    longer = replace(state.run, spec=replace(state.run.spec, max_train_steps=10_000))
    of_longer = replace(state, step=18, run=longer)
    save_state(folder / "state" / "step00000018.safetensors", of_longer)
    name = f"{folder.name}-step00000019.safetensors"
    save_lora(folder / "lora" / name, trained_lora(of_longer), SavePrecision.FLOAT)
    loras = listed_loras([], state)
    assert [lora.step for lora in loras] == [10, 15, 20, 30]
    assert {lora.run for lora in loras} == {folder.name}
    assert labels(loras) == ("step 10", "step 15", "step 20", "step 30")
    key = next(key for key in state.network if key.endswith("lora_up.weight"))
    for lora, factor in zip(loras, (2, 3, 3, 1), strict=True):
        torch.testing.assert_close(lora.read()[key], state.network[key] * factor)
    assert loras[1].read().metadata["ss_steps"] == "15"


def test_files_stand_in_for_the_run_and_tell_their_steps(
    state: TrainingState, folders: Path
) -> None:
    tensors = dict(trained_lora(state))
    for name, told in (("a-step7", {}), ("b-000003", {"ss_steps": "90"}), ("c-4", {})):
        save_file(tensors, folders / "loras" / f"{name}.safetensors", metadata=told or None)
    loras = listed_loras(named_files("*"), state)
    assert [(lora.name, lora.step) for lora in loras] == [
        *(("a-step7.safetensors", 7), ("b-000003.safetensors", 90), ("c-4.safetensors", 0))
    ]
    assert [lora.run for lora in loras] == ["a", "b", "c-4.safetensors"]
    assert loras[1].read().metadata == {"ss_steps": "90"}
    assert loras[1].read().models is state.run.models


def test_what_it_gives_out(strong: TrainingState) -> None:
    picture, report, step, strength, lora = evaluated(strong, strengths="0.5, 1")
    assert picture.shape[0] == 1 and picture.shape[2:] == (1280, 3)
    assert "Loss on 2 held-out pictures" in report and "connect clip_vision" in report
    assert report.count(" at strength ") >= 2 and "2 pictures each, prompts as written." in report
    # Two pictures of a LoRA that was only made loud: nothing that could be recommended.
    assert (step, strength) == (0, 0.0) and isinstance(lora, ExecutionBlocker)
    assert lora.message.startswith("Evaluate LoRA recommends no LoRA. None is good enough")


def test_without_validation_pictures_it_says_what_that_cannot_show(
    parts: Parts, strong: TrainingState, tmp_path: Path
) -> None:
    run = begun(parts, tmp_path / "cache", held_out=0).run
    _, report, *_ = evaluated(replace(strong, run=run), prompts="")
    assert "Loss on 4 training pictures" in report and "no part in the choice" in report
    assert "captions of the training pictures" in report and "were trained on" in report
    assert "overfitted" not in report


def test_an_image_encoder_takes_the_place_of_colours_and_edges(
    strong: TrainingState, tmp_path: Path
) -> None:
    own = evaluated(strong)[1]
    vision = tiny_vision(tmp_path)
    encoded = evaluated(strong, clip_vision=vision)[1]
    assert "connect clip_vision" not in encoded
    figures = [
        next(line for line in text.splitlines() if line.startswith("step 2 at strength 1: "))
        for text in (own, encoded)
    ]
    assert figures[0].split(" · ")[0] == figures[1].split(" · ")[0]  # the loss
    assert figures[0] != figures[1]


@pytest.mark.parametrize("work", [1, 4, 9])
def test_cancel_ends_it_wherever_it_is(strong: TrainingState, work: int) -> None:
    done = 0

    def tick(amount: int) -> None:
        nonlocal done
        done += 1
        if done == work:
            mm.interrupt_current_processing()
        mm.throw_exception_if_processing_interrupted()

    spec = EvaluationSpec(PREVIEW, ("mine",), PROMPTS, (1.0,), 2)
    lora = GridLora("mine", lambda: trained_lora(strong))
    with pytest.raises(mm.InterruptProcessingException):
        list(Evaluator(strong.run, [lora], spec, tick).measure())
    assert done == work
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        evaluated(strong)
    assert not mm.processing_interrupted()


def test_what_cannot_be_evaluated_is_said_before_anything_is_measured(
    parts: Parts, state: TrainingState
) -> None:
    with pytest.raises(AtelierError, match="There is no LoRA to evaluate"):
        evaluated(replace(state, step=0))
    for widgets, told in (
        ({"lora_files": "nowhere"}, 'there is no file "nowhere"'),
        ({"strengths": "-1"}, "strengths is -1"),
        ({"images_per_checkpoint": 1}, "images_per_checkpoint is 1"),
    ):
        with pytest.raises(AtelierError, match=told):
            evaluated(state, **widgets)
    names = [replace(s, image=ImageFile(s.name, s.image.size)) for s in state.run.dataset.samples]
    bare = replace(state.run.data, dataset=replace(state.run.dataset, samples=tuple(names)))
    with pytest.raises(AtelierError, match="comes from a training job, which holds no pictures"):
        evaluated(replace(state, run=replace(state.run, data=bare)))
    with pytest.raises(AtelierError, match="sampler_name is 'none'"):
        call("AtelierEvaluate", {}, state=state, preview=replace(PREVIEW, sampler_name="none"))


def test_it_runs_again_when_a_file_is_new(state: TrainingState, folders: Path) -> None:
    path = folders / "loras" / "a-1.safetensors"
    save_file(dict(trained_lora(state)), path)
    first = EvaluateLoRA.fingerprint_inputs(lora_files="a-*")
    assert first == EvaluateLoRA.fingerprint_inputs(lora_files="a-*", strengths="2")
    path.write_bytes(path.read_bytes() + b" ")
    assert first != EvaluateLoRA.fingerprint_inputs(lora_files="a-*")
