"""Generate Dataset paints what the host's own nodes paint, and keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management as mm
import folder_paths
import nodes as host_nodes
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lora_atelier.nodes.generate.folder_memory import FolderMemory
from lora_atelier.nodes.generate.generate import GenerateDataset
from lora_atelier.nodes.graph.graph_names import base_model_file
from lora_atelier.training.dataset.digests import content_digest
from lora_atelier.training.dataset.folder import folder_fingerprint
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.samples import Role
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.generate.plan import SEEDS, GenerateSpec, Planned
from lora_atelier.training.generate.prompts import Prompt, PromptSet
from lora_atelier.training.host import generating
from lora_atelier.training.host.generating import STEADY_SAMPLERS, Models, paint
from tiny_training import Parts, load_parts
from widget_models import kl_autoencoder, small_flux

LONG = "a (red:1.3) fox " + "with many words " * 40
"""More than one chunk of CLIP's 77 tokens."""
PROMPTS = PromptSet(
    (
        Prompt("a (red:1.3) fox, flat", "sks, a fox", "fox", "fox", "flat"),
        Prompt("two cats, flat", "sks, two cats", "cats", "cats", "flat"),
        Prompt("an owl, flat", "sks, an owl", "owl", "owl", "flat"),
    )
)
WIDGETS: dict[str, Any] = {
    "folder": "sets/style",
    "images_per_prompt": 1,
    "seed": 7,
    "steps": 2,
    "cfg": 3.0,
    "sampler_name": "euler_ancestral",  # draws from the streams as it goes
    "scheduler": "karras",
    "negative": "blurred",
}


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module", autouse=True)
def texts_are_encoded_once() -> Iterator[None]:
    """By the real encoder; nearly all the time of these tests would go into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generating, "encode_text", lru_cache(generating.encode_text))
        yield


@pytest.fixture(autouse=True)
def as_in_a_node() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def empty(batch: int = 1, width: int = 32, height: int = 48) -> dict[str, Tensor]:
    return host_nodes.EmptyLatentImage().generate(width, height, batch)[0]


def generate(parts: Parts, batch: int = 1, prompts: PromptSet = PROMPTS, **widgets: Any) -> Any:
    return GenerateDataset.execute(
        parts.model, parts.clip, parts.vae, prompts, empty(batch), **{**WIDGETS, **widgets}
    )


def saved_by_the_host(parts: Parts, text: str, seed: int, folder: Path, **widgets: Any) -> Path:
    """CLIPTextEncode, EmptyLatentImage, KSampler, VAEDecode, SaveImage."""
    values = {**WIDGETS, **widgets}
    encode = host_nodes.CLIPTextEncode().encode
    (positive,), (negative,) = (encode(parts.clip, t) for t in (text, values["negative"]))
    sampler = [values[name] for name in ("steps", "cfg", "sampler_name", "scheduler")]
    (latent,) = host_nodes.KSampler().sample(
        parts.model, seed, *sampler, positive, negative, empty()
    )
    (images,) = host_nodes.VAEDecode().decode(parts.vae, latent)
    saved = host_nodes.SaveImage().save_images(images, "host/picture")
    return folder / "host" / saved["ui"]["images"][0]["filename"]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def painted(folder: Path) -> dict[int, Path]:
    """By seed."""
    text = (folder / "metadata.jsonl").read_text("utf-8")
    records = map(json.loads, text.splitlines())
    return {record["seed"]: folder / record["file_name"] for record in records}


@pytest.mark.parametrize("sampler", ["euler_ancestral", "dpmpp_sde", "dpmpp_2m"])
def test_pictures_are_those_of_the_hosts_nodes_to_the_bit(
    parts: Parts, output: Path, sampler: str
) -> None:
    generate(parts, sampler_name=sampler, images_per_prompt=2)
    found = painted(output / "sets/style")
    assert sorted(found) == [7, 8, 9, 10, 11, 12]
    for seed, prompt in zip([7, 11], PROMPTS.prompts, strict=False):
        own = pixels(found[seed])
        host = pixels(saved_by_the_host(parts, prompt.text, seed, output, sampler_name=sampler))
        assert own.shape == (48, 32, 3) and own.std() > 1
        assert np.array_equal(own, host)


def test_what_draws_noise_on_the_way_does_not_depend_on_the_batch(
    parts: Parts, output: Path
) -> None:
    generate(parts, batch=3)
    for seed, prompt in zip((7, 8, 9), PROMPTS.prompts, strict=True):
        host = saved_by_the_host(parts, prompt.text, seed, output)
        assert np.array_equal(pixels(painted(output / "sets/style")[seed]), pixels(host))


def images(
    parts: Parts, spec: GenerateSpec, batch: int, texts: tuple[str, ...] = ()
) -> tuple[list[int], Tensor]:
    """How batches were cut, and the pictures [N, H, W, 3]."""
    texts = texts or tuple(prompt.text for prompt in PROMPTS.prompts)
    planned = [Planned(Prompt(t, t, t), i, f"{i}.png") for i, t in enumerate(texts)]
    models = Models(parts.model, parts.clip, parts.vae)
    sizes, found = [], {}
    latent = empty(1, 32, 32)["samples"]
    for some in paint(models, latent, spec, planned, batch, lambda pictures: None):
        sizes.append(len(some))
        found |= {picture.file_name: image for picture, image in some}
    return sizes, torch.stack([found[picture.file_name] for picture in planned])


@pytest.mark.parametrize("sampler", sorted(STEADY_SAMPLERS))
def test_a_batch_of_a_steady_sampler_is_its_pictures_to_within_rounding(
    parts: Parts, sampler: str
) -> None:
    spec = GenerateSpec(steps=4, cfg=2.0, sampler_name=sampler, negative="blurred")
    (one, alone), (three, together) = images(parts, spec, 1), images(parts, spec, 3)
    assert (one, three) == ([1, 1, 1], [3])
    assert (alone[0] - alone[1]).abs().mean() > 0.02
    assert (alone - together).abs().max() < 1e-4


def test_prompts_of_other_lengths_do_not_share_a_batch(parts: Parts) -> None:
    spec = GenerateSpec(steps=2, sampler_name="euler")
    texts = (LONG, "a cat", "an owl", LONG + "again")
    sizes, together = images(parts, spec, 2, texts)
    assert sizes == [1, 1, 1, 1]
    assert torch.equal(together, images(parts, spec, 1, texts)[1])


def test_no_more_prompts_are_encoded_than_may_be_held(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = GenerateSpec(steps=1, sampler_name="euler")
    texts = ("a fox", "a cat", "an owl", "a fox")
    whole = images(parts, spec, 4, texts)
    monkeypatch.setattr(generating, "HELD_TEXTS", 300_000)  # two of 77 × 768 float32
    sizes, pictures = images(parts, spec, 4, texts)
    assert (whole[0], sizes) == ([4], [3, 1])
    assert torch.allclose(pictures, whole[1], atol=1e-3)


def test_guidance_reaches_the_model(parts: Parts) -> None:
    flux = Parts(small_flux(), parts.clip, kl_autoencoder(16))
    spec = GenerateSpec(steps=1, cfg=1.0, scheduler="simple")
    alone, guided = (images(flux, replace(spec, guidance=g), 2) for g in (0.0, 9.0))
    assert alone[0] == guided[0] == [2, 1]
    assert not torch.equal(alone[1], guided[1])


def test_the_dataset_and_what_the_node_shows(parts: Parts, output: Path) -> None:
    result = generate(parts, role="regularisation", license="MIT", source="my garden")
    dataset, folder = result.args
    assert folder == str(output / "sets/style")
    assert [sample.caption for sample in dataset.samples] == [
        "sks, two cats",
        "sks, a fox",
        "sks, an owl",
    ]
    for sample in dataset.samples:
        assert (sample.role, sample.license) == (Role.REGULARISATION, "MIT")
        assert sample.source == "my garden"
        assert sample.image.size == (32, 48)
        assert sample.fit.resolutions == (64,)  # the least there is
    names = [(image["subfolder"], image["filename"]) for image in result.ui["images"]]
    assert len(names) == 3
    assert all((output / subfolder / name).is_file() for subfolder, name in names)
    assert result.ui["text"] == ("3 pictures → output/sets/style\n3 painted now, 0 were there",)


def test_what_is_there_is_not_painted_again(parts: Parts, output: Path) -> None:
    generate(parts)
    before = {p: p.stat().st_mtime_ns for p in (output / "sets/style").iterdir()}
    again = generate(parts)
    assert "0 painted now, 3 were there" in again.ui["text"][0]
    assert {p: p.stat().st_mtime_ns for p in (output / "sets/style").iterdir()} == before
    more = generate(parts, images_per_prompt=2)
    assert "3 painted now, 3 were there" in more.ui["text"][0]
    assert len(more.args[0].samples) == 6


def test_other_settings_paint_others_beside_them(parts: Parts) -> None:
    generate(parts)
    result = generate(parts, cfg=4.0)
    assert "3 other pictures stay there and are not in the dataset" in result.ui["text"][0]
    assert len(result.args[0].samples) == 3


def test_another_lora_is_another_model(parts: Parts) -> None:
    generate(parts)
    patched = parts.model.clone()
    name = "diffusion_model.out.2.weight"
    weight = parts.model.model_state_dict()[name]
    patched.add_patches({name: ("diff", (torch.full_like(weight, 0.01),))})
    other = generate(Parts(patched, parts.clip, parts.vae))
    assert "3 painted now" in other.ui["text"][0]


def test_a_model_that_another_node_has_changed_is_never_taken_for_the_same(parts: Parts) -> None:
    """As Rescale CFG does."""
    changed = parts.model.clone()
    changed.set_model_sampler_cfg_function(lambda args: args["cond"])
    odd = Parts(changed, parts.clip, parts.vae)
    generate(odd)
    again = generate(odd)
    assert "3 painted now, 0 were there" in again.ui["text"][0]
    assert "made anew each time" in again.ui["text"][0]
    assert len(again.args[0].samples) == 3


def test_cancel_keeps_what_is_done(
    parts: Parts, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = generating.sample_latents, []

    def press_cancel_in_the_second_picture(*arguments: Any) -> Tensor:
        steps.append(1)
        if len(steps) == 2:
            mm.interrupt_current_processing()
            mm.throw_exception_if_processing_interrupted()
        return real(*arguments)

    monkeypatch.setattr(generating, "sample_latents", press_cancel_in_the_second_picture)
    with pytest.raises(mm.InterruptProcessingException):
        generate(parts)
    assert list(painted(output / "sets/style")) == [7]
    monkeypatch.undo()
    monkeypatch.setattr(folder_paths, "output_directory", str(output))
    assert "2 painted now, 1 were there" in generate(parts).ui["text"][0]


def test_cancel_is_heard_while_prompts_are_encoded(parts: Parts) -> None:
    class Cancelled(Exception):
        pass

    def cancelled(pictures: int) -> None:
        assert pictures == 0, "no step of the sampler was taken"
        raise Cancelled

    planned = [Planned(prompt, i, f"{i}.png") for i, prompt in enumerate(PROMPTS.prompts)]
    models = Models(parts.model, parts.clip, parts.vae)
    latent = empty(1, 32, 32)["samples"]
    with pytest.raises(Cancelled):
        next(paint(models, latent, GenerateSpec(steps=1), planned, 1, cancelled))


def test_prompts_with_masks_do_not_share_a_batch() -> None:
    """OmniGen2, Mochi and others: extra_conds counts the tokens of a whole batch of masks."""
    plain = [[torch.zeros(1, 4, 8), {"pooled_output": torch.zeros(1, 8)}]]
    masked = [[torch.zeros(1, 4, 8), {"attention_mask": torch.ones(1, 4)}]]
    assert len(generating._stacked([plain, plain])[0][0]) == 2
    assert generating._stacked([masked, masked]) is None
    assert generating._stacked([masked]) is masked


def test_the_picture_brings_the_graph_back_unless_told_not_to(
    parts: Parts, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = {"1": {"class_type": "KSampler", "inputs": {}}}
    hidden = SimpleNamespace(prompt=graph, extra_pnginfo={"workflow": {"nodes": []}})
    monkeypatch.setattr(GenerateDataset, "hidden", hidden, raising=False)
    generate(parts)
    texts = Image.open(painted(output / "sets/style")[7]).text
    assert json.loads(texts["prompt"]) == graph
    assert json.loads(texts["workflow"]) == {"nodes": []}
    assert texts["parameters"].startswith("a (red:1.3) fox, flat\nNegative prompt: blurred\nSteps")
    monkeypatch.setattr(generating.args, "disable_metadata", True)
    generate(parts, folder="sets/bare")
    bare = painted(output / "sets/bare")[7]
    assert Image.open(bare).text == {}
    digests = [
        content_digest(ImageFile(str(path), (32, 48)))
        for path in (bare, painted(output / "sets/style")[7])
    ]
    assert digests[0] == digests[1], "so that a choice finds it, whatever graph painted it"


def test_a_latent_that_holds_something_is_refused(parts: Parts) -> None:
    full, masked = empty(), empty()
    full["samples"] = full["samples"] + 1
    masked["noise_mask"] = torch.ones(1, 64, 96)
    for latent in (full, masked):
        with pytest.raises(AtelierError, match="latent_image is not empty"):
            GenerateDataset.execute(parts.model, parts.clip, parts.vae, PROMPTS, latent, **WIDGETS)


@pytest.mark.parametrize("missing", ["clip", "vae"])
def test_a_checkpoint_without_encoders_is_refused(parts: Parts, missing: str) -> None:
    models = {"clip": parts.clip, "vae": parts.vae, missing: None}
    with pytest.raises(AtelierError, match=f"{missing}: there is no"):
        generate(Parts(parts.model, models["clip"], models["vae"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": "../x"}, "leads out of"),
        ({"folder": " "}, "folder is empty"),
        ({"images_per_prompt": 0}, "images_per_prompt is 0"),
        ({"seed": SEEDS}, "seed is"),
        ({"steps": 0}, "steps is 0"),
        ({"cfg": -1.0}, "cfg is -1"),
        ({"guidance": 200.0}, "guidance is 200"),
    ],
)
def test_the_queue_refuses_in_words(change: dict[str, Any], message: str) -> None:
    assert GenerateDataset.validate_inputs(folder="sets/style", seed=1) is True
    assert GenerateDataset.validate_inputs() is True
    assert message in str(GenerateDataset.validate_inputs(**change))


def test_a_sampler_from_a_link_that_is_not_there_is_refused(parts: Parts) -> None:
    with pytest.raises(AtelierError, match="sampler_name is 'quick'"):
        generate(parts, sampler_name="quick")


def test_only_changes_of_others_make_it_run_again(parts: Parts, output: Path) -> None:
    first = GenerateDataset.fingerprint_inputs("sets/style")
    generate(parts)
    assert GenerateDataset.fingerprint_inputs("sets/style") == first
    next((output / "sets/style").glob("*.png")).unlink()
    second = GenerateDataset.fingerprint_inputs("sets/style")
    assert second != first
    generate(parts)
    assert GenerateDataset.fingerprint_inputs("sets/style") == second
    assert GenerateDataset.fingerprint_inputs(None) == "linked"
    assert "leads out" in GenerateDataset.fingerprint_inputs("../x")


def test_a_run_that_failed_runs_again_only_when_it_left_something(output: Path) -> None:
    memory, folder = FolderMemory(folder_fingerprint), output / "half"
    first = memory.fingerprint(folder)
    assert memory.fingerprint(folder) == first
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    assert memory.fingerprint(folder) != first


def test_the_file_of_the_base_is_found_past_loras() -> None:
    graph = {
        "1": {"inputs": {"ckpt_name": "sd/base.safetensors"}},
        "2": {"inputs": {"model": ["1", 0], "lora_name": "x.safetensors"}},
        "3": {"inputs": {"model": ["2", 0], "folder": "datasets/style"}},
        "4": {"inputs": {"model": ["4", 0]}},
        "5": {"inputs": {"model": ["gone", 0]}},
    }
    assert base_model_file(graph, "3") == "sd/base.safetensors"
    assert [base_model_file(graph, node) for node in ("4", "5", "9", None)] == [""] * 4
    assert base_model_file(None, "3") == ""
