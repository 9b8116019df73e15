"""The full grid through the server: every algorithm with every optimizer.

`make soak` runs it. What the optimizer or the algorithm is refused with is in a test of its own
elsewhere; here each pair trains, is saved, and is taken whole by the stock LoraLoader.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from host import HostServer
from training_graph import (
    LOADER,
    NETWORK,
    OPTIMIZER,
    PICTURES,
    TRAIN,
    Watched,
    latent,
    node,
    picture,
    training,
    with_lora,
)

pytestmark = pytest.mark.soak
FOLDER = "grid"
STEPS = 5
REFUSALS = ("lora key not loaded", "NOT LOADED", "SHAPE MISMATCH")
ATTENTION = {"network_alpha": 16.0, "target_modules": "attention"}
NETWORKS = {
    "lora": {},
    "locon": {"conv_dim": 2},
    "dora": {"algorithm": "dora"},
    "loha": {"algorithm": "loha"},
    "lokr": {"algorithm": "lokr"},
    "full": {"algorithm": "full", "network_dim": 16, **ATTENTION},
    "oft": {"algorithm": "oft", **ATTENTION},
    "boft": {"algorithm": "boft", **ATTENTION},
}
OPTIMIZERS = {
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
    "SGD": {"unet_lr": 1.0},
    "pytorch_optimizer": {"optimizer_name": "soap"},
}


@pytest.fixture(scope="module", autouse=True)
def pictures(server: HostServer) -> None:
    folder = server.base / "input" / FOLDER
    folder.mkdir()
    for file in ("fox.png", "fox.txt", "bear.png", "bear.txt"):
        shutil.copy(PICTURES / file, folder)


@pytest.fixture(scope="module")
def base(server: HostServer) -> np.ndarray:
    """The latent of the checkpoint alone."""
    loader = node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")
    result = server.queue({LOADER: loader, **picture("plain", LOADER)}).check()
    return latent(server, result, "plain")


def test_the_grid_is_full(server: HostServer) -> None:
    info = server.object_info()
    optimizers = info["AtelierOptimizer"]["input"]["required"]["optimizer_type"][1]["options"]
    algorithms = info["AtelierNetwork"]["input"]["optional"]["algorithm"][1]["options"]
    assert set(OPTIMIZERS) == set(optimizers)
    assert {network.get("algorithm", "lora") for network in NETWORKS.values()} == set(algorithms)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_pair_trains_and_the_stock_loader_takes_all_of_it(
    server: HostServer, base: np.ndarray, name: str, kind: str
) -> None:
    heard = len(server.log_text())
    prompt = training(FOLDER, steps=STEPS, prefix=f"grid/{name}-{kind}")
    prompt[NETWORK]["inputs"] |= NETWORKS[name]
    prompt[OPTIMIZER]["inputs"] |= {"optimizer_type": kind, **OPTIMIZERS[kind]}
    trained = Watched(server, prompt)
    assert f"{STEPS} steps" in trained.text(TRAIN) and "nan" not in trained.text(TRAIN)
    file = f"grid/{name}-{kind}_00001_.safetensors"
    tensors = load_file(server.base / "output" / file)
    assert tensors and all(np.isfinite(value).all() for value in tensors.values())
    loaded = server.queue(with_lora("loaded", file)).check()
    ours = latent(server, loaded, "loaded")
    assert np.isfinite(ours).all() and np.abs(ours - base).max() > 1e-3  # the training shows
    assert [words for words in REFUSALS if words in server.log_text()[heard:]] == []
