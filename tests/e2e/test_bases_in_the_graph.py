"""Through the server: a run that breaks down, a MODEL that carries a LoRA, linked values."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from host import HostServer
from training_graph import (
    DATASET,
    LOADER,
    NETWORK,
    PICTURES,
    SAVE,
    TRAIN,
    Prompt,
    latent,
    node,
    picture,
    training,
)

pytestmark = pytest.mark.slow
FOLDER = "bases"


@pytest.fixture(scope="module", autouse=True)
def pictures(server: HostServer) -> None:
    for name in ("fox", "lemon"):
        for extension in (".png", ".txt"):
            server.put_input(PICTURES / f"{name}{extension}", f"{FOLDER}/{name}{extension}")


def _lora(server: HostServer, prefix: str) -> dict[str, np.ndarray]:
    return load_file(server.base / "output" / f"{prefix}_00001_.safetensors")


def test_an_exception_in_step_three_keeps_the_lora_and_leaves_the_base_as_it_was(
    server: HostServer,
) -> None:
    loader = {LOADER: node("CheckpointLoaderSimple", ckpt_name="tiny_sd15.safetensors")}
    before = server.queue({**loader, **picture("calm", LOADER)}).check()
    prompt = training(FOLDER, steps=5, prefix="atelier/broken")
    prompt["failing"] = node("TestFailingModel", model=[LOADER, 0], at_call=3)
    prompt[TRAIN]["inputs"]["model"] = ["failing", 0]
    result = server.queue(prompt)
    assert result.status == "error"
    assert result.errors[0].node_id == TRAIN
    assert "the lens cap is on" in result.errors[0].exception_message
    runs = server.base / "output" / "atelier" / "runs"
    (saved,) = runs.glob(f"{FOLDER}-*/lora/*.safetensors")
    assert saved.stem.endswith("-step00000002")
    after = server.queue({**loader, **picture("calm", LOADER, end=9999)}).check()
    assert LOADER in after.cached and "calm-ks" not in after.cached
    assert np.array_equal(latent(server, after, "calm"), latent(server, before, "calm"))


def test_a_model_with_a_stock_lora_trains_on_its_patched_weights_and_keeps_the_patch(
    server: HostServer,
) -> None:
    """As on a checkpoint into which ComfyUI itself has merged that LoRA; the files are compared."""
    server.queue(training(FOLDER, steps=8, prefix="atelier/stock")).check()

    patched = training(FOLDER, prefix="atelier/patched")
    patched["stock"] = node(
        "LoraLoaderModelOnly",
        model=[LOADER, 0],
        lora_name="atelier/stock_00001_.safetensors",
        strength_model=1.0,
    )
    patched[TRAIN]["inputs"]["model"] = ["stock", 0]
    patched["merge"] = node(
        "CheckpointSave",
        model=["stock", 0],
        clip=[LOADER, 1],
        vae=[LOADER, 2],
        filename_prefix="merged",
    )
    result = server.queue({**patched, **picture("patched", TRAIN, model=1, clip=2)}).check()

    (merged_checkpoint,) = (server.base / "output").glob("merged*.safetensors")
    server.put_model(merged_checkpoint, "merged.safetensors")
    merged = training(FOLDER, prefix="atelier/merged")
    merged[LOADER]["inputs"]["ckpt_name"] = "merged.safetensors"
    again = server.queue({**merged, **picture("merged", TRAIN, model=1, clip=2)}).check()

    server.queue(training(FOLDER, prefix="atelier/plain")).check()
    ours, expected, plain = (_lora(server, f"atelier/{n}") for n in ("patched", "merged", "plain"))
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(ours[key], value, rtol=1e-4, atol=1e-6, err_msg=key)
    ups = [key for key in ours if key.endswith("lora_up.weight")]
    assert max(np.abs(ours[key] - plain[key]).max() for key in ups) > 1e-4  # the patch was felt
    pictures = [latent(server, result, "patched"), latent(server, again, "merged")]
    np.testing.assert_allclose(*pictures, rtol=1e-3, atol=1e-3)


def test_linked_values_are_accepted_and_judged_when_the_node_runs(server: HostServer) -> None:
    prompt = _with_links(training(FOLDER, steps=1, prefix="atelier/linked"), rank=3)
    server.queue(prompt).check()
    down = next(v for k, v in _lora(server, "atelier/linked").items() if "lora_down" in k)
    assert down.shape[0] == 3
    result = server.queue(_with_links(prompt, rank=0))
    assert result.status == "error"
    assert "network_dim is 0" in result.errors[0].exception_message


def _with_links(prompt: Prompt, rank: int) -> Prompt:
    linked = {name: {**spec, "inputs": dict(spec["inputs"])} for name, spec in prompt.items()}
    linked["folder"] = node("PrimitiveString", value=FOLDER)
    linked["rank"] = node("PrimitiveInt", value=rank)
    linked["steps"] = node("PrimitiveInt", value=1)
    linked["prefix"] = node("PrimitiveString", value="atelier/linked")
    linked[DATASET]["inputs"]["folder"] = ["folder", 0]
    linked[NETWORK]["inputs"]["network_dim"] = ["rank", 0]
    linked[TRAIN]["inputs"]["max_train_steps"] = ["steps", 0]
    linked[SAVE]["inputs"]["filename_prefix"] = ["prefix", 0]
    return linked
