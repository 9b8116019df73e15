"""The whole cycle in one graph on a real server: train, use, save, load, repeat, cancel."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from host import HostServer, Result
from training_graph import (
    DATASET,
    LOADER,
    PICTURES,
    SAVE,
    TRAIN,
    Prompt,
    latent,
    node,
    picture,
    training,
    with_lora,
)

pytestmark = pytest.mark.slow
NAMES = ("bear", "fox", "lemon", "pizza")
FOLDER = "glossy few"
REFUSALS = ("lora key not loaded", "NOT LOADED")


@dataclass
class Cycle:
    """One training with its pictures, which the tests of this file look at."""

    prompt: Prompt
    result: Result
    base_before: np.ndarray
    base_latent: np.ndarray


def pixels(server: HostServer, result: Result, name: str) -> np.ndarray:
    (reference,) = result.images(f"{name}-png")
    return np.asarray(Image.open(io.BytesIO(server.image(reference))))


def base_picture(end: int) -> Prompt:
    loader = node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    return {LOADER: loader, **picture("base", LOADER, end=end)}


def fill(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        for extension in (".png", ".txt"):
            shutil.copy(PICTURES / f"{name}{extension}", folder)


@pytest.fixture(scope="module")
def cycle(server: HostServer) -> Cycle:
    fill(server.base / "input" / FOLDER)
    before = server.queue(base_picture(end=10000)).check()
    prompt = {
        **training(FOLDER, prefix="atelier/cycle"),
        "half": node(
            "AtelierSaveLoRA",
            lora=[TRAIN, 3],
            filename_prefix="atelier/half",
            save_precision="fp16",
            add_to_models_loras=True,
        ),
        "chart": node("AtelierLossChart", loss_map=[TRAIN, 4], title=""),
        **picture("trained", TRAIN, model=1, clip=2),
    }
    result = server.queue(prompt).check()
    return Cycle(prompt, result, pixels(server, before, "base"), latent(server, before, "base"))


def test_the_lora_is_written_where_it_was_asked_for(server: HostServer, cycle: Cycle) -> None:
    name = "atelier/cycle_00001_.safetensors"
    saved, copy = (server.base / folder / name for folder in ("output", "models/loras"))
    assert len(load_file(saved)) == 3 * 48
    assert copy.read_bytes() == saved.read_bytes()  # managers know files by their hash
    assert str(saved) in str(cycle.result.outputs[SAVE])


def test_the_loss_chart_is_a_picture_with_a_curve(server: HostServer, cycle: Cycle) -> None:
    (reference,) = cycle.result.images("chart")
    chart = Image.open(io.BytesIO(server.image(reference))).convert("RGB")
    assert chart.size == (960, 540)
    red = np.asarray(chart, dtype=int)
    assert ((red[..., 0] - red[..., 1]) > 100).sum() > 100  # the moving average is drawn red


@pytest.mark.parametrize(("file", "tolerance"), [("cycle", 1e-4), ("half", 2e-2)])
def test_the_stock_loader_gives_the_picture_of_the_training_node(
    server: HostServer, cycle: Cycle, file: str, tolerance: float
) -> None:
    prompt = with_lora(file, f"atelier/{file}_00001_.safetensors")
    loaded = server.queue(prompt).check()
    trained, again = latent(server, cycle.result, "trained"), latent(server, loaded, file)
    assert np.abs(trained - cycle.base_latent).max() > 0.1  # the training shows
    assert np.abs(again - trained).max() < tolerance
    if tolerance <= 1e-4:
        assert np.array_equal(pixels(server, loaded, file), pixels(server, cycle.result, "trained"))
    assert not [words for words in REFUSALS if words in server.log_text()]


def test_training_leaves_the_picture_of_the_base_as_it_was(
    server: HostServer, cycle: Cycle
) -> None:
    after = server.queue(base_picture(end=9999)).check()
    assert "base-ks" not in after.cached and LOADER in after.cached  # same model, sampled anew
    assert np.array_equal(latent(server, after, "base"), cycle.base_latent)
    assert np.array_equal(pixels(server, after, "base"), cycle.base_before)


def test_an_unchanged_graph_is_served_from_the_cache(server: HostServer, cycle: Cycle) -> None:
    server.queue(cycle.prompt).check()  # ComfyUI remembers the last graph only
    assert set(server.queue(cycle.prompt).check().cached) == set(cycle.prompt)


def test_editing_a_caption_trains_again_and_loads_nothing_again(server: HostServer) -> None:
    folder = "edited"
    fill(server.base / "input" / folder)
    prompt = training(folder, steps=1, prefix="atelier/edited")
    server.queue(prompt).check()
    assert TRAIN in server.queue(prompt).check().cached
    (server.base / "input" / folder / "fox.txt").write_text("a blue fox, asleep", "utf-8")
    result = server.queue(prompt).check()
    assert LOADER in result.cached
    assert not {DATASET, TRAIN, SAVE} & set(result.cached)


def test_cancel_keeps_the_lora_so_far_and_harms_nothing(server: HostServer, cycle: Cycle) -> None:
    pressed: list[int] = []

    def cancel(name: str, data: Any) -> None:
        if name == "progress" and data["max"] == 2000 and data["value"] >= 3 and not pressed:
            pressed.append(data["value"])
            server.interrupt()

    folder = "cancelled run"
    fill(server.base / "input" / folder)
    result = server.queue(training(folder, steps=2000), on_event=cancel, timeout=120)
    assert result.status == "interrupted"
    runs = server.base / "output" / "atelier" / "runs"
    (file,) = runs.glob("cancelled_run-*/lora/*.safetensors")
    step = int(file.stem.rpartition("-step")[2])
    assert pressed[0] <= step < 2000
    tensors = load_file(file)
    assert len(tensors) == 3 * 48
    assert all(value.any() for key, value in tensors.items() if key.endswith("lora_up.weight"))
    after = server.queue(base_picture(end=9998)).check()
    assert np.array_equal(latent(server, after, "base"), cycle.base_latent)
    server.queue(training(folder, steps=1, prefix="atelier/after_cancel")).check()


def test_it_trains_on_what_other_nodes_encoded(server: HostServer) -> None:
    """Conditioning and latents that are ready: neither CLIP nor VAE is wired to Train LoRA."""
    prompt = training("unused", steps=2, prefix="atelier/ready")
    del prompt[DATASET]
    whole = prompt[TRAIN]["inputs"]
    prompt |= {
        "images": node("EmptyImage", width=64, height=64, batch_size=2, color=0xCC6611),
        "dataset": node("AtelierDatasetFromImages", images=["images", 0], captions="a red cat"),
        "latents": node("VAEEncode", pixels=["images", 0], vae=[LOADER, 2]),
        "text": node("CLIPTextEncode", clip=[LOADER, 1], text="a red cat"),
        "encoding": node(
            "AtelierTrainLoRA", **{**whole, "dataset": ["dataset", 0], "resume": "start_again"}
        ),
        "encoding-save": node(
            "AtelierSaveLoRA",
            **{
                **prompt[SAVE]["inputs"],
                "lora": ["encoding", 3],
                "filename_prefix": "atelier/encoding",
            },
        ),
    }
    ready = {name: link for name, link in whole.items() if name not in ("clip", "vae")}
    ready |= {"dataset": ["dataset", 0], "conditioning": ["text", 0], "latents": ["latents", 0]}
    prompt[TRAIN] = node("AtelierTrainLoRA", **ready)
    server.queue(prompt).check()
    files = [
        max((server.base / "output/atelier").glob(f"{name}_*.safetensors"))
        for name in ("ready", "encoding")
    ]
    one, other = map(load_file, files)
    assert one.keys() == other.keys()
    for name, value in one.items():
        # A batch is rounded otherwise than its pictures; a step moves a number by 2e-3.
        np.testing.assert_allclose(value, other[name], atol=1e-4)
    del prompt[TRAIN]["inputs"]["conditioning"]
    refused = server.queue(prompt)
    assert "clip: this checkpoint holds no text encoder, or none is wired" in str(refused.errors)
