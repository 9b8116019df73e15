"""Train LoRA on the server with adapters stored in bfloat16."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from host import HostServer
from training_graph import OPTIMIZER, PICTURES, TRAIN, Prompt, latent, training, with_lora

FOLDER = "adapter_precision"


@pytest.fixture(scope="module", autouse=True)
def pictures(server: HostServer) -> None:
    folder = server.base / "input" / FOLDER
    folder.mkdir()
    for extension in (".png", ".txt"):
        shutil.copy(PICTURES / f"fox{extension}", folder)


def graph(precision: str) -> Prompt:
    prompt = training(FOLDER, prefix=f"atelier/{FOLDER}_{precision}")
    prompt[TRAIN]["inputs"] |= {"adapter_precision": precision}
    return prompt


def trained(server: HostServer, precision: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    server.queue(graph(precision)).check()
    path = server.base / "output" / "atelier" / f"{FOLDER}_{precision}_00001_.safetensors"
    with safe_open(path, "numpy") as file:
        return load_file(path), file.metadata()


def test_a_lora_stored_narrow_is_about_the_one_stored_wide(server: HostServer) -> None:
    exact, facts = trained(server, "fp32")
    assert "atelier.adapter_precision" not in facts
    for precision in ("bf16_stochastic", "bf16_kahan"):
        weights, facts = trained(server, precision)
        assert facts["atelier.adapter_precision"] == precision
        ups = [key for key in exact if key.endswith("lora_up.weight")]
        one, other = (np.concatenate([w[key].ravel() for key in ups]) for w in (exact, weights))
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert 0.9 < cosine < 1
        name = f"{FOLDER}_{precision}"
        loaded = server.queue(with_lora(name, f"atelier/{name}_00001_.safetensors")).check()
        assert np.isfinite(latent(server, loaded, name)).all()


def test_an_optimizer_that_averages_is_refused_in_words(server: HostServer) -> None:
    prompt = graph("bf16_kahan")
    prompt[OPTIMIZER]["inputs"]["optimizer_type"] = "AdamWScheduleFree"
    result = server.queue(prompt)
    assert result.status == "error"
    assert "adapter_precision is bf16_kahan, but AdamWScheduleFree keeps an average" in (
        result.message
    )
