"""Every workflow that comes with the pack, from the file to the last node, on a real server.

The values are those that people would use, so a few are made small: steps, sizes, numbers of
pictures. The loaders load small models under the names that stand in the file: Flux as a file that
the host recognises and turns into fp8, SDXL as a checkpoint without text encoders. The text
encoders of these two come from a node (`small_text_encoders`), since their loaders build them at
full size.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from host import HostServer
from training_graph import PICTURES, Prompt, Watched
from workflow import to_prompt

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]
WORKFLOWS = TESTS.parent / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
SD15 = ("v1-5-pruned-emaonly-fp16.safetensors", "atelier_demo_base.safetensors")
FOLDERS = ("glossy", "my_character", "my_style")
SIDE = 64

SMALL: dict[str, dict[str, Any]] = {
    "AtelierLoadDataset": {"resolution": SIDE},
    "AtelierPromptMatrix": {"subjects": "fox\nbear\nowl\ncrab"},
    "AtelierGenerateDataset": {"steps": 2, "images_per_prompt": 1},
    "AtelierCurateDataset": {"mode": "automatic"},
    "AtelierTrainLoRA": {"max_train_steps": 4},
    "AtelierStartTraining": {"max_train_steps": 4},
    "AtelierTrainSteps": {"amount": 2},
    "AtelierCheckpoints": {"save_every_n_steps": 2},
    "AtelierPreview": {"width": SIDE, "height": SIDE, "steps": 2},
    "AtelierEvaluate": {"images_per_checkpoint": 2, "strengths": "1"},
    "EmptyLatentImage": {"width": SIDE, "height": SIDE},
    "KSampler": {"steps": 2},
}
"""What is changed in every workflow, by node type."""
FLUX = {
    "AtelierTrainLoRA": {"max_train_steps": 2},
    "AtelierPreview": {"prompts": "a fox", "width": SIDE, "height": SIDE, "steps": 1},
    "AtelierCompareGrid": {"strengths": "1"},
}
"""Its blocks are of full width, so every pass and every LoRA on its weights counts."""
TEXT_ENCODERS = {"sdxl_lora": "sdxl", "flux_fp8_lora": "flux"}
ALWAYS, NEVER = 0, 2
CHECKPOINT, TEXT_ENCODER = "CheckpointLoaderSimple", "DualCLIPLoader"


@pytest.fixture(scope="module")
def studio(
    new_server: Callable[[Path], HostServer],
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    comfy: Path,
) -> Iterator[HostServer]:
    """A server with small models and a few pictures under the names that the workflows use."""
    import small_files

    base = tmp_path_factory.mktemp("studio")
    server = new_server(base)
    shutil.copy(TESTS / "small_text_encoders.py", base / "custom_nodes")
    for name in SD15:
        server.put_model(tiny_checkpoint, name)
    models = base / "models"
    for folder in ("vae", "diffusion_models"):
        (models / folder).mkdir(parents=True)
    small_files.sdxl_checkpoint(models / "checkpoints" / "sd_xl_base_1.0.safetensors")
    small_files.flux_diffusion_model(models / "diffusion_models" / "flux1-dev.safetensors")
    small_files.flux_vae(models / "vae" / "ae.safetensors")
    for folder in FOLDERS:
        for picture in sorted(PICTURES.glob("*.png"))[:10]:
            for file in (picture, picture.with_suffix(".txt")):
                server.put_input(file, f"{folder}/{file.name}")
    with server:
        yield server


def read(name: str) -> dict[str, Any]:
    return json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))


def small(server: HostServer, name: str, ui: dict[str, Any] | None = None) -> Prompt:
    """The prompt of a workflow, with the changes that are listed above and no others."""
    prompt = to_prompt(ui or read(name), server.object_info())
    family = TEXT_ENCODERS.get(name)
    changes = {**SMALL, **(FLUX if family == "flux" else {})}
    for spec in prompt.values():
        given = changes.get(spec["class_type"], {})
        assert given.keys() <= spec["inputs"].keys()
        spec["inputs"] |= given
    return prompt if family is None else with_small_text_encoders(prompt, family)


def with_small_text_encoders(prompt: Prompt, family: str) -> Prompt:
    """The prompt with another CLIP wherever one is read."""
    types = nodes_of(prompt)
    loaded = [types[TEXT_ENCODER], 0] if TEXT_ENCODER in types else [types[CHECKPOINT], 1]
    for spec in prompt.values():
        links = spec["inputs"].items()
        spec["inputs"] |= {name: ["clip", 0] for name, link in links if link == loaded}
    encoders = {"class_type": "TestSmallTextEncoders", "inputs": {"family": family}}
    return {n: s for n, s in prompt.items() if s["class_type"] != TEXT_ENCODER} | {"clip": encoders}


def nodes_of(prompt: Prompt) -> dict[str, str]:
    """Node type -> id, of the last one of each type."""
    return {spec["class_type"]: node for node, spec in prompt.items()}


def silent(server: HostServer, prompt: Prompt, watched: Watched) -> set[str]:
    """Titles of the output nodes that gave nothing, in a prompt of which nothing was refused."""
    assert watched.result.check().node_errors == {}
    schemas, outputs = server.object_info(), watched.result.outputs
    return {
        spec["_meta"]["title"]
        for node, spec in prompt.items()
        if schemas[spec["class_type"]]["output_node"] and not outputs.get(node)
    }


def shown(watched: Watched, node: str) -> str:
    """What an output node says, also where ComfyUI still had its result."""
    return watched.result.outputs[node]["text"][0]


def saved_loras(server: HostServer, prompt: Prompt) -> dict[str, dict[str, str]]:
    """Prefix of each Save LoRA -> the metadata of its newest file, whose weights are sound."""
    found = {}
    for spec in prompt.values():
        if spec["class_type"] != "AtelierSaveLoRA":
            continue
        prefix = spec["inputs"]["filename_prefix"]
        files = sorted((server.base / "output").glob(f"{prefix}_0*.safetensors"))
        if not files:
            continue
        with safe_open(files[-1], "np") as file:
            ups = [file.get_tensor(key) for key in file.keys() if "lora_up" in key]  # noqa: SIM118
            found[prefix] = file.metadata()
        assert all(np.isfinite(up).all() for up in ups)
        assert any(np.abs(up).max() > 0 for up in ups)
    return found


def in_group(ui: dict[str, Any], title: str) -> list[dict[str, Any]]:
    """The nodes that lie in a group, as a change of the group's mode finds them."""
    (group,) = (group for group in ui["groups"] if title in group["title"])
    left, top, width, height = group["bounding"]
    return [
        node
        for node in ui["nodes"]
        if left <= node["pos"][0] < left + width and top <= node["pos"][1] < top + height
    ]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_to_its_last_node(name: str, studio: HostServer) -> None:
    prompt = small(studio, name)
    watched = Watched(studio, prompt)
    nothing = silent(studio, prompt, watched)
    savers = [spec for spec in prompt.values() if spec["class_type"] == "AtelierSaveLoRA"]
    wanted = {spec["inputs"]["filename_prefix"] for spec in savers}
    if name == "evaluate_checkpoints":
        report = shown(watched, nodes_of(prompt)["AtelierEvaluate"])
        if report.startswith("None is good enough"):  # few steps on random weights: no wonder
            assert nothing == {"Save LoRA: the recommended one"}
            nothing, wanted = set(), set()
    assert nothing == set()
    assert saved_loras(studio, prompt).keys() == wanted


def test_training_goes_on_from_the_file_as_the_note_says(studio: HostServer) -> None:
    """Group 5 switched on, group 4 off, and the newest state chosen."""
    today = small(studio, "continue_training")
    studio.queue(today).check()
    ui = read("continue_training")
    for node in in_group(ui, "Today"):
        node["mode"] = NEVER
    for node in in_group(ui, "Another day"):
        node["mode"] = ALWAYS
    later = small(studio, "continue_training", ui)
    types = nodes_of(later)
    assert "AtelierStartTraining" not in types
    files = studio.object_info()["AtelierLoadState"]["input"]["required"]["file"][1]["options"]
    later[types["AtelierLoadState"]]["inputs"]["file"] = next(f for f in files if "saved/" in f)
    watched = Watched(studio, later)
    assert silent(studio, later, watched) == set()
    assert watched.text(types["AtelierLoadState"]) == "state at step 2"
    assert saved_loras(studio, later)["atelier/my_style_2000"]["ss_steps"] == "4"
    first = list((studio.base / "models" / "loras").glob("atelier/my_style_1000*"))
    drawn = 2 * (1 + len(first) + 1)  # of each prompt: the base, what was saved today, and this
    assert shown(watched, types["AtelierCompareGrid"]).startswith(f"{drawn} pictures")


def test_the_branches_differ_in_their_rate_alone(studio: HostServer) -> None:
    prompt = small(studio, "two_branches")
    watched = Watched(studio, prompt)
    assert shown(watched, nodes_of(prompt)["AtelierCompareGrid"]).startswith("12 pictures")
    slow, fast = saved_loras(studio, prompt).values()
    assert (float(slow["ss_unet_lr"]), float(fast["ss_unet_lr"])) == (5e-5, 2e-4)
    same = ("ss_steps", "ss_optimizer", "ss_network_dim", "ss_lr_scheduler", "ss_seed")
    assert {key: slow[key] for key in same} == {key: fast[key] for key in same}
    assert slow["ss_steps"] == "4"
