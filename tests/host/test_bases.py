"""Bases of every kind train: patched ones on their patches, stored in fp16 or fp8, in bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_sampling
import comfy.sd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from in_memory import PLACEMENT
from lora_atelier.training.base_model.precision import MixedPrecision
from lora_atelier.training.host.result import apply_lora
from lora_atelier.training.results.lora_file import trained_lora
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingState, start
from tiny_training import (
    CAPTIONS,
    Parts,
    Recorder,
    encode,
    first_losses,
    load_model,
    load_parts,
    make_run,
    normal,
    predicting,
    quick_spec,
)

UNET = "model.diffusion_model."
STRENGTH, RANK, ALPHA = 0.8, 3, 6.0
# The attn2 layers of the first transformer, under the name kohya writes and the model's own.
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2"
OWN = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def weights(tiny_checkpoint: Path) -> dict[str, Tensor]:
    return load_file(tiny_checkpoint)


@pytest.fixture(scope="module")
def encoded(parts: Parts) -> dict[str, Any]:
    return encode(parts.clip, CAPTIONS)


@pytest.fixture(scope="module")
def stock_lora(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file such as another trainer would write."""
    tensors: dict[str, Tensor] = {}
    for i, layer in enumerate(ATTENTION):
        height, width = weights[f"{OWN}.{layer}.weight"].shape
        name = f"{KOHYA}_{layer.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = normal(40 + i, RANK, width) * width**-0.5
        tensors[f"{name}.lora_up.weight"] = normal(50 + i, height, RANK) * 0.3
        tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    path = tmp_path_factory.mktemp("stock") / "stock.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def patched(parts: Parts, stock_lora: Path) -> Any:
    """The MODEL after the host's LoraLoader."""
    with torch.inference_mode():
        lora = load_file(stock_lora)
        return comfy.sd.load_lora_for_models(parts.model, None, lora, STRENGTH, 0)[0]


@pytest.fixture(scope="module")
def merged(weights: dict[str, Tensor], stock_lora: Path) -> Any:
    """A MODEL whose weights had the stock LoRA added by hand."""
    lora, sums = load_file(stock_lora), dict(weights)
    for layer in ATTENTION:
        name = f"{KOHYA}_{layer.replace('.', '_')}"
        delta = lora[f"{name}.lora_up.weight"] @ lora[f"{name}.lora_down.weight"]
        key = f"{OWN}.{layer}.weight"
        sums[key] = weights[key] + STRENGTH * ALPHA / RANK * delta
    return load_model(sums)


def trained(model: Any, encoded: dict[str, Any], steps: int = 3) -> TrainingState:
    with torch.inference_mode():
        return train(start(make_run(model, encoded)), steps, Recorder())


def prediction(model: Any, encoded: dict[str, Any]) -> Tensor:
    run = make_run(model, encoded)
    with predicting(run.model) as predict:
        x, sigmas = normal(60, 4, 4, 8, 8) * 2, torch.tensor([0.3, 1.0, 2.0, 6.0])
        return predict(x, sigmas, list(encoded.values()), [PLACEMENT] * 4).detach()


def test_a_patched_model_trains_on_its_patched_weights(
    parts: Parts, patched: Any, merged: Any, encoded: dict[str, Any]
) -> None:
    plain, with_patch, by_hand = (
        first_losses(make_run(model, encoded, quick_spec(train_batch_size=4))).detach()
        for model in (parts.model, patched, merged)
    )
    assert ((with_patch - plain).abs() > 1e-3 * plain).all()
    torch.testing.assert_close(with_patch, by_hand, rtol=1e-5, atol=0)


def test_a_lora_trained_on_a_patched_model_excludes_the_patch(
    patched: Any, merged: Any, encoded: dict[str, Any]
) -> None:
    lora = trained_lora(trained(patched, encoded))
    expected = trained_lora(trained(merged, encoded))
    assert lora.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(lora[key], value, rtol=0, atol=1e-5)


def test_the_trained_model_keeps_the_patch_it_came_with(
    patched: Any, merged: Any, encoded: dict[str, Any]
) -> None:
    with torch.inference_mode():
        lora = trained_lora(trained(patched, encoded))
        result, expected = (apply_lora(model, None, lora)[0] for model in (patched, merged))
    assert not torch.allclose(prediction(patched, encoded), prediction(result, encoded), rtol=1e-3)
    torch.testing.assert_close(
        prediction(result, encoded), prediction(expected, encoded), rtol=1e-4, atol=1e-4
    )


def test_the_plain_model_is_plain_again_after_its_patched_clone_was_trained(
    parts: Parts, patched: Any, encoded: dict[str, Any]
) -> None:
    before = prediction(parts.model, encoded)
    trained(patched, encoded, steps=1)
    assert torch.equal(prediction(parts.model, encoded), before)


def test_the_same_state_trains_to_the_same_bits(parts: Parts, encoded: dict[str, Any]) -> None:
    first, second = trained(parts.model, encoded), trained(parts.model, encoded)
    assert [r.loss for r in first.history] == [r.loss for r in second.history]
    assert all(torch.equal(second.network[k], v) for k, v in first.network.items())


def test_six_steps_equal_three_and_three_bit_for_bit(parts: Parts, encoded: dict[str, Any]) -> None:
    with torch.inference_mode():
        state = start(make_run(parts.model, encoded))
        whole = train(state, 6, Recorder())
        parted = train(train(state, 3, Recorder()), 3, Recorder())
    assert parted.history == whole.history and whole.step == 6
    assert all(torch.equal(parted.network[k], v) for k, v in whole.network.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn], ids=["fp16", "fp8"])
def test_a_base_stored_narrow_trains_as_its_rounded_weights(
    tiny_checkpoint: Path, weights: dict[str, Tensor], encoded: dict[str, Any], dtype: torch.dtype
) -> None:
    stored = load_parts(tiny_checkpoint, dtype).model
    assert stored.model.diffusion_model.out[2].weight.dtype is dtype
    rounded = {
        key: value.to(dtype).float() if key.startswith(UNET) else value
        for key, value in weights.items()
    }
    spec = quick_spec(train_batch_size=4)
    run = make_run(stored, encoded, spec)
    expected = first_losses(make_run(load_model(rounded), encoded, spec)).detach()
    torch.testing.assert_close(first_losses(run).detach(), expected, rtol=1e-5, atol=0)
    with torch.inference_mode():
        state = train(start(run), 3, Recorder())
    assert all(w.isfinite().all() for w in state.network.values())
    assert all(w.any() for key, w in state.network.items() if key.endswith("lora_up.weight"))


def test_in_bf16_the_adapters_learn_in_fp32(parts: Parts, encoded: dict[str, Any]) -> None:
    spec = quick_spec(train_batch_size=4, mixed_precision=MixedPrecision.BF16)
    with torch.inference_mode():
        state = train(start(make_run(parts.model, encoded, spec)), 3, Recorder())
    assert all(w.dtype is torch.float32 and w.isfinite().all() for w in state.network.values())
    assert all(w.any() for key, w in state.network.items() if key.endswith("lora_up.weight"))


# Relative error of a stored weight: at most 2^-11 in fp16, 2^-4 in fp8 with 3 bits of mantissa;
# of an activation: 2^-9 in bf16. The loss averages over all of them.
@pytest.mark.parametrize(
    ("storage", "compute", "tolerance"),
    [
        (torch.float16, torch.float32, 1e-3),
        (torch.float8_e4m3fn, torch.float32, 6e-2),
        (None, torch.bfloat16, 2e-2),
    ],
    ids=["fp16-stored", "fp8-stored", "bf16-compute"],
)
def test_the_loss_stays_near_that_of_fp32(
    tiny_checkpoint: Path,
    parts: Parts,
    encoded: dict[str, Any],
    storage: torch.dtype | None,
    compute: torch.dtype,
    tolerance: float,
) -> None:
    spec = quick_spec(train_batch_size=4)
    exact = first_losses(make_run(parts.model, encoded, spec)).detach()
    model = load_parts(tiny_checkpoint, storage).model if storage else parts.model
    near = first_losses(make_run(model, encoded, spec), compute).detach()
    torch.testing.assert_close(near, exact, rtol=tolerance, atol=0)
    assert not torch.equal(near, exact)  # the narrower type was really used
