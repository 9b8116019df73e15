"""CONDITIONING and LATENT that the graph gives ready-made, in place of CLIP and VAE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import folder_paths
import nodes as host_nodes
import numpy as np
import pytest
import torch
from torch import Tensor

from families import FAMILIES, MORE_FAMILIES, Family
from lora_atelier.nodes.graph.outputs import output_folder, states_in
from lora_atelier.nodes.train.states import LoadTrainingState, SaveTrainingState
from lora_atelier.nodes.train.train import TrainLoRA
from lora_atelier.training.base_model.precision import MixedPrecision
from lora_atelier.training.cache import digest_of
from lora_atelier.training.dataset.caption_options import CaptionOptions
from lora_atelier.training.dataset.fit import Crop, FitOptions, LatentKind, Placement
from lora_atelier.training.dataset.pictures import ImagePixels
from lora_atelier.training.dataset.samples import ImageDataset, Role, Sample
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.job_session import start_job
from lora_atelier.training.host.ready_conditioning import require_understood
from lora_atelier.training.host.session import NOTHING, Ready, start_run
from lora_atelier.training.jobs.job_folder import read_job, write_job
from lora_atelier.training.memory.estimate import longest_conditioning
from lora_atelier.training.network.spec import NetworkSpec
from lora_atelier.training.network.targets import TextEncoders
from lora_atelier.training.objective.objective import ObjectiveSpec, PriorSpec
from lora_atelier.training.runs.examples import HELD_OUT, View
from lora_atelier.training.runs.identity import VERSION, run_identity
from lora_atelier.training.runs.listener import Listener
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import Ingredients, TrainingSpec, TrainingState
from lora_atelier.training.runs.spec_json import to_json
from tiny_training import Parts, load_parts, quick_spec

FIT = FitOptions((64,))
TEXTS = ("a red fox", "two grey cats on a wall", "a glass of water", "one old blue bicycle")
BASE = {"prompt": {"1": {"class_type": "A", "inputs": {}}}, "model": ["1", 0], "clip": ["1", 1]}


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's output folder, new."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)


def pictures(**options: Any) -> ImageDataset:
    """All three roles, and a mask."""
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :40] = 255
    samples = [
        Sample(ImagePixels(pixels(i)), f"{i}.png", (text,), **{"fit": FIT, **options})
        for i, text in enumerate(TEXTS)
    ]
    samples[0] = replace(samples[0], mask=ImagePixels(mask))
    samples[2] = replace(samples[2], role=Role.REGULARISATION)
    samples[3] = replace(samples[3], role=Role.VALIDATION)
    return ImageDataset(tuple(samples), "few")


@torch.inference_mode()  # as ComfyUI runs them
def read(parts: Parts, *texts: str) -> list[Any]:
    """CLIP Text Encode of each, put together with Conditioning (Combine)."""
    entries: list[Any] = []
    for text in texts:
        (one,) = host_nodes.CLIPTextEncode().encode(parts.clip, text)
        (entries,) = host_nodes.ConditioningCombine().combine(entries, one)
    return entries


@torch.inference_mode()
def seen(parts: Parts, count: int = len(TEXTS)) -> dict[str, Tensor]:
    """VAE Encode of each picture, one batch of all. (Encoded as a batch they are rounded
    otherwise.)"""
    encode = host_nodes.VAEEncode().encode
    images = [torch.from_numpy(pixels(i)).unsqueeze(0).float() / 255 for i in range(count)]
    return {"samples": torch.cat([encode(parts.vae, image)[0]["samples"] for image in images])}


@pytest.fixture(scope="module")
def ready(parts: Parts) -> Ready:
    return Ready(read(parts, *TEXTS), seen(parts))


@torch.inference_mode()
def begin(
    parts: Parts,
    cache: Path,
    given: Ready = NOTHING,
    dataset: ImageDataset | None = None,
    **choices: Any,
) -> TrainingState:
    spec = quick_spec(**{"train_batch_size": 2, **choices})
    dataset = dataset or pictures()
    return start_run(parts.model, parts.clip, parts.vae, dataset, spec, cache, given)


def without_encoders(parts: Parts) -> Parts:
    return replace(parts, clip=None, vae=None)


@torch.inference_mode()
def trained(state: TrainingState, steps: int = 3) -> TrainingState:
    return train(state, steps, Listener())


def require_same(one: TrainingState, other: TrainingState) -> None:
    assert [r.loss for r in one.history] == [r.loss for r in other.history]
    assert [r.grad_norm for r in one.history] == [r.grad_norm for r in other.history]
    assert [p.loss for p in one.validations][:1] == [p.loss for p in other.validations][:1] != []
    assert one.validations[-1].loss == other.validations[-1].loss
    assert all(torch.equal(one.network[name], other.network[name]) for name in one.network)


def test_it_trains_as_on_what_clip_and_vae_make(parts: Parts, cache: Path, ready: Ready) -> None:
    """Losses, gradients, held-out losses and weights, bit for bit."""
    encoded = begin(parts, cache)
    given = begin(without_encoders(parts), cache, ready)
    for place in range(len(TEXTS)):
        own, theirs = (state.run.data.images[View(place, HELD_OUT)] for state in (encoded, given))
        assert torch.equal(own.latent, theirs.latent)
        masks = own.mask, theirs.mask
        assert masks == (None, None) if place else torch.equal(*masks)
    require_same(trained(given), trained(encoded))


@pytest.mark.parametrize("part", ["conditioning", "latents"])
def test_either_may_be_ready_alone(part: str, parts: Parts, cache: Path, ready: Ready) -> None:
    given = Ready(**{part: getattr(ready, part)})
    absent = {"conditioning": "clip", "latents": "vae"}[part]
    state = begin(replace(parts, **{absent: None}), cache, given)
    require_same(trained(state, 1), trained(begin(parts, cache), 1))


def test_a_batch_in_one_entry_is_that_many_entries(parts: Parts, cache: Path, ready: Ready) -> None:
    entries = ready.conditioning
    together = [
        torch.cat([embedding for embedding, _ in entries]),
        {
            "pooled_output": torch.cat([extras["pooled_output"] for _, extras in entries]),
            "guidance": 3.5,
            "reference_latents": [torch.zeros(1, 4, 2, 2)],
        },
    ]
    mixed = begin(parts, cache, Ready([together]))
    for number, sample in enumerate(mixed.run.dataset.samples):
        embedding, extras = mixed.run.data.conditioning[mixed.run.data.key(sample, "")]
        assert torch.equal(embedding, entries[number][0])
        assert torch.equal(extras["pooled_output"], entries[number][1]["pooled_output"])
        assert extras["guidance"] == 3.5 and extras["reference_latents"][0].shape == (1, 4, 2, 2)
    two_and_two = [
        [torch.cat([entries[i][0], entries[i + 1][0]]), {"pooled_output": None}] for i in (0, 2)
    ]
    state = begin(parts, cache, Ready(two_and_two))
    own = state.run.data.conditioning[state.run.data.key(state.run.dataset.samples[3], "")]
    assert torch.equal(own[0], entries[3][0])


def test_one_entry_is_that_of_all_pictures(parts: Parts, cache: Path) -> None:
    given = Ready(read(parts, "a thing"))
    same = [replace(s, captions=("a thing",)) for s in pictures().samples]
    ours = begin(replace(parts, clip=None), cache, given)
    require_same(trained(ours), trained(begin(parts, cache, dataset=pictures().changed(same))))
    notes = given.notes(ours.run.models, pictures())
    assert "one entry for all 4 pictures, though their captions differ" in notes[0]
    assert given.notes(ours.run.models, pictures().changed(same)) == []


def test_what_was_given_stays_as_it_is(parts: Parts, cache: Path, ready: Ready) -> None:
    before = [e.clone() for e, _ in ready.conditioning], ready.latents["samples"].clone()
    trained(begin(without_encoders(parts), cache, ready), 1)
    after = [e for e, _ in ready.conditioning], ready.latents["samples"]
    assert all(map(torch.equal, before[0], after[0])) and torch.equal(before[1], after[1])


def test_the_longest_of_all_is_rehearsed(parts: Parts, cache: Path) -> None:
    """Entries of a text encoder that does not pad; the memory is estimated for the longest."""
    entries = [[torch.ones(1, 5, 768), {}] for _ in range(11)] + [[torch.ones(1, 30, 768), {}]]
    one = pictures().samples[1]  # more of them than are looked at
    many = pictures().changed(replace(one, name=f"{i}.png") for i in range(len(entries)))
    state = begin(replace(parts, clip=None), cache, Ready(entries), many)
    assert longest_conditioning(state.run)[0].shape[1] == 30
    assert state.run.memory.activations is not None
    trained(state, 1)


def test_prior_preservation_reads_its_prompt_with_the_clip(
    parts: Parts, cache: Path, ready: Ready
) -> None:
    prior = {
        "objective": ObjectiveSpec(
            prior=PriorSpec(prior_preservation=0.5, class_prompt="an animal")
        )
    }
    require_same(
        trained(begin(parts, cache, ready, **prior)), trained(begin(parts, cache, **prior))
    )
    with pytest.raises(AtelierError, match='^class_prompt "an animal" .* Wire clip'):
        begin(without_encoders(parts), cache, ready, **prior)


# Which run it is


def test_runs_of_other_inputs_are_other_runs(parts: Parts, cache: Path, ready: Ready) -> None:
    mirrored = {"samples": ready.latents["samples"].flip(-1)}
    turned = [ready.conditioning[i] for i in (1, 0, 2, 3)]
    states = {
        "encoded": begin(parts, cache),
        "ready": begin(parts, cache, ready),
        "conditioning": begin(parts, cache, Ready(ready.conditioning)),
        "latents": begin(parts, cache, Ready(None, ready.latents)),
        "turned": begin(parts, cache, ready._replace(conditioning=turned)),
        "mirrored": begin(parts, cache, ready._replace(latents=mirrored)),
    }
    identities = {state.run.identity for state in states.values()}
    assert "" not in identities and len(identities) == len(states)
    # CLIP and VAE have no part in it, so it does not matter whether they are wired.
    again = begin(without_encoders(parts), cache, ready)
    assert again.run.identity == states["ready"].run.identity
    changes = states["encoded"].run.ingredients.differences(again.run.ingredients)
    assert changes == ["conditioning", "latents"]


def test_runs_that_encode_are_those_they_were_before_anything_could_be_ready() -> None:
    ingredients, spec = Ingredients("m", "c", "v", "d"), TrainingSpec()
    four = {"model": "m", "clip": "c", "vae": "v", "dataset": "d"}
    without = ("max_train_steps", "validate_every_n_steps", "gradient_checkpointing")
    left_out = (*without, "on_divergence")
    settings = {n: v for n, v in to_json(spec).items() if n not in left_out}
    assert run_identity(ingredients, spec) == digest_of(VERSION, four, settings, "")
    assert len(asdict(ingredients)) == 6
    for missing in ({"clip": ""}, {"vae": ""}, {"model": ""}, {"dataset": ""}):
        assert run_identity(replace(ingredients, **missing), spec) == ""
    ready = replace(ingredients, clip="", vae="", conditioning="c", latents="v")
    assert run_identity(ready, spec) not in ("", run_identity(ingredients, spec))


def through_the_node(parts: Parts, ready: Ready, steps: int) -> Any:
    widgets = {"train_batch_size": 1, "gradient_accumulation_steps": 1, "mixed_precision": "no"}
    with torch.inference_mode():
        return TrainLoRA.execute(
            parts.model,
            pictures(),
            conditioning=ready.conditioning,
            latents=ready.latents,
            max_train_steps=steps,
            seed=1,
            **widgets,
        ).args


def test_the_node_needs_neither_clip_nor_vae_and_resumes(
    parts: Parts, ready: Ready, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lora_atelier")
    first, model, clip, lora, _ = through_the_node(parts, ready, 2)
    assert "resumed" not in caplog.text and clip is None and model.patches
    assert lora.metadata["ss_tag_frequency"].count("fox") == 1
    longer = through_the_node(parts, ready, 3)[0]
    assert "resumed at step 2" in caplog.text
    assert longer.history[:2] == first.history


def test_a_job_trains_on_it_without_a_text_encoder(
    parts: Parts, cache: Path, ready: Ready, tmp_path: Path
) -> None:
    begun = begin(without_encoders(parts), cache, ready)
    job = read_job(write_job(tmp_path / "job", begun, BASE))
    for clip in (None, parts.clip):
        with torch.inference_mode():
            there = start_job(job, parts.model, clip)
        assert there.run.identity == begun.run.identity
        require_same(trained(there), trained(begun))


def saved(state: TrainingState) -> str:
    """As Load Training State lists it."""
    SaveTrainingState.execute(state, "atelier/saved/run")
    (file,) = states_in(output_folder())
    return file


def test_a_state_comes_back_with_what_it_was_made_of(
    parts: Parts, cache: Path, ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("lora_atelier.nodes.train.states.show_text", told.append)
    begun = begin(without_encoders(parts), cache, ready)
    file = saved(trained(begun, 1))
    with torch.inference_mode():
        (same,) = LoadTrainingState.execute(file, parts.model, pictures(), **ready._asdict()).args
        assert same.run.identity == begun.run.identity and "not the one" not in told[-1]
        require_same(trained(same, 2), trained(begun, 3))
        (other,) = LoadTrainingState.execute(
            file, parts.model, pictures(), parts.clip, None, latents=ready.latents
        ).args
    assert other.run.identity not in ("", begun.run.identity)
    assert "conditioning: not the one this state was trained with" in told[-1]
    assert "latents: not" not in told[-1]


# What is refused


def changed_extras(**extras: Any) -> Callable[[Ready], Ready]:
    return lambda ready: ready._replace(
        conditioning=[[e, {**old, **extras}] for e, old in ready.conditioning]
    )


def changed_latents(change: Callable[[Tensor], Any]) -> Callable[[Ready], Ready]:
    return lambda ready: ready._replace(latents={"samples": change(ready.latents["samples"])})


REFUSED: dict[str, tuple[Callable[[Ready], Ready], str]] = {
    "no conditioning": (lambda r: r._replace(conditioning=None), "^clip: this checkpoint holds no"),
    "no latents": (lambda r: r._replace(latents=None), "^vae: this checkpoint holds no VAE, or"),
    "too few entries": (
        lambda r: r._replace(conditioning=r.conditioning[:3]),
        "conditioning: it has 3 entries, but the dataset 4 pictures.* 0.png, 1.png",
    ),
    "another width": (
        lambda r: r._replace(conditioning=[[torch.ones(1, 77, 512), {}]]),
        r"conditioning: its embedding \(77×512\) does not fit this model",
    ),
    "no numbers": (
        lambda r: r._replace(conditioning=[[torch.full((1, 77, 768), torch.inf), {}]]),
        "conditioning: it holds numbers that are not finite",
    ),
    "no embedding": (
        lambda r: r._replace(conditioning=[["text", {}]]),
        "conditioning: an entry of it holds no embedding",
    ),
    "an odd batch": (
        lambda r: r._replace(
            conditioning=[[torch.ones(4, 77, 768), {"pooled_output": torch.ones(3, 768)}]]
        ),
        "conditioning: its pooled_output is a batch of 3, but its embedding one of 4",
    ),
    "an area": (changed_extras(area=(8, 8, 0, 0)), "conditioning: it carries area, which only a"),
    "a mask": (changed_extras(mask=torch.ones(1, 8, 8)), "conditioning: it carries mask, which"),
    "a part of the steps": (changed_extras(start_percent=0.5), "it carries start_percent, which"),
    "an object": (changed_extras(clip_vision_output=object()), "a value of the kind object, which"),
    "too few latents": (
        changed_latents(lambda x: x[:3]),
        "latents: a batch of 3, but the dataset holds 4 pictures.* 0.png, 1.png",
    ),
    "other channels": (
        changed_latents(lambda x: torch.ones(4, 16, 8, 8)),
        "latents: their shape is 4×16×8×8, but this model works with latents of 4 channels and 2",
    ),
    "films": (
        changed_latents(lambda x: torch.ones(4, 4, 1, 8, 8)),
        "latents: their shape is 4×4×1×8×8, but",
    ),
    "another shape": (
        changed_latents(lambda x: x[..., :4]),
        'latents: 4×8, but "0.png" trains at 64×64 px',
    ),
    "an empty latent": (changed_latents(torch.zeros_like), "latents: one is all zero, as Empty"),
    "infinite": (changed_latents(lambda x: x / 0), "latents: they hold numbers that are not"),
    "several sizes": (
        changed_latents(lambda x: torch.nested.nested_tensor([torch.ones(4, 8, 8)] * 4)),
        "latents: they are no batch of one size",
    ),
    "for inpainting": (
        lambda r: r._replace(latents={**r.latents, "noise_mask": torch.ones(4, 1, 64, 64)}),
        "latents: they carry a mask for a sampler",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str, parts: Parts, cache: Path, ready: Ready) -> None:
    change, message = REFUSED[case]
    with pytest.raises(AtelierError, match=message):
        begin(without_encoders(parts), cache, change(ready))


def test_a_vae_that_is_wired_says_how_large_a_latent_is(
    parts: Parts, cache: Path, ready: Ready
) -> None:
    """Half the size is as square as the whole: without a VAE it is taken for one of 16 px steps."""
    small = ready._replace(latents={"samples": ready.latents["samples"][..., ::2, ::2]})
    state = begin(without_encoders(parts), cache, small)
    assert small.notes(state.run.models, pictures()) == [
        "latents: ready, 4×4 for pictures of 64×64 px"
    ]
    with pytest.raises(AtelierError, match='latents: 4×4, but "0.png" trains at 64×64 px'):
        begin(replace(parts, clip=None), cache, small)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle_caption": True}, "^shuffle_caption cannot act"),
        ({"caption_tag_dropout_rate": 0.1}, "^caption_tag_dropout_rate cannot act"),
        ({"caption_dropout_rate": 0.1}, "^caption_dropout_rate cannot act"),
        ({"caption_dropout_every_n_epochs": 2}, "^caption_dropout_every_n_epochs cannot act"),
        ({"enable_wildcard": True}, "^enable_wildcard cannot act"),
    ],
)
def test_options_of_captions_that_nobody_reads_are_refused(
    options: dict[str, Any], message: str, parts: Parts, cache: Path, ready: Ready
) -> None:
    samples = [
        replace(s, captions=("a {red|blue} fox",), caption_options=CaptionOptions(**options))
        for s in pictures().samples
    ]
    dataset = pictures().changed(samples)
    with pytest.raises(AtelierError, match=message):
        begin(parts, cache, ready, dataset)
    begin(parts, cache, Ready(None, ready.latents), dataset)  # which the text encoder does read


def test_several_captions_of_a_picture_are_told(parts: Parts, cache: Path, ready: Ready) -> None:
    samples = list(pictures().samples)
    samples[1] = replace(samples[1], captions=("cats", "two cats"))
    dataset = pictures().changed(samples)
    state = begin(parts, cache, ready, dataset)
    text = " ".join(ready.notes(state.run.models, dataset))
    assert "1 pictures have several captions (1.png)" in text


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        ({"flip_aug": True}, "flip_aug is on"),
        ({"crop": Crop.RANDOM}, "crop is random"),
        ({"latents": LatentKind.SAMPLE}, "latents is sample"),
        ({"resolutions": (64, 128)}, "resolution has 2 values"),
    ],
)
def test_other_ways_to_see_a_picture_are_refused(
    fit: dict[str, Any], message: str, parts: Parts, cache: Path, ready: Ready
) -> None:
    dataset = pictures(fit=FitOptions(**{"resolutions": (64,), **fit}))
    with pytest.raises(AtelierError, match=f"^{message} .Fit Images., but ready latents are"):
        begin(parts, cache, ready, dataset)


def test_a_text_encoder_is_not_trained_on_what_it_does_not_read(
    parts: Parts, cache: Path, ready: Ready
) -> None:
    network = NetworkSpec(4, 2.0, text_encoders=TextEncoders.CLIP)
    with pytest.raises(AtelierError, match="text_encoders is clip, but conditioning is connected"):
        begin(parts, cache, ready, network=network)


def understood(model: HostDiffusionModel, conditioning: list[Any], family: Family) -> None:
    size = 8 * family.latent[-1], 8 * family.latent[-2]
    placement = Placement(size, size, (0, 0), size)
    require_understood(model, MixedPrecision.NO, conditioning, placement)


@pytest.mark.parametrize("name", [*FAMILIES, *MORE_FAMILIES])
def test_each_family_takes_its_own_conditioning_and_no_other(name: str) -> None:
    family = {**FAMILIES, **MORE_FAMILIES}[name]
    model = HostDiffusionModel(family.patcher())
    own = family.conditioning(1)
    understood(model, own, family)
    ((embedding, extras),) = own
    wider = [[torch.cat([embedding, embedding], -1), extras]]
    with pytest.raises(AtelierError, match="5×96. does not fit this model"):
        understood(model, wider, family)


def test_sdxl_says_that_it_lacks_the_pooled_output() -> None:
    family = FAMILIES["sdxl"]
    model = HostDiffusionModel(family.patcher())
    bare = [[family.conditioning(1)[0][0], {}]]
    with pytest.raises(AtelierError, match="conditioning: this model also reads 'pooled_output'"):
        understood(model, bare, family)
