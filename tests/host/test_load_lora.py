"""Load LoRA File: any file of a LoRA into the graph, and what is said of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import pytest
import torch
from comfy_api.latest import io
from comfy_extras.nodes_train import LoraModelLoader
from comfy_extras.nodes_train import SaveLoRA as CoreSaveLoRA
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from families import FAMILIES
from hidden_inputs import prepared
from lora_atelier.nodes.results.apply_lora import ApplyTrainedLoRA
from lora_atelier.nodes.results.load_lora import LoadLoRAFile
from lora_atelier.nodes.results.lora_files import offered_files
from lora_atelier.nodes.results.merge_loras import MergeLoRAs
from lora_atelier.nodes.results.save_lora import SaveLoRA
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.lora_check import Fit, fit
from lora_atelier.training.host.lora_formats import Models
from lora_atelier.training.host.text_encoder import HostTextEncoder
from lora_atelier.training.network.spec import NetworkSpec, TextEncoders
from tiny_training import Parts, load_parts, worked_network

TOLD = {
    "format": "pt",
    "ss_base_model_version": "sd_v1",
    "ss_sd_model_name": "animals.safetensors",
    "ss_sd_model_hash": "01234567",
    "ss_steps": "1200",
    "ss_unet_lr": "0.0001",
    "ss_text_encoder_lr": "None",
    "ss_tag_frequency": json.dumps({"10_a": {"fox": 20, "red": 2}, "b": {"fox ": 3, "snow": 9}}),
    "modelspec.title": "Glossy Fox",
    "modelspec.author": "me",
    "modelspec.license": "CC-BY-4.0",
    "modelspec.trigger_phrase": "sks fox",
    "modelspec.description": "Foxes,\nvery glossy.",
    "atelier.dataset_source": "my garden",
}


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def lora(parts: Parts) -> dict[str, Tensor]:
    """Of UNet and text encoder, as Train LoRA makes it."""
    spec = NetworkSpec(4, 7.0, text_encoders=TextEncoders.CLIP)
    encoder = HostTextEncoder(parts.clip, torch.device("cpu"))
    return dict(worked_network(HostDiffusionModel(parts.model, None, encoder), spec).state_dict())


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """ComfyUI's folders, all new."""
    for name in ("output", "loras"):
        (tmp_path / name).mkdir()
    loras = ([str(tmp_path / "loras")], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", loras)
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    yield tmp_path


def load(name: str, **wires: Any) -> tuple[Any, str]:
    verdict = LoadLoRAFile.validate_inputs(lora_file=name)
    if verdict is not True:
        raise AtelierError(verdict)
    with torch.inference_mode():
        return LoadLoRAFile.execute(name, **wires).args


def put(file: Path, lora: dict[str, Tensor], told: dict[str, str] | None = None) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(lora, file, metadata=told)
    return file.name


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def test_tensors_and_metadata_come_as_they_are_and_stay_when_the_file_goes(
    base: Path, lora: dict[str, Tensor]
) -> None:
    halves = {key: value.half() for key, value in lora.items()}
    file = base / "loras" / "fox.safetensors"
    loaded, _ = load(put(file, halves, TOLD))
    file.write_bytes(b"\0" * file.stat().st_size)
    file.unlink()
    assert loaded.keys() == halves.keys()
    assert all(torch.equal(loaded[key], halves[key]) for key in halves)
    assert {value.dtype for value in loaded.values()} == {torch.float16}
    assert loaded.metadata == {key: value for key, value in TOLD.items() if key != "format"}


def test_info_says_what_the_file_says(base: Path, lora: dict[str, Tensor]) -> None:
    halves = {key: value.half() for key, value in lora.items()}
    _, info = load(put(base / "loras" / "fox.safetensors", halves, TOLD))
    unet = sum(k.startswith("lora_unet") and k.endswith("alpha") for k in lora)
    size = sum(2 * value.numel() for value in lora.values()) / 1e6
    assert info.splitlines() == [
        "title: Glossy Fox",
        "author: me",
        "base model: animals.safetensors, sd_v1",
        f"LoRA of rank 4, alpha 7: {unet} layers of the diffusion model and 72 of text encoders",
        f"{size:.1f} MB in float16",
        "trigger words: sks fox",
        "most frequent in the captions: fox ×23, snow ×9, red ×2",
        "trained: 1200 steps, U-Net or transformer rate 0.0001",
        "licence: CC-BY-4.0",
        "pictures: my garden",
        "description: Foxes, very glossy.",
    ]


def test_a_file_that_says_nothing_or_nonsense_is_read_all_the_same(
    base: Path, lora: dict[str, Tensor]
) -> None:
    _, info = load(put(base / "loras" / "mute.safetensors", lora))
    assert info.endswith("The file says nothing of how it was made.")
    nonsense = {
        "ss_tag_frequency": '{"a": ["fox"], "b": {"red": "many"}, "c": 3',
        "atelier.merged_from": "[" * 100_000,
        "modelspec.description": "x" * 10_000,
    }
    _, info = load(put(base / "loras" / "odd.safetensors", lora, nonsense))
    assert max(map(len, info.splitlines())) <= 400
    assert "captions" not in info
    broken = dict(lora)
    key = next(iter(broken))
    broken[key] = broken[key] * torch.nan
    _, info = load(put(base / "loras" / "nan.safetensors", broken))
    assert f"1 of {len(lora)} tensors hold numbers that are not finite, e.g. {key}" in info


def test_it_lists_what_can_be_read_and_nothing_else(base: Path, lora: dict[str, Tensor]) -> None:
    small = dict(list(lora.items())[:3])
    runs = base / "output" / "atelier" / "runs" / "fox" / "lora"
    for step in (900, 1000):
        put(runs / f"fox-step{step}.safetensors", small)
    put(base / "output" / "atelier" / "saved" / "state.safetensors", small)
    put(base / "output" / "elsewhere.safetensors", small)
    put(base / "loras" / "sub" / "b.safetensors", small)
    (base / "loras" / "old.pt").write_bytes(b"no numbers")
    folder_paths.filename_list_cache.clear()
    runs_name = "output/atelier/runs/fox/lora/fox-step"
    assert offered_files() == [
        os.path.join("sub", "b.safetensors").replace("\\", "/"),
        f"{runs_name}900.safetensors",
        f"{runs_name}1000.safetensors",
    ]
    for name in (*offered_files(), str(runs / "fox-step900.safetensors")):
        assert load(name)[0].keys() == small.keys()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "lora_file is none: choose"),
        ("old.pt", r'"old.pt" is not read: only .safetensors files are.* program'),
        ("gone.safetensors", 'there is no LoRA "gone.safetensors"'),
        ("../secret.safetensors", "there is no LoRA"),
        ("output/secret.safetensors", "there is no LoRA"),
        ("cut.safetensors", '"cut.safetensors" cannot be read: .* not whole yet'),
        ("model.safetensors", '"model.safetensors" is no LoRA: .* model.diffusion_model.x.weight'),
        ("empty.safetensors", '"empty.safetensors" is empty'),
    ],
)
def test_what_cannot_be_loaded_is_said(base: Path, name: str, words: str) -> None:
    one = {"model.diffusion_model.x.weight": torch.ones(2, 2)}
    for outside in (base / "secret.safetensors", base / "output" / "secret.safetensors"):
        put(outside, one)
    put(base / "loras" / "model.safetensors", one)
    put(base / "loras" / "empty.safetensors", {})
    content = (base / "loras" / "model.safetensors").read_bytes()
    (base / "loras" / "cut.safetensors").write_bytes(content[:-3])
    (base / "loras" / "old.pt").write_bytes(b"no numbers")
    with pytest.raises(AtelierError, match=words):
        load(name)


def test_a_file_that_is_written_anew_is_read_anew(base: Path, lora: dict[str, Tensor]) -> None:
    name = put(base / "loras" / "fox.safetensors", dict(list(lora.items())[:3]))
    before = LoadLoRAFile.fingerprint_inputs(lora_file=name)
    assert LoadLoRAFile.fingerprint_inputs(lora_file=name, model=None) == before
    put(base / "loras" / "fox.safetensors", dict(list(lora.items())[:6]))
    assert LoadLoRAFile.fingerprint_inputs(lora_file=name) != before
    (base / "loras" / name).unlink()
    assert "there is no LoRA" in LoadLoRAFile.fingerprint_inputs(lora_file=name)


def test_the_models_tell_which_layers_they_would_take(
    base: Path, parts: Parts, lora: dict[str, Tensor]
) -> None:
    name = put(base / "loras" / "fox.safetensors", lora)
    layers = sum(key.endswith("alpha") for key in lora)
    loaded, info = load(name, model=parts.model, clip=parts.clip)
    assert info.splitlines()[-1] == f"{layers} of {layers} layers fit what is connected"
    assert loaded.models == Models(parts.model, parts.clip)
    loaded, info = load(name, model=parts.model)
    assert info.splitlines()[-2:] == [
        f"{layers - 72} of {layers - 72} layers fit what is connected",
        "72 other layers were not looked at: connect model and clip to see them",
    ]
    assert loaded.models is None
    _, info = load(name, clip=parts.clip)
    assert f"72 of 72 layers fit what is connected\n{layers - 72} other layers" in info
    _, info = load(name, model=FAMILIES["flux"].patcher())
    names = [key.removesuffix(".alpha") for key in sorted(lora) if key.startswith("lora_unet")]
    names = [key for key in names if key.count(".") == 0]
    assert f"0 of {layers - 72} layers fit" in info
    assert f"{len(names)} layers are not in it: {', '.join(names)}" in info


def test_layers_of_another_size_are_named(parts: Parts, lora: dict[str, Tensor]) -> None:
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    wrong = {**lora, f"{stem}.lora_down.weight": torch.ones(4, 1024), "lora_unet_x.alpha": 1}
    wrong["lora_unet_x.alpha"] = torch.ones(())
    layers = sum(key.endswith("alpha") for key in wrong)
    found = fit(wrong, Models(parts.model, parts.clip))
    weight = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    assert found == Fit(layers, ("lora_unet_x",), (weight,), 0)


def test_core_and_our_own_nodes_take_it(base: Path, parts: Parts, lora: dict[str, Tensor]) -> None:
    loaded, _ = load(put(base / "loras" / "fox.safetensors", lora, TOLD))
    with torch.inference_mode():
        expected = comfy.sd.load_lora_for_models(parts.model, parts.clip, dict(lora), 1.0, 1.0)
        model = LoraModelLoader.execute(parts.model, loaded, 1.0).args[0]
        CoreSaveLoRA.execute(loaded, "core", 5)
        applied = ApplyTrainedLoRA.execute(parts.model, loaded, 1.0, 1.0, "", parts.clip).args
        small = MergeLoRAs.execute(loaded, 1.0, 2, 0, "none", 0.9).args[0]
    assert model.patches.keys() == expected[0].patches.keys()
    assert applied[1].patcher.patches.keys() == expected[1].patcher.patches.keys()
    saved = load_file(base / "output" / "core_5_steps_00001_.safetensors")
    assert all(torch.equal(saved[key], lora[key]) for key in lora)
    assert small.metadata["modelspec.trigger_phrase"] == "sks fox"
    assert small.metadata["ss_network_dim"] == "2"


def test_saved_again_it_keeps_what_it_was_told_and_its_own_base_model(
    base: Path, parts: Parts, lora: dict[str, Tensor]
) -> None:
    name = put(base / "loras" / "fox.safetensors", lora, TOLD)
    prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "mix.safetensors"}},
        "2": {"class_type": "AtelierLoadLoRA", "inputs": {"model": ["1", 0], "lora_file": name}},
        "3": {"class_type": "AtelierSaveLoRA", "inputs": {"lora": ["2", 0]}},
    }
    hidden = {io.Hidden.prompt: prompt, io.Hidden.unique_id: "3", io.Hidden.extra_pnginfo: None}
    saver = prepared(SaveLoRA, hidden)
    loaded, _ = load(name, model=parts.model, clip=parts.clip)
    with torch.inference_mode():
        file = saver.execute(loaded, "again", "float", False, "comfyui", license="CC0").args[0]
    told = metadata(Path(file))
    kept = TOLD.keys() - {"format", "modelspec.license"}
    assert {key: told[key] for key in kept} == {key: TOLD[key] for key in kept}
    assert told["modelspec.license"] == "CC0"
    assert all(k.startswith(("diffusion_model.", "text_encoders.")) for k in load_file(file))

    unknown = {key: value for key, value in TOLD.items() if not key.startswith("ss_sd_model")}
    loaded, _ = load(put(base / "loras" / "fox.safetensors", lora, unknown))
    with torch.inference_mode():
        file = saver.execute(loaded, "again", "float", False).args[0]
    assert "ss_sd_model_name" not in metadata(Path(file))  # it was only wired to look at
