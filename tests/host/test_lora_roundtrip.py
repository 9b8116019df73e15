"""What was trained is what the host's LoraLoader gives for the saved file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
import pytest
import torch
from torch import Tensor, nn

from in_memory import PLACEMENT
from lora_atelier.training.network.build import NetworkSpec
from lora_atelier.training.results.lora_file import SavePrecision, save_lora
from tiny_training import (
    CAPTIONS,
    Parts,
    encode,
    load_parts,
    make_run,
    normal,
    predicting,
    worked_network,
)

SPEC = NetworkSpec(network_dim=4, network_alpha=7.0)
REFUSALS = ("lora key not loaded", "NOT LOADED")


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def encoded(parts: Parts) -> dict[str, Any]:
    return encode(parts.clip, CAPTIONS)


@pytest.fixture(scope="module")
def network(parts: Parts, encoded: dict[str, Any]) -> nn.ModuleDict:
    return worked_network(make_run(parts.model, encoded).model, SPEC)


def load_stock(parts: Parts, file: Path) -> Any:
    """The MODEL after the host's LoraLoader."""
    with torch.inference_mode():
        lora = comfy.utils.load_torch_file(str(file), safe_load=True)
        return comfy.sd.load_lora_for_models(parts.model, parts.clip, lora, 1.0, 1.0)[0]


def prediction(model: Any, encoded: dict[str, Any], network: Any = None) -> Tensor:
    run = make_run(model, encoded)
    with predicting(run.model, network) as predict:
        x, sigmas = normal(60, 4, 4, 8, 8) * 2, torch.tensor([0.3, 1.0, 2.0, 6.0])
        return predict(x, sigmas, list(encoded.values()), [PLACEMENT] * 4).detach()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def refused(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [m for m in caplog.messages if any(words in m for words in REFUSALS)]


def test_the_host_loads_every_key_of_the_file(
    parts: Parts, network: nn.ModuleDict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "lora.safetensors"
    save_lora(file, network.state_dict(), SavePrecision.FLOAT)
    patched = load_stock(parts, file)
    assert refused(caplog) == []
    assert len(patched.patches) == len(network) == 48


def test_a_key_that_the_host_does_not_know_would_be_noticed(
    parts: Parts, network: nn.ModuleDict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The test above would be blind if these warnings were not heard."""
    tensors = network.state_dict()
    name = next(name for name in tensors if name.endswith("lora_up.weight"))
    file = tmp_path / "lora.safetensors"
    save_lora(file, {**tensors, f"unknown_{name}": tensors[name].clone()}, SavePrecision.FLOAT)
    load_stock(parts, file)
    assert refused(caplog) == [f"lora key not loaded: unknown_{name}"]


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    # bf16 has 8 bits of mantissa, fp16 11: errors of single weights average out in the sum.
    [(SavePrecision.FLOAT, 1e-4), (SavePrecision.FP16, 1e-3), (SavePrecision.BF16, 1e-2)],
)
def test_the_model_while_training_equals_the_model_with_the_file_on_it(
    parts: Parts,
    encoded: dict[str, Any],
    network: nn.ModuleDict,
    tmp_path: Path,
    precision: SavePrecision,
    tolerance: float,
) -> None:
    file = tmp_path / "lora.safetensors"
    save_lora(file, network.state_dict(), precision)
    side_path = prediction(parts.model, encoded, network)
    assert relative(side_path, prediction(parts.model, encoded)) > 0.01  # it does something
    assert relative(prediction(load_stock(parts, file), encoded), side_path) < tolerance


def test_every_layer_with_its_side_path_equals_its_merged_weight(
    parts: Parts, encoded: dict[str, Any], network: nn.ModuleDict
) -> None:
    run = make_run(parts.model, encoded)
    with predicting(run.model, network):
        for i, (name, target) in enumerate(run.model.layers(SPEC).items()):
            layer = target.layer
            up, down = network[name].lora_up.weight, network[name].lora_down.weight
            merged = layer.weight.clone().flatten(1) + 7.0 / 4 * up.flatten(1) @ down.flatten(1)
            x = normal(80 + i, 5, merged.shape[1])
            expected = nn.functional.linear(x, merged)
            expected += 0 if layer.bias is None else layer.bias.clone()
            convolution = isinstance(layer, nn.Conv2d)
            answer = layer(x[:, :, None, None] if convolution else x).flatten(1)
            torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)
