"""No option is decoration: the widgets of the nodes before and after a training run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from comfy_execution.utils import CurrentNodeContext
from safetensors.torch import save_file

from families import FAMILIES
from in_memory import FIT
from lora_atelier.training.dataset.pictures import ImageFile, ImagePixels, open_picture
from lora_atelier.training.dataset.samples import ImageDataset, Sample
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.generate.prompts import Prompt, PromptSet
from lora_atelier.training.host.session import start_run
from lora_atelier.training.jobs.job_folder import write_job
from lora_atelier.training.results.preview_spec import PreviewSpec
from lora_atelier.training.runs.run import start
from taggers import colour_tagger
from tiny import tiny_sd15
from tiny_captioners import blip, git, pictures
from tiny_training import CAPTIONS, encode, load_parts, make_run, quick_spec
from widget_models import kl_autoencoder, small_flux
from widget_runs import CONFIG, NODE, PIECES, call, widgets_of

ROOT = Path(__file__).resolve().parents[2]
IMAGES = torch.rand(2, 64, 96, 3, generator=torch.Generator().manual_seed(1))
LORA = {
    "lora_unet_double_blocks_0_img_mod_lin.lora_down.weight": torch.full((2, 64), 1 / 3),
    "lora_unet_double_blocks_0_img_mod_lin.lora_up.weight": torch.full((384, 2), 1 / 7),
}
LOSSES = {"loss": [1.0, 0.8, 0.9, 0.5]}


def pixels(number: int) -> ImagePixels:
    return ImagePixels(np.full((64, 64, 3), 40 * number, np.uint8))


DATASET = ImageDataset(
    tuple(Sample(pixels(i), f"{i}.png", (f"picture {i}",), fit=FIT) for i in range(3))
)


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """ComfyUI's folders, all new."""
    for name in ("input", "output", "loras"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    loras = ([str(tmp_path / "loras")], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", loras)
    yield tmp_path


@pytest.fixture(scope="module", autouse=True)
def models_go_with_the_tests() -> Iterator[None]:
    yield
    run_of_pictures.cache_clear()
    run_at_its_start.cache_clear()
    flux.cache_clear()  # the host's own clean-up fails when Python itself is on its way out


def files(base: Path) -> dict[str, bytes]:
    return {str(p.relative_to(base)): p.read_bytes() for p in base.rglob("*") if p.is_file()}


def made_dataset(base: Path, widgets: dict[str, Any]) -> Any:
    """What Load Image Dataset gives too: name and samples, here without their pixels."""
    node = "AtelierDatasetFromImages"
    values = {name: [value] for name, value in (widgets_of(node) | widgets).items()}
    (dataset,) = call(node, values, images=[IMAGES])
    nothing = ImageFile("", (0, 0))
    return dataset.name, [replace(sample, image=nothing) for sample in dataset.samples]


def saved_twice(base: Path, widgets: dict[str, Any]) -> Any:
    """The second time over what is there already."""
    for _ in range(2):
        try:
            call("AtelierSaveDataset", widgets, dataset=DATASET)
        except AtelierError as error:
            return str(error)
    return files(base)


def report(base: Path, widgets: dict[str, Any]) -> Any:
    return call("AtelierDatasetReport", widgets, dataset=DATASET)[0]


def saved_lora(base: Path, widgets: dict[str, Any]) -> Any:
    model = FAMILIES["flux"].patcher()  # says what the LoRA's keys mean
    call("AtelierSaveLoRA", widgets, lora=LORA, model=model)
    return files(base)


def loaded_lora(base: Path, widgets: dict[str, Any]) -> Any:
    save_file(LORA, base / "loras" / "mine.safetensors")
    try:
        return call("AtelierLoadLoRA", widgets)[1]
    except AtelierError as error:
        return str(error)


def applied(base: Path, widgets: dict[str, Any]) -> Any:
    """Weight -> how strong its patches are, and what is said of them."""
    text = "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_"
    of_text = {f"{text}down.weight": torch.ones(2, 768), f"{text}up.weight": torch.ones(3072, 2)}
    links = {name: flux()[name] for name in ("model", "clip")}
    model, clip, _ = call("AtelierApplyLoRA", widgets, lora=LORA | of_text, **links)
    patches = {**model.patches, **clip.patcher.patches}
    return {key: [patch[0] for patch in found] for key, found in patches.items()}


@lru_cache
def run_at_its_start() -> Any:
    """On the tiny model, with two pictures."""
    parts = load_parts(tiny_sd15())
    run = make_run(parts.model, encode(parts.clip, CAPTIONS[:2]))
    return start(replace(run, models=parts))


def exported(base: Path, widgets: dict[str, Any]) -> Any:
    links = {"model": ["1", 0], "clip": ["1", 1]}
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
        "2": {"class_type": "AtelierStartTraining", "inputs": links},
        "3": {"class_type": "AtelierExportJob", "inputs": {"state": ["2", 0]}},
    }
    with pytest.MonkeyPatch.context() as patch, CurrentNodeContext("p", "3"):
        hidden = SimpleNamespace(prompt=graph)
        patch.setattr(NODE["AtelierExportJob"], "hidden", hidden, raising=False)
        return call("AtelierExportJob", widgets, state=run_at_its_start())


def loaded_job(base: Path, widgets: dict[str, Any]) -> Any:
    """Of two jobs."""
    begun = run_at_its_start()
    jobs, prompt = base / "output" / "atelier" / "jobs", {"prompt": {}, "model": [], "clip": []}
    for seed, name in enumerate("ab"):
        run = replace(begun.run, spec=replace(begun.run.spec, seed=seed))
        write_job(jobs / name, replace(begun, run=run), prompt)
    links = {name: getattr(begun.run.models, name) for name in ("model", "clip")}
    return call("AtelierLoadJob", {"job": "a", **widgets}, **links)[0].run.spec


def merged_loras(base: Path, widgets: dict[str, Any]) -> Any:
    """As set, and with a rank for each layer."""

    def lora(seed: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        shapes = {"a.lora_down": (4, 9), "a.lora_up": (8, 4)}
        shapes |= {"b.lora_down": (4, 9, 3, 3), "b.lora_up": (8, 4, 1, 1)}
        tensors = {k: torch.randn(v, generator=draw) for k, v in shapes.items()}
        return {f"lora_unet_{key}.weight": value for key, value in tensors.items()}

    links = {f"lora_{i}": lora(i) for i in (1, 2, 3)}
    results = [
        call("AtelierMergeLoRAs", setting | widgets, **links)[0]
        for setting in ({}, {"dynamic_method": "sv_fro"})
    ]
    return [{key: value.tolist() for key, value in result.items()} for result in results]


def chart(base: Path, widgets: dict[str, Any]) -> Any:
    return call("AtelierLossChart", widgets, loss_map=LOSSES)[0].tolist()


def curated(base: Path, widgets: dict[str, Any]) -> Any:
    """The kept pictures and their captions, of which `choice` drops one where it is asked."""
    random = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    smooth = torch.nn.functional.interpolate(random, (64, 64), mode="bilinear")
    pictures = [ImagePixels(np.uint8(p.permute(1, 2, 0).numpy() * 100)) for p in smooth]
    strange = np.random.default_rng(1).integers(0, 2, (64, 64, 3), dtype=np.uint8) * 255
    pictures = [ImagePixels(strange), pictures[0], *pictures]
    samples = tuple(Sample(p, f"{i}.png", fit=FIT) for i, p in enumerate(pictures))
    gone = pictures[4 if "choice" in widgets else 3].digest[:16]
    mode = {"mode": "use_saved_choice"} if "choice" in widgets else {}
    values = {"keep_best": 5, **mode, **widgets, "choice": f'{{"version": 1, "drop": ["{gone}"]}}'}
    links = {"dataset": ImageDataset(samples), "reference": smooth.permute(0, 2, 3, 1) * 0.4}
    kept, _ = call("AtelierCurateDataset", values, **links)
    return [(sample.name, sample.captions) for sample in kept.samples]


@lru_cache
def flux() -> dict[str, Any]:
    """It hears every widget, guidance too."""
    return {"model": small_flux(), "clip": load_parts(tiny_sd15()).clip, "vae": kl_autoencoder(16)}


def generated(base: Path, widgets: dict[str, Any]) -> Any:
    """Pictures of a prompt and what is said of them; how the files are called does not count."""
    node, prompts = "AtelierGenerateDataset", PromptSet((Prompt("a fox", "sks, a fox", "fox"),))
    links = {**flux(), "prompts": prompts, "latent_image": {"samples": torch.zeros(1, 4, 4, 4)}}
    dataset, folder = call(node, {"steps": 2, "cfg": 2.0, **widgets}, **links)
    pictures = [open_picture(sample.image).convert("RGB").tobytes() for sample in dataset.samples]
    facts = [(sample.role, sample.source, sample.license) for sample in dataset.samples]
    return pictures, facts, Path(folder).name


def compared(base: Path, widgets: dict[str, Any]) -> Any:
    """A LoRA of the graph and, where it is named, one in a file."""
    save_file(LORA, base / "loras" / "mine.safetensors")
    folder_paths.filename_list_cache.pop("loras", None)
    preview = PreviewSpec(("a fox",), width=64, height=64, steps=1, cfg=1.0)
    links = {**flux(), "preview": preview, "lora": {k: v * 30 for k, v in LORA.items()}}
    return call("AtelierCompareGrid", widgets, **links)[0].tolist()


@lru_cache
def run_of_pictures() -> Any:
    """At its start; the cache that it was encoded into is gone with the first test."""
    parts, spec = load_parts(tiny_sd15()), quick_spec()
    with TemporaryDirectory() as cache, torch.inference_mode():
        begun = start_run(parts.model, parts.clip, parts.vae, DATASET, spec, Path(cache))
        data = begun.run.data
        read = replace(data, images=dict(data.images), conditioning=dict(data.conditioning))
    return replace(begun, run=replace(begun.run, data=read))


def evaluated(base: Path, widgets: dict[str, Any]) -> Any:
    """What is said of a LoRA that the run has made loud, or of one in a file."""
    begun = run_of_pictures()
    save_file(LORA, base / "loras" / "mine.safetensors")
    folder_paths.filename_list_cache.pop("loras", None)
    loud = {key: value + 0.01 for key, value in begun.network.items()}
    preview = PreviewSpec(("not used",), width=64, height=64, steps=1, cfg=1.0)
    links = {"state": replace(begun, step=1, network=loud), "preview": preview}
    few = {"images_per_checkpoint": 2, "strengths": "1", **widgets}
    return call("AtelierEvaluate", few, **links)[1]


def captioned(base: Path, widgets: dict[str, Any]) -> Any:
    """What two tiny models make of pictures, with a name for each of them."""
    root, node = base / "captioners", "AtelierCaptionImages"
    blip(root / "a"), git(root / "b")
    places = {"captioners": ([str(root)], set())}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "folder_names_and_paths", places)
        pixels = [ImagePixels(np.asarray(picture)) for picture in pictures(3)]
        dataset = ImageDataset(tuple(Sample(p, f"{i}.png", ("x",)) for i, p in enumerate(pixels)))
        brief = {"captioner": "a", "max_new_tokens": 8, "precision": "fp32"}
        return call(node, {"remove_phrases": "in", **brief, **widgets}, dataset=dataset)[1]


def auto_tagged(base: Path, widgets: dict[str, Any]) -> Any:
    """What two taggers make of colours, and whether one that is not there may be fetched."""
    root, node = base / "taggers", "AtelierAutoTag"
    rows = (("dark_sea", 0), ("very_blue", 0), ("mr_green", 4), ("red", 9))
    weights = np.array([[0.5, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    colour_tagger(root / "a", rows, weights=weights)
    colour_tagger(root / "b", (("a_thing", 0), *rows[1:]), weights=weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(folder_paths.folder_names_and_paths, "taggers", ([str(root)], set()))
        colours = ((0, 0, 200), (230, 230, 255), (120, 160, 0))
        pictures = [ImagePixels(np.full((8, 8, 3), colour, np.uint8)) for colour in colours]
        samples = (Sample(p, f"{i}.png", ("x" * i,)) for i, p in enumerate(pictures))
        dataset, _, _ = call(node, widgets, dataset=ImageDataset(tuple(samples)))
        missing = {k: v for k, v in widgets.items() if k == "download_if_missing"}
        judged = {"tagger": "wd-swinv2-tagger-v3", "download_if_missing": False, **missing}
        return [s.captions for s in dataset.samples], NODE[node].validate_inputs(**judged)


def made_prompts(base: Path, widgets: dict[str, Any]) -> Any:
    """As set, and with two prompts drawn, which a seed decides."""
    node = "AtelierPromptMatrix"
    return call(node, widgets)[0], call(node, {"prompt_count": 2, **widgets})[0]


TABLE: dict[str, tuple[Callable[[Path, dict[str, Any]], Any], dict[str, Any]]] = {
    "AtelierDatasetFromImages": (
        made_dataset,
        {
            "captions": "a wall",
            "resolution": 64,
            "num_repeats": 2,
            "class_tokens": "sks",
            "source": "my garden",
            "license": "CC0",
            "name": "walls",
            "role": "validation",
            "loss_weight": 0.5,
        },
    ),
    "AtelierAutoTag": (
        auto_tagged,
        {
            "tagger": "b",
            "download_if_missing": True,
            "general_threshold": 0.99,
            "character_threshold": 0.5,
            "max_tags": 1,
            "exclude_tags": "*blue",
            "always_include": "sks",
            "replace_underscores": False,
            "add_rating": True,
            "order": "as_in_table",
            "existing_captions": "replace",
        },
    ),
    "AtelierCaptionImages": (
        captioned,
        {
            "captioner": "b",
            "prompt": "the large",
            "max_new_tokens": 5,
            "num_beams": 1,
            "precision": "bf16",
            "remove_phrases": "",
            "existing_captions": "append",
        },
    ),
    "AtelierCurateDataset": (
        curated,
        {
            "mode": "use_saved_choice",
            "score": "sharpness",
            "keep_best": 2,
            "drop_duplicates": True,
            "drop_outliers": True,
            "choice": "drop another",
        },
    ),
    "AtelierGenerateDataset": (
        generated,
        {
            "folder": "datasets/other",
            "images_per_prompt": 2,
            "seed": 1,
            "steps": 3,
            "cfg": 5.0,
            "sampler_name": "heun",
            "scheduler": "karras",
            "negative": "blurred",
            "role": "regularisation",
            "license": "MIT",
            "source": "my garden",
            "guidance": 9.0,
        },
    ),
    "AtelierPromptMatrix": (
        made_prompts,
        {
            "subjects": "a {fox|hare}\na hat",
            "styles": "ink",
            "templates": "[subject], [style]",
            "class_tokens": "sks",
            "caption_template": "[prompt]",
            "prompt_count": 3,
            "shuffle": True,
            "seed": 1,
        },
    ),
    "AtelierSaveDataset": (
        saved_twice,
        {"folder": "datasets/other", "save_into": "input", "if_exists": "replace"},
    ),
    "AtelierDatasetReport": (
        report,
        {"train_batch_size": 3, "gradient_accumulation_steps": 3},
    ),
    "AtelierSaveLoRA": (
        saved_lora,
        {
            "filename_prefix": "other",
            "save_precision": "float",
            "add_to_models_loras": True,
            "key_format": "comfyui",
            "title": "Foxes",
            "author": "me",
            "description": "It makes foxes.",
            "license": "CC0",
            "trigger_phrase": "sks fox",
            "manager_files": True,
            "tags": "style, emoji",
        },
    ),
    "AtelierCompareGrid": (
        compared,
        {
            "lora_files": "mine",
            "strengths": "0.5",
            "layout": "strengths_down",
            "picture_size": 128,
            "label_size": 1.5,
        },
    ),
    "AtelierLoadLoRA": (loaded_lora, {"lora_file": "mine.safetensors"}),
    "AtelierEvaluate": (
        evaluated,
        {
            "lora_files": "mine",
            "prompts": "a hat",
            "strengths": "0.5",
            "images_per_checkpoint": 3,
        },
    ),
    "AtelierApplyLoRA": (
        applied,
        {"strength_model": 0.5, "strength_clip": 0.5, "block_weights": "double_blocks.0=0.5"},
    ),
    "AtelierMergeLoRAs": (
        merged_loras,
        {
            "weight_1": 0.5,
            "weight_2": 0.5,
            "weight_3": 0.5,
            "network_dim": 3,
            "conv_dim": 2,
            "dynamic_method": "sv_cumulative",
            "dynamic_param": 0.5,
        },
    ),
    "AtelierLossChart": (chart, {"title": "Foxes"}),
    "AtelierExportJob": (exported, {"job_name": "Foxes"}),
    "AtelierLoadJob": (loaded_job, {"job": "b"}),
}
"""Node -> what comes out of it, and the other value of each of its widgets."""

SHOWN_ELSEWHERE = {
    ("AtelierLoadJob", "watch"): (
        "tests/host/test_jobs.py",
        "test_a_job_is_watched_until_its_end",
    ),
    ("AtelierCaptionImages", "batch_size"): (
        "tests/host/test_caption_images.py",
        "test_so_many_pictures_at_a_time",
    ),
    ("AtelierCaptionImages", "download_if_missing"): (
        "tests/host/test_caption_images.py",
        "test_a_captioner_is_fetched_only_when_the_person_says_so",
    ),
    ("AtelierCurateDataset", "timeout_minutes"): (
        "tests/e2e/test_gallery_routes.py",
        "test_the_queue_waits_for_the_choice_and_the_saved_one_repeats_it",
    ),
}
"""Widgets that change nothing that comes out, and the test that shows what they do."""


def test_every_node_with_widgets_is_here_or_takes_part_in_a_run() -> None:
    assert TABLE.keys() | {*CONFIG, *PIECES} == {node_id for node_id in NODE if widgets_of(node_id)}


@pytest.mark.parametrize("node_id", TABLE)
def test_every_widget_of_the_node_is_in_the_table(node_id: str) -> None:
    elsewhere = {widget for node, widget in SHOWN_ELSEWHERE if node == node_id}
    assert TABLE[node_id][1].keys() | elsewhere == widgets_of(node_id).keys()
    assert not TABLE[node_id][1].keys() & elsewhere


@pytest.mark.parametrize(("file", "test"), SHOWN_ELSEWHERE.values())
def test_what_is_shown_elsewhere_is_shown(file: str, test: str) -> None:
    assert f"\ndef {test}(" in (ROOT / file).read_text("utf-8")


@pytest.mark.parametrize(
    ("node_id", "widget"), [(node, widget) for node, (_, rows) in TABLE.items() for widget in rows]
)
def test_a_widget_changes_what_comes_out(base: Path, node_id: str, widget: str) -> None:
    outcome, others = TABLE[node_id]
    before = outcome(base, {})
    for path in sorted(base.rglob("*"), reverse=True):
        if path.is_file():
            path.unlink()
        elif path.parent != base:
            path.rmdir()
    after = outcome(base, {widget: others[widget]})
    assert before and after and before != after
