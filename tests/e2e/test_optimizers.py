"""Every optimizer trains through the server into a LoRA that the stock loader takes whole."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from host import HostServer
from training_graph import (
    NETWORK,
    OPTIMIZER,
    PICTURES,
    TRAIN,
    Prompt,
    Watched,
    latent,
    node,
    training,
    with_lora,
)

pytestmark = pytest.mark.slow
FOLDER = "optimizers"
SCHEDULER = "5"
STEPS = 5
REFUSALS = ("lora key not loaded", "NOT LOADED")
RUNS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "AdamW8bit": {},
    "PagedAdamW8bit": {},
    "Lion": {"unet_lr": 3e-4},
    "Lion8bit": {"unet_lr": 3e-4},
    "Adafactor": {},
    "Prodigy": {"unet_lr": 1.0, "optimizer_args": "d0=1e-3"},
    "AdamWScheduleFree": {},
    "CAME": {},
    "Muon": {},
    "SGD": {"unet_lr": 10.0},
    "pytorch_optimizer": {"optimizer_name": "soap"},
}


@pytest.fixture(scope="module", autouse=True)
def pictures(server: HostServer) -> None:
    folder = server.base / "input" / FOLDER
    folder.mkdir()
    for name in ("bear", "fox"):
        for extension in (".png", ".txt"):
            shutil.copy(PICTURES / f"{name}{extension}", folder)


def graph(name: str, **optimizer: Any) -> Prompt:
    """Five steps at rank 64, where 8-bit optimizers keep bytes."""
    prompt = training(FOLDER, steps=STEPS, prefix=f"atelier/{name}")
    prompt[NETWORK]["inputs"] |= {"network_dim": 64, "network_alpha": 64.0}
    prompt[OPTIMIZER]["inputs"] |= optimizer
    return prompt


def saved(server: HostServer, name: str) -> Path:
    return server.base / "output" / "atelier" / f"{name}_00001_.safetensors"


def test_all_optimizers_are_in_the_list(server: HostServer) -> None:
    widget = server.object_info()["AtelierOptimizer"]["input"]["required"]["optimizer_type"]
    assert set(widget[1]["options"]) == set(RUNS)


@pytest.mark.parametrize("kind", RUNS)
def test_an_optimizer_trains_a_lora_that_the_stock_loader_takes_whole(
    server: HostServer, kind: str
) -> None:
    heard = len(server.log_text())
    prompt = graph(kind, optimizer_type=kind, **RUNS[kind])
    server.queue(prompt).check()
    tensors = load_file(saved(server, kind))
    assert len(tensors) == 3 * 48
    for key, value in tensors.items():
        assert np.isfinite(value).all(), key
        assert value.any(), key  # the up matrices began as zeros
    with safe_open(saved(server, kind), "numpy") as file:
        named = file.metadata()["ss_optimizer"]
    assert named.partition("(")[0] == RUNS[kind].get("optimizer_name", kind)
    loaded = server.queue(with_lora(kind, f"atelier/{kind}_00001_.safetensors")).check()
    assert np.isfinite(latent(server, loaded, kind)).all()
    assert not [words for words in REFUSALS if words in server.log_text()[heard:]]


@pytest.mark.parametrize(
    "optimizer",
    [{"ema_decay": 0.5}, {"loraplus_lr_ratio": 8.0}, {"betas": "0.5, 0.9"}, {"eps": "0.01"}],
    ids=lambda optimizer: " ".join(optimizer),
)
def test_a_setting_changes_the_file(server: HostServer, optimizer: dict) -> None:
    (name,) = optimizer
    for prefix, widgets in ((f"without_{name}", {}), (f"with_{name}", optimizer)):
        server.queue(graph(prefix, **widgets)).check()
    before, after = (load_file(saved(server, f"{word}_{name}")) for word in ("without", "with"))
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    ("node_id", "widgets", "words"),
    [
        (OPTIMIZER, {"optimizer_args": "amsgrd=True"}, "AdamW has no argument amsgrd. Did you"),
        (OPTIMIZER, {"optimizer_type": "Adan"}, "optimizer_type is 'Adan': it must be one of"),
        (
            OPTIMIZER,
            {"optimizer_type": "pytorch_optimizer", "optimizer_name": "sope"},
            'optimizer_name is "sope"',
        ),
        (OPTIMIZER, {"optimizer_type": "SGD", "betas": "0.9, 0.99"}, "SGD has no such setting"),
        (SCHEDULER, {"lr_scheduler_args": "cycles=3"}, "constant has no argument cycles"),
        (SCHEDULER, {"lr_warmup": "percent"}, "lr_warmup is 'percent': it must be one of"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_runs(
    server: HostServer, node_id: str, widgets: dict, words: str
) -> None:
    prompt = graph("refused")
    prompt[node_id]["inputs"] |= widgets
    result = server.queue(prompt)
    assert result.status == "rejected"
    assert words in result.message and "Traceback" not in result.message


def test_a_wrong_setting_that_comes_over_a_link_is_refused_in_words(server: HostServer) -> None:
    prompt = graph("linked")
    prompt["text"] = node("PrimitiveString", value="amsgrd=True")
    prompt[OPTIMIZER]["inputs"]["optimizer_args"] = ["text", 0]
    result = server.queue(prompt)
    assert result.status == "error"
    assert "AdamW has no argument amsgrd" in result.message


def test_advice_is_shown_on_the_nodes_and_the_run_goes_on(server: HostServer) -> None:
    prompt = graph("advice", optimizer_type="AdamWScheduleFree", unet_lr=0.5)
    prompt[SCHEDULER]["inputs"]["lr_scheduler"] = "cosine"
    watched = Watched(server, prompt)
    assert "unet_lr 0.5 is far above" in watched.text(OPTIMIZER)
    told = watched.text(TRAIN)
    assert "unet_lr 0.5 is far above" in told and "constant suits it better than cosine" in told


def test_the_scheduler_shows_its_curve_and_hands_it_on(server: HostServer) -> None:
    prompt = {
        SCHEDULER: node("AtelierScheduler", lr_scheduler="linear", preview_steps=40),
        "save": node("SaveImage", images=[SCHEDULER, 1], filename_prefix="curve"),
    }
    result = server.queue(prompt).check()
    (shown,), (kept,) = result.images(SCHEDULER), result.images("save")
    pictures = [np.asarray(Image.open(io.BytesIO(server.image(r)))) for r in (shown, kept)]
    assert np.array_equal(*pictures)
    red = (np.abs(pictures[0].astype(int) - (0xD1, 0x49, 0x5B)).max(axis=2) < 6).nonzero()
    left, right = (red[0][side] for side in (red[1] < 200, red[1] > 500))
    assert right.mean() > left.mean() + 100  # rows count downward: it falls
