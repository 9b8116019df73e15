"""Every algorithm through the server: trained, saved, loaded by the stock LoraLoader, continued."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from host import HostServer
from training_graph import (
    LOADER,
    NETWORK,
    PICTURES,
    TRAIN,
    Prompt,
    Watched,
    latent,
    node,
    picture,
    training,
    with_lora,
)

pytestmark = pytest.mark.slow
FOLDER = "algorithms"
REFUSALS = ("lora key not loaded", "NOT LOADED", "SHAPE MISMATCH")
ALGORITHMS: dict[str, dict[str, Any]] = {
    "lora": {"rs_lora": True, "network_dropout": 0.1, "module_dropout": 0.1},
    "locon": {"conv_dim": 2, "rank_dropout": 0.1, "scale_weight_norms": 1.0},
    "dora": {"algorithm": "dora"},
    "loha": {"algorithm": "loha"},
    "lokr": {"algorithm": "lokr", "lokr_factor": 8, "block_dims": "4, 4, 0, 2"},
    "full": {
        "algorithm": "full",
        "network_dim": 16,
        "network_alpha": 16.0,
        "target_modules": "regex",
        "target_regex": "attn2_to_[kv]",
    },
    "oft": {"algorithm": "oft", "network_alpha": 16.0, "target_modules": "attention"},
    "boft": {"algorithm": "boft", "network_alpha": 16.0, "target_modules": "attention"},
}
MODULES = {"lora": "networks.lora", "locon": "networks.lora"}


@pytest.fixture(scope="module", autouse=True)
def pictures(server: HostServer) -> None:
    folder = server.base / "input" / FOLDER
    folder.mkdir(parents=True)
    for file in ("fox.png", "fox.txt", "bear.png", "bear.txt"):
        shutil.copy(PICTURES / file, folder)


@pytest.fixture(scope="module")
def base(server: HostServer) -> np.ndarray:
    """The latent of the checkpoint alone."""
    loader = node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    result = server.queue({LOADER: loader, **picture("plain", LOADER)}).check()
    return latent(server, result, "plain")


def graph(steps: int = 5, prefix: str = "atelier/algorithms", **network: Any) -> Prompt:
    prompt = training(FOLDER, steps=steps, prefix=prefix)
    prompt[NETWORK]["inputs"] |= network
    return prompt


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_stock_loader_gives_the_picture_of_the_training_node(
    name: str, server: HostServer, base: np.ndarray
) -> None:
    prefix = f"algorithms/{name}"
    prompt = {**graph(prefix=prefix, **ALGORITHMS[name]), **picture("trained", TRAIN, 1, 2)}
    trained = Watched(server, prompt)
    assert " layers, " in trained.text(TRAIN) and " parameters" in trained.text(TRAIN)
    file = f"{prefix}_00001_.safetensors"
    loaded = server.queue(with_lora("loaded", file)).check()
    ours, stock = latent(server, trained.result, "trained"), latent(server, loaded, "loaded")
    assert np.abs(ours - stock).max() < 1e-4
    assert np.abs(ours - base).max() > 0.01  # the training shows
    assert [words for words in REFUSALS if words in server.log_text()] == []
    with safe_open(server.base / "output" / file, "pt") as lora:
        module = lora.metadata()["ss_network_module"]
    assert module == MODULES.get(name, "lycoris.kohya")


def test_a_run_continues_from_a_file_and_from_the_graph(server: HostServer) -> None:
    server.queue(graph(prefix="algorithms/first")).check()
    file = "algorithms/first_00001_.safetensors"
    again = graph(steps=1, prefix="algorithms/second", network_weights=file)
    assert f'continued from "{file}"' in Watched(server, again).text(TRAIN)
    second = graph(steps=1, prefix="algorithms/third")
    second |= {f"{key}-first": value for key, value in graph().items() if key in (TRAIN, NETWORK)}
    second[f"{TRAIN}-first"]["inputs"]["network"] = [f"{NETWORK}-first", 0]
    second[NETWORK]["inputs"]["existing_lora"] = [f"{TRAIN}-first", 3]
    assert 'continued from "existing_lora"' in Watched(server, second).text(TRAIN)
    one, other = (
        load_file(server.base / f"output/algorithms/{name}_00001_.safetensors")
        for name in ("second", "third")
    )
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_file_that_was_written_anew_is_read_anew(server: HostServer) -> None:
    server.queue(graph(steps=1, prefix="algorithms/rewritten")).check()
    file = "algorithms/rewritten_00001_.safetensors"
    again = graph(steps=1, prefix="algorithms/reader", network_weights=file)
    assert Watched(server, again).ran(NETWORK)
    assert not Watched(server, again).ran(NETWORK)
    path = server.base / "models/loras" / file
    tensors = load_file(path)
    save_file({key: np.asarray(value * 2) for key, value in tensors.items()}, path)
    watched = Watched(server, again)
    assert watched.ran(NETWORK) and watched.ran(TRAIN)


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ({"algorithm": "lokr", "network_alpha": 0.0}, "network_alpha is 0.0"),
        ({"algorithm": "loha", "network_dropout": 0.1}, "network_dropout is 0.1, which means noth"),
        (
            {"target_modules": "regex", "target_regex": "attn7"},
            'is "attn7", which matches no layer',
        ),
        ({"block_dims": "4, 4"}, "block_dims holds 2 numbers, but the chosen layers lie in 4 bloc"),
        ({"block_dims": "4, x"}, 'block_dims is "4, x": write one whole number'),
        (
            {"algorithm": "oft", "preset": "light"},
            "preset is light, which sets rank and alpha, but",
        ),
        ({"algorithm": "bert"}, "algorithm is 'bert': it must be one of lora, dora"),
        ({"network_weights": "nowhere.safetensors"}, 'there is no file "nowhere.safetensors"'),
        ({"network_weights": "../../x.safetensors"}, 'there is no file "../../x.safetensors"'),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_anything_is_encoded(
    network: dict[str, Any], words: str, server: HostServer
) -> None:
    result = server.queue(graph(**network))
    assert result.status in ("rejected", "error")
    assert words in result.message
    assert "Traceback" not in result.message


def test_a_preset_wins_over_the_widgets_and_a_strong_alpha_is_pointed_out(
    server: HostServer,
) -> None:
    light = Watched(server, graph(steps=1, preset="light", prefix="algorithms/light"))
    assert "LoRA: rank 16, alpha 8, scale 0.5" in light.text(NETWORK)
    assert "rank 16" in light.text(TRAIN)
    strong = Watched(server, graph(steps=1, network_alpha=9.0, prefix="algorithms/strong"))
    assert "network_alpha 9 is above the rank 4" in strong.text(NETWORK)
