"""Previews are what the host's own nodes draw; they change nothing, and never fail a run."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy_extras.nodes_flux as host_flux
import comfy_extras.nodes_sd3 as host_sd3
import folder_paths
import nodes as host_nodes
import numpy as np
import pytest
import torch
from comfy.sd1_clip import SD1Tokenizer
from PIL import Image
from torch import Tensor

from in_memory import encoded_dataset
from lora_atelier.nodes.config.preview import TrainingPreviews
from lora_atelier.nodes.graph.outputs import output_folder
from lora_atelier.nodes.live.monitor import watched
from lora_atelier.nodes.live.previews import PreviewGallery
from lora_atelier.nodes.train.run_in_graph import RunOptions, train_in_graph
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.progress import raise_if_cancelled
from lora_atelier.training.host.sampling import sample_previews, sampler_names
from lora_atelier.training.host.session import GraphModels, trained_models
from lora_atelier.training.network.build import NetworkSpec
from lora_atelier.training.network.spec import TextEncoders
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.results.lora_file import SavePrecision, save_lora, trained_lora
from lora_atelier.training.results.preview_spec import PreviewSpec, due
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingRun, TrainingState, start
from tiny_training import CAPTIONS, LATENT, Parts, Recorder, load_parts, normal, quick_spec
from widget_runs import kl_autoencoder, small_flux

SPEC = PreviewSpec(
    ("a (red:1.4) fox", "two [grey] cats"),
    negative="blurred",
    seeds=(3, 4),
    width=64,
    height=96,
    steps=2,
    cfg=3.0,
    sampler_name="euler_ancestral",  # draws from the streams as it goes
    scheduler="karras",
    every_n_steps=2,
)

ONE = replace(SPEC, prompts=("a fox",), seeds=(5,))
"""The least to draw."""


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def begin(parts: Parts) -> TrainingState:
    """A run that trains both models, with dropout, at step 0."""
    spec = quick_spec(
        network=NetworkSpec(4, 4.0, network_dropout=0.2, text_encoders=TextEncoders.CLIP),
        optimizer=OptimizerSpec(unet_lr=5e-3, text_encoder_lr=5e-3),
    )
    latents = [normal(1000 + i, *LATENT) for i in range(len(CAPTIONS))]
    data = encoded_dataset(latents, {caption: caption for caption in CAPTIONS})
    with torch.inference_mode():
        return start(TrainingRun(spec, data, trained_models(parts.model, parts.clip, spec)))


@pytest.fixture(scope="module")
def halfway(begin: TrainingState) -> TrainingState:
    return train(begin, 2, Recorder())


@pytest.fixture(scope="module")
def trained(begin: TrainingState) -> TrainingState:
    return train(begin, 4, Recorder())


@pytest.fixture(autouse=True)
def as_in_a_node() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of a run."""
    path = output_folder() / "atelier" / "runs" / "glossy-1"
    yield path
    shutil.rmtree(path, ignore_errors=True)


class Said:
    """What the person is told."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str]] = []

    def __call__(self, text: str, level: str) -> None:
        self.messages.append((text, level))


def gallery(
    parts: Parts,
    folder: Path,
    said: Said | None = None,
    tick: Callable[[], None] = raise_if_cancelled,
    spec: PreviewSpec = SPEC,
) -> PreviewGallery:
    return PreviewGallery(spec, parts.model, parts.clip, parts.vae, folder, said or Said(), tick)


def drawn_by_nodes(parts: Parts, spec: PreviewSpec = SPEC) -> list[Tensor]:
    """CLIPTextEncode, EmptyLatentImage, KSampler, VAEDecode for each column."""
    encode = host_nodes.CLIPTextEncode().encode
    (negative,) = encode(parts.clip, spec.negative)
    positives = [encode(parts.clip, prompt)[0] for prompt in spec.prompts]
    images = []
    for prompt, seed in spec.columns:
        (latent,) = host_nodes.EmptyLatentImage().generate(spec.width, spec.height)
        sampler = (spec.steps, spec.cfg, spec.sampler_name, spec.scheduler)
        (sampled,) = host_nodes.common_ksampler(
            parts.model, seed, *sampler, positives[prompt], negative, latent
        )
        images.append(host_nodes.VAEDecode().decode(parts.vae, sampled)[0][0])
    return images


def with_lora_loader(parts: Parts, state: TrainingState) -> Parts:
    """The models after Save LoRA and LoraLoader."""
    loras = Path(folder_paths.get_folder_paths("loras")[0])
    save_lora(loras / "previews.safetensors", trained_lora(state), SavePrecision.FLOAT)
    model, clip = host_nodes.LoraLoader().load_lora(
        parts.model, parts.clip, "previews.safetensors", 1.0, 1.0
    )
    return Parts(model, clip, parts.vae)


def pixels(image: Tensor) -> np.ndarray:
    """As SaveImage writes them."""
    return np.clip(255.0 * image.cpu().numpy(), 0, 255).astype(np.uint8)


def saved(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def everything(parts: Parts) -> dict[str, Tensor]:
    """The weights of all three models."""
    modules = {
        "model": parts.model.model,
        "clip": parts.clip.cond_stage_model,
        "vae": parts.vae.first_stage_model,
    }
    return {
        f"{name}.{key}": value.clone()
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


def assert_same_weights(parts: Parts, before: dict[str, Tensor]) -> None:
    # Some of CLIP's weights are in no SD1.5 file: the host leaves them as the memory was, NaN too.
    torch.testing.assert_close(everything(parts), before, rtol=0, atol=0, equal_nan=True)


def test_a_row_without_the_adapter_is_what_the_hosts_nodes_draw(parts: Parts) -> None:
    previews = list(sample_previews(parts.model, parts.clip, parts.vae, SPEC, lambda: None))
    assert [(p.prompt, p.seed) for p in previews] == SPEC.columns
    for preview, expected in zip(previews, drawn_by_nodes(parts), strict=True):
        assert preview.image.shape == (1, 96, 64, 3)
        assert torch.equal(preview.image[0], expected)


def test_a_row_of_a_state_is_what_lora_loader_and_ksampler_draw(
    parts: Parts, trained: TrainingState, folder: Path
) -> None:
    shown = gallery(parts, folder).make(trained, trained.step)
    drawn = drawn_by_nodes(with_lora_loader(parts, trained))
    for place, expected, base in zip(shown, drawn, drawn_by_nodes(parts), strict=True):
        picture = saved(output_folder() / place.subfolder / place.filename)
        assert np.array_equal(picture, pixels(expected))
        assert (expected - base).abs().mean() > 0.01  # the adapter is to be seen


@pytest.mark.parametrize("name", ["uni_pc", "ddim", "dpmpp_sde", "lcm", "res_multistep"])
def test_other_samplers_draw_the_same_too(parts: Parts, name: str) -> None:
    spec = replace(ONE, sampler_name=name, scheduler="normal")
    (preview,) = sample_previews(parts.model, parts.clip, parts.vae, spec, lambda: None)
    assert torch.equal(preview.image[0], drawn_by_nodes(parts, spec)[0])


@pytest.mark.parametrize("guidance", [0.0, 9.0])
def test_flux_is_drawn_with_its_own_latents_and_guidance(parts: Parts, guidance: float) -> None:
    flux = Parts(small_flux(), parts.clip, kl_autoencoder(16))
    spec = replace(ONE, cfg=1.0, sampler_name="euler", scheduler="simple", guidance=guidance)
    (preview,) = sample_previews(*vars(flux).values(), spec, lambda: None)
    (positive,) = host_nodes.CLIPTextEncode().encode(parts.clip, "a fox")
    (negative,) = host_nodes.CLIPTextEncode().encode(parts.clip, spec.negative)
    if guidance:
        positive = host_flux.FluxGuidance.execute(positive, guidance).args[0]
    latent = host_sd3.EmptySD3LatentImage.execute(64, 96).args[0]
    settings = (2, 1.0, "euler", "simple")
    (sampled,) = host_nodes.common_ksampler(flux.model, 5, *settings, positive, negative, latent)
    assert torch.equal(preview.image, host_nodes.VAEDecode().decode(flux.vae, sampled)[0])


def test_guidance_is_heard_by_flux(parts: Parts) -> None:
    spec = replace(ONE, cfg=1.0)
    model, vae = small_flux(), kl_autoencoder(16)
    pictures = [
        next(sample_previews(model, parts.clip, vae, replace(spec, guidance=g), lambda: None)).image
        for g in (0.0, 3.5, 9.0)
    ]
    assert torch.equal(pictures[0], pictures[1])  # 3.5 is the host's own for Flux
    assert not torch.equal(pictures[0], pictures[2])


def test_torchs_own_streams_go_on_as_if_nothing_had_been_drawn(
    parts: Parts, trained: TrainingState, folder: Path
) -> None:
    torch.manual_seed(11)
    expected = torch.randn(5)
    torch.manual_seed(11)
    gallery(parts, folder).make(trained, 4)
    assert torch.equal(torch.randn(5), expected)


def test_a_run_with_previews_gives_bit_for_bit_the_weights_of_one_without(
    parts: Parts, begin: TrainingState, trained: TrainingState, folder: Path
) -> None:
    previews = gallery(parts, folder)
    plan, accumulation = begin.run.plan, begin.run.spec.gradient_accumulation_steps
    previews.make(None, 0)
    state = begin
    while state.step < 4:
        stop = due(SPEC, state.step, plan.batches_per_epoch, accumulation)
        state = train(state, stop - state.step, Recorder())
        assert len(previews.make(state, state.step)) == 4
    assert [r.loss for r in state.history] == [r.loss for r in trained.history]
    assert state.network.keys() == trained.network.keys()
    assert all(torch.equal(state.network[key], value) for key, value in trained.network.items())
    torch.testing.assert_close(state.optimizer, trained.optimizer, rtol=0, atol=0)


def test_the_models_of_the_graph_stay_as_they_are(
    parts: Parts, trained: TrainingState, folder: Path
) -> None:
    mm.unload_all_models()
    before, (picture,) = everything(parts), drawn_by_nodes(parts, ONE)
    gallery(parts, folder).make(trained, 4)
    assert_same_weights(parts, before)
    assert parts.model.patches == {} and parts.clip.patcher.patches == {}
    assert torch.equal(drawn_by_nodes(parts, ONE)[0], picture)


def test_pictures_and_sheet_lie_in_the_folder_of_the_run(
    parts: Parts, trained: TrainingState, folder: Path
) -> None:
    said = Said()
    previews = gallery(parts, folder, said)
    assert not previews.has_base()
    base = previews.make(None, 0)
    assert (
        previews.has_base() and not gallery(parts, folder, spec=replace(SPEC, cfg=1.0)).has_base()
    )
    with Image.open(folder / "previews.png") as sheet:
        height = sheet.height
    later = previews.make(trained, 200)
    with Image.open(folder / "previews.png") as sheet:
        assert sheet.height > height
    assert said.messages == []
    subfolder = "atelier/runs/glossy-1/previews"
    assert base[0] == (0, "base-p0-s3.png", subfolder, "output")
    assert later[3] == (200, "step000200-p1-s4.png", subfolder, "output")
    names = {path.name for path in (folder / "previews").iterdir()}
    assert names == {place.filename for place in (*base, *later)}
    with Image.open(folder / "previews" / "step000200-p1-s4.png") as picture:
        told = json.loads(picture.info["atelier_preview"])
    assert (told["prompt"], told["seed"], told["step"]) == ("two [grey] cats", 4, 200)


def test_a_run_draws_when_due_and_at_its_end_also_when_it_is_no_multiple(
    parts: Parts, begin: TrainingState
) -> None:
    spec = replace(SPEC, prompts=("a fox",), seeds=(3,), every_n_steps=2, steps=1)
    run = replace(begin.run, models=GraphModels(parts.model, parts.clip, parts.vae))
    with watched(()) as monitor:
        train_in_graph(start(run), 3, RunOptions(previews=spec), monitor)
    assert [picture["step"] for picture in monitor.report()["previews"]] == [0, 2, 3]


def test_each_distinct_prompt_is_encoded_once_a_row(parts: Parts) -> None:
    spec = replace(SPEC, prompts=("a fox", "a fox", "blurred"), steps=1)
    texts: list[str] = []
    clip = parts.clip.clone()
    tokenize = clip.tokenize
    clip.tokenize = lambda text: texts.append(text) or tokenize(text)
    assert len(list(sample_previews(parts.model, clip, parts.vae, spec, lambda: None))) == 6
    assert sorted(texts) == ["a fox", "blurred"]


def out_of_memory() -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("vae of another model", "expected input"),
        ("no vae", "vae: there is no VAE"),
        ("no text encoder", "clip: there is no text encoder"),
        ("tokens of another model", "KeyError: 'l'"),
        ("memory", "9 GiB. Choose a smaller width and height"),
    ],
)
def test_a_preview_that_cannot_be_drawn_is_told_and_the_run_goes_on(
    parts: Parts,
    halfway: TrainingState,
    trained: TrainingState,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    broken: str,
    reason: str,
) -> None:
    tick, wrong = raise_if_cancelled, parts
    if broken == "vae of another model":
        wrong = replace(parts, vae=kl_autoencoder(16))
    elif broken == "no vae":
        wrong = replace(parts, vae=None)
    elif broken == "no text encoder":
        wrong = replace(parts, clip=None)
    elif broken == "tokens of another model":
        wrong = replace(parts, clip=parts.clip.clone())
        wrong.clip.tokenizer = SD1Tokenizer(clip_name="g")
    else:
        tick = out_of_memory
    mm.unload_all_models()
    before, said = everything(parts), Said()
    assert gallery(wrong, folder, said, tick).make(halfway, 2) == []
    ((text, level),) = said.messages
    assert level == "warning" and reason in text
    assert text.startswith("The previews at step 2 could not be made, training goes on: ")
    assert text in caplog.messages
    assert_same_weights(parts, before)
    end = train(halfway, 2, Recorder())
    assert all(torch.equal(end.network[key], value) for key, value in trained.network.items())


def test_a_folder_that_cannot_be_written_does_not_fail_the_run(parts: Parts, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "previews").write_text("a file in its place")
    said = Said()
    assert gallery(parts, folder, said).make(None, 0) == []
    assert "could not be written" in said.messages[0][0]


def test_a_sheet_that_cannot_be_written_is_told_and_the_pictures_stay(
    parts: Parts, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "previews.png").mkdir(parents=True)
    said = Said()
    assert len(gallery(parts, folder, said).make(None, 0)) == 4
    ((text, _),) = said.messages
    assert text.startswith("The contact sheet of the previews could not be made")


def test_cancel_is_no_failure_of_a_preview(
    parts: Parts, trained: TrainingState, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends the run, at the next step of the sampler, and the models are as they were."""
    mm.unload_all_models()
    before, said, ticks = everything(parts), Said(), []

    def press_cancel_in_the_second_step() -> None:
        ticks.append(1)
        if len(ticks) == 2:
            mm.interrupt_current_processing()
        raise_if_cancelled()

    previews = gallery(parts, folder, said, press_cancel_in_the_second_step)
    with pytest.raises(mm.InterruptProcessingException):
        previews.make(trained, 4)
    assert len(ticks) == 2 and said.messages == []
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert_same_weights(parts, before)


WIDGETS: dict[str, Any] = {
    "prompts": "sks fox\n\n sks cat ",
    "negative": "",
    "seeds": "1, 2",
    "width": 512,
    "height": 768,
    "steps": 12,
    "cfg": 5.5,
    "sampler_name": "dpmpp_2m",
    "scheduler": "karras",
    "every_n_steps": 100,
    "every_n_epochs": 3,
    "base_row": False,
    "guidance": 2.5,
}


def test_the_node_gives_what_its_widgets_say() -> None:
    assert TrainingPreviews.execute(**WIDGETS).args == (
        PreviewSpec(
            ("sks fox", "sks cat"),
            seeds=(1, 2),
            width=512,
            height=768,
            steps=12,
            cfg=5.5,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            every_n_steps=100,
            every_n_epochs=3,
            base_row=False,
            guidance=2.5,
        ),
    )


def test_the_node_offers_the_samplers_of_ksampler() -> None:
    inputs = {i.id: i for i in TrainingPreviews.define_schema().inputs}
    host = host_nodes.KSampler.INPUT_TYPES()["required"]
    for name in ("sampler_name", "scheduler"):
        assert inputs[name].options == list(host[name][0])
        assert inputs[name].default in inputs[name].options
    assert "euler" in sampler_names()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": "\n"}, "prompts is empty"),
        ({"seeds": "one"}, 'seeds: "one" is no whole number'),
        ({"width": 100}, "width is 100"),
        ({"every_n_steps": 0, "every_n_epochs": 0}, "both 0"),
    ],
)
def test_the_queue_refuses_in_words(change: dict[str, Any], message: str) -> None:
    judged = ("prompts", "seeds", "width", "height", "every_n_steps", "every_n_epochs")
    values = {name: WIDGETS[name] for name in judged}
    assert TrainingPreviews.validate_inputs(**values) is True
    assert message in str(TrainingPreviews.validate_inputs(**{**values, **change}))
    with pytest.raises(AtelierError, match=message.replace("(", r"\(")):
        TrainingPreviews.execute(**{**WIDGETS, **change})


@pytest.mark.parametrize("widget", ["sampler_name", "scheduler"])
def test_a_sampler_from_a_link_that_is_not_there_is_refused(widget: str) -> None:
    with pytest.raises(AtelierError, match=f"{widget} is 'quick': this ComfyUI has no such one"):
        TrainingPreviews.execute(**{**WIDGETS, widget: "quick"})
