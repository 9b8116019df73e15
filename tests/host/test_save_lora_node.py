"""Save LoRA as a node: core's LoRAs, the graph in the metadata, and what lies beside the file."""

from __future__ import annotations

import base64
import io as streams
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
import numpy as np
import pytest
import torch
from comfy.cli_args import args
from comfy_api.latest import io
from comfy_extras.nodes_train import LoraModelLoader, TrainLoraNode
from comfy_extras.nodes_train import SaveLoRA as CoreSaveLoRA
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from hidden_inputs import prepared
from lora_atelier.nodes.results.save_lora import SaveLoRA
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.base_facts import base_facts
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.text_encoder import HostTextEncoder
from lora_atelier.training.network.spec import NetworkSpec
from lora_atelier.training.network.targets import TextEncoders
from lora_atelier.training.results.lora_file import TrainedLora
from tiny_training import CAPTIONS, Parts, encode, load_parts, normal, worked_network

REFUSALS = ("lora key not loaded", "NOT LOADED", "ERROR", "WARNING")
PICTURE = torch.linspace(0, 1, 400 * 900 * 3).view(1, 400, 900, 3)
PROMPT = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "base.safetensors"}},
    "2": {"class_type": "AtelierLoadDataset", "inputs": {"folder": "foxes"}},
    "3": {"class_type": "AtelierTrainLoRA", "inputs": {"model": ["1", 0], "dataset": ["2", 0]}},
    "4": {"class_type": "AtelierSaveLoRA", "inputs": {"lora": ["3", 3]}},
    "5": {"class_type": "UNETLoader", "inputs": {"unet_name": "another.safetensors"}},
}
WORKFLOW = {"nodes": [{"id": 4, "title": "保存"}]}


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def ours(parts: Parts) -> TrainedLora:
    """As Train LoRA gives it."""
    network = worked_network(HostDiffusionModel(parts.model), NetworkSpec(4, 7.0))
    told = {"ss_base_model_version": "sd_v1", "modelspec.trigger_phrase": "sks fox"}
    return TrainedLora(network.state_dict(), told, parts)


@pytest.fixture(scope="module")
def cores(parts: Parts) -> dict[str, Tensor]:
    """What core's training node gives after a step."""
    with torch.inference_mode():
        conditioning = list(encode(parts.clip, CAPTIONS[:2]).values())
        settings: dict[str, Any] = {
            "batch_size": 1,
            "steps": 1,
            "grad_accumulation_steps": 1,
            "learning_rate": 1e-2,
            "rank": 4,
            "optimizer": "SGD",
            "loss_function": "MSE",
            "seed": 3,
            "training_dtype": "fp32",
            "lora_dtype": "fp32",
            "algorithm": "LoRA",
            "gradient_checkpointing": False,
            "existing_lora": "[None]",
        }
        schema = TrainLoraNode.define_schema()
        given = {*settings, "model", "latents", "positive"}
        newer = {i.id: i.default for i in schema.inputs if i.id not in given}
        answer = TrainLoraNode.execute(
            model=[parts.model],
            latents=[{"samples": normal(i, 1, 4, 8, 8)} for i in (3, 4)],
            positive=[[pair] for pair in conditioning],
            **{name: [value] for name, value in (newer | settings).items()},
        )
    return answer.args[[output.io_type for output in schema.outputs].index("LORA_MODEL")]


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """ComfyUI's folders, all new."""
    for name in ("output", "loras", "checkpoints"):
        (tmp_path / name).mkdir()
        found = ([str(tmp_path / name)], {".safetensors"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, found)
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    yield tmp_path


def save(lora: Any, hidden: dict | None = None, **values: Any) -> Path:
    node = prepared(SaveLoRA, hidden)
    chosen = {
        "filename_prefix": "fox",
        "save_precision": "float",
        "add_to_models_loras": False,
        **values,
    }
    with torch.inference_mode():
        return Path(node.execute(lora=lora, **chosen).args[0])


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def graph(prompt: Any = PROMPT) -> dict:
    hidden = io.Hidden
    return {
        hidden.prompt: prompt,
        hidden.unique_id: "4",
        hidden.extra_pnginfo: {"workflow": WORKFLOW},
    }


def patches(parts: Parts, lora: Any) -> int:
    with torch.inference_mode():
        model = comfy.sd.load_lora_for_models(parts.model, None, dict(lora), 1.0, 1.0)[0]
    return len(model.patches)


@pytest.mark.parametrize("key_format", ["kohya", "comfyui"])
def test_a_lora_of_core_is_translated_and_checked_when_the_model_is_wired(
    parts: Parts, cores: dict[str, Tensor], key_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = save(cores, model=parts.model, key_format=key_format)
    prefix = {"kohya": "lora_unet_", "comfyui": "diffusion_model."}[key_format]
    stored = load_file(file)
    assert all(key.startswith(prefix) for key in stored)
    assert len(stored) == len(cores)
    assert patches(parts, stored) == patches(parts, cores) > 100
    assert [m for m in caplog.messages if any(words in m for words in REFUSALS)] == []
    if key_format == "kohya":
        assert "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight" in stored


def test_a_lora_of_core_without_a_model_keeps_its_keys(cores: dict[str, Tensor]) -> None:
    assert load_file(save(cores)).keys() == cores.keys()


@pytest.mark.parametrize("key_format", ["diffusers"])
def test_what_cannot_be_translated_is_said(
    parts: Parts, cores: dict[str, Tensor], base: Path, key_format: str
) -> None:
    with pytest.raises(AtelierError, match="only the model knows.* Wire model"):
        save(cores, key_format=key_format)
    with pytest.raises(AtelierError, match="plain LoRA alone"):  # it holds biases too
        save(cores, key_format=key_format, model=parts.model)
    assert list((base / "output").rglob("*")) == []


@pytest.mark.parametrize("key_format", ["comfyui", "diffusers"])
def test_layers_of_a_text_encoder_are_translated_too(
    parts: Parts, key_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    spec = NetworkSpec(4, 7.0, text_encoders=TextEncoders.CLIP)
    encoder = HostTextEncoder(parts.clip, torch.device("cpu"))
    lora = dict(worked_network(HostDiffusionModel(parts.model, None, encoder), spec).state_dict())
    file = save(TrainedLora(lora, {}, parts), key_format=key_format)
    stored = load_file(file)
    prefix = {"comfyui": "text_encoders.clip_l.", "diffusers": "text_encoder.text_model."}
    layers = sum(key.startswith("lora_te_") and key.endswith("down.weight") for key in lora)
    found = [key for key in stored if key.startswith(prefix[key_format])]
    assert len([key for key in found if "down" in key or "lora_A" in key]) == layers == 72
    back = save(stored, model=parts.model, clip=parts.clip)
    assert load_file(back).keys() == lora.keys()
    with torch.inference_mode():
        clip = comfy.sd.load_lora_for_models(parts.model, parts.clip, stored, 1.0, 1.0)[1]
    assert len(clip.patcher.patches) == layers
    assert [m for m in caplog.messages if any(words in m for words in REFUSALS)] == []


def test_core_nodes_take_ours(
    parts: Parts, ours: TrainedLora, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.inference_mode():
        model = LoraModelLoader.execute(parts.model, ours, 1.0).args[0]
        CoreSaveLoRA.execute(ours, "core", 5)
    assert len(model.patches) == 48
    assert load_file(base / "output" / "core_5_steps_00001_.safetensors").keys() == ours.keys()
    assert [m for m in caplog.messages if any(words in m for words in REFUSALS)] == []


def test_the_file_of_ours_is_checked_on_the_models_it_was_trained_on(
    ours: TrainedLora, base: Path
) -> None:
    stored = load_file(save(ours))
    assert all(torch.equal(stored[key], value) for key, value in ours.items())
    broken = dict(ours)
    key = next(key for key in broken if key.endswith("lora_up.weight"))
    broken[key] = broken[key][:-1]
    with pytest.raises(AtelierError, match="ComfyUI cannot apply the LoRA"):
        save(TrainedLora(broken, {}, ours.models))
    broken[key] = ours[key] * torch.nan
    with pytest.raises(AtelierError, match="not finite"):
        save(TrainedLora(broken, {}, ours.models), key_format="comfyui")
    assert len(list((base / "output").rglob("*"))) == 1


def test_graph_base_model_and_trigger_phrase_are_in_the_metadata(
    ours: TrainedLora, base: Path
) -> None:
    content = bytes(range(256)) * 4500
    (base / "checkpoints" / "base.safetensors").write_bytes(content)
    told = metadata(save(ours, graph()))
    assert json.loads(told["prompt"]) == PROMPT
    assert json.loads(told["workflow"]) == WORKFLOW
    assert told["ss_sd_model_name"] == "base.safetensors"
    assert told["ss_sd_model_hash"] == sha256(content[0x100000:0x110000]).hexdigest()[:8]
    assert told["ss_new_sd_model_hash"] == sha256(content).hexdigest()
    assert told["modelspec.trigger_phrase"] == "sks fox"
    assert told["ss_output_name"] == "fox_00001_"
    told = metadata(save(ours, graph(), trigger_phrase="red fox"))
    assert told["modelspec.trigger_phrase"] == "red fox"


def test_the_base_of_the_preview_is_not_taken_for_that_of_the_training(ours: TrainedLora) -> None:
    prompt = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": "base.safetensors"}},
        "2": {"class_type": "ModelSamplingSD3", "inputs": {"model": ["1", 0]}},
        "3": {"class_type": "AtelierTrainLoRA", "inputs": {"model": ["2", 0]}},
        "4": {"class_type": "AtelierSaveLoRA", "inputs": {"preview": ["6", 0], "lora": ["3", 3]}},
        "5": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "mix.safetensors"}},
        "6": {"class_type": "VAEDecode", "inputs": {"vae": ["5", 2]}},
    }
    assert metadata(save(ours, graph(prompt)))["ss_sd_model_name"] == "base.safetensors"


def test_the_graph_stays_out_of_the_file_when_comfyui_is_told_so(
    ours: TrainedLora, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(args, "disable_metadata", True)
    told = metadata(save(ours, graph()))
    assert not told.keys() & {"prompt", "workflow"}
    assert told["ss_base_model_version"] == "sd_v1"


def test_a_preview_goes_into_the_file_and_beside_it(ours: TrainedLora, base: Path) -> None:
    file = save(ours, preview=PICTURE, add_to_models_loras=True)
    kind, _, data = metadata(file)["modelspec.thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert len(data) < 256 * 1024
    assert Image.open(streams.BytesIO(base64.b64decode(data))).size == (256, 114)
    for folder in (file.parent, base / "loras"):
        with Image.open(folder / "fox_00001_.preview.png") as picture:
            assert picture.size == (768, 341)
            assert np.asarray(picture)[-1, -1].min() > 250


def test_a1111_finds_its_json_beside_the_file(ours: TrainedLora) -> None:
    file = save(
        ours,
        graph(),
        manager_files=True,
        description="Foxes",
        license="CC0",
        author="me",
    )
    card = json.loads(file.with_suffix(".json").read_text("utf-8"))
    assert card["activation text"] == "sks fox"
    assert card["sd version"] == "SD1"
    assert card["description"] == "Foxes"
    assert card["preferred weight"] == 0
    assert {"Author: me", "Licence: CC0"} <= set(card["notes"].splitlines())
    assert not save(ours).with_suffix(".json").exists()


def test_lora_manager_finds_its_page_beside_the_file(ours: TrainedLora, base: Path) -> None:
    """What its import takes from it: model.name, .tags and .description, baseModel, trainedWords,
    and of the primary file size and SHA-256."""
    chosen = {"description": "Foxes <3", "tags": "style, ,emoji ", "trigger_phrase": "sks fox, red"}
    file = save(ours, graph(), manager_files=True, add_to_models_loras=True, **chosen)
    assert metadata(file)["modelspec.tags"] == "style, emoji"
    for lora in (file, base / "loras" / file.name):
        page = json.loads(lora.with_name("fox_00001_.civitai.info").read_text("utf-8"))
        assert page["baseModel"] == "SD 1.5"
        assert page["trainedWords"] == ["sks fox", "red"]
        model = {"name": "fox_00001_", "tags": ["style", "emoji"], "description": "Foxes &lt;3"}
        assert model.items() <= page["model"].items()
        (stored,) = page["files"]
        assert stored["primary"]
        assert stored["sizeKB"] * 1024 == lora.stat().st_size
        assert stored["hashes"]["SHA256"] == sha256(lora.read_bytes()).hexdigest().upper()
        assert not page.keys() & {"id", "modelId"}
    assert not list(save(ours).parent.glob("fox_00002_*.info"))


def test_the_family_of_the_base_model_is_told(parts: Parts) -> None:
    facts = base_facts(parts.model)
    assert (facts.version, facts.architecture) == ("sd_v1", "stable-diffusion-v1")
    assert (facts.prediction_type, facts.is_v2) == ("epsilon", False)
