"""Number formats, and the accelerator of one run."""

from __future__ import annotations

import time

import pytest
import torch

from lora_atelier.training.base_model.precision import (
    LARGE,
    MixedPrecision,
    accelerating,
    bf16_is_faster_on_this_cpu,
    compute_dtype,
    setting_for,
)
from lora_atelier.training.errors import AtelierError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("choice", "host_dtype", "device", "bf16_is_fast", "expected"),
    [
        ("auto", F32, CPU, False, F32),
        ("auto", F32, CPU, True, BF16),
        ("auto", BF16, CPU, False, F32),  # it would take many times as long
        ("auto", F16, CPU, True, BF16),
        ("auto", F16, CPU, False, F32),  # has no loss scaling there
        ("auto", F32, CUDA, True, F32),
        ("auto", F16, CUDA, True, BF16),
        ("auto", F16, CUDA, False, F16),
        ("auto", BF16, CUDA, False, BF16),
        ("no", F16, CUDA, True, F32),
        ("bf16", F16, CUDA, False, BF16),
        ("bf16", F32, CPU, False, BF16),
        ("fp16", BF16, CUDA, True, F16),
    ],
)
def test_the_type_of_activations(choice, host_dtype, device, bf16_is_fast, expected) -> None:
    assert compute_dtype(MixedPrecision(choice), host_dtype, device, bf16_is_fast) == expected


@pytest.mark.parametrize(
    ("choice", "host_dtype", "bf16_is_fast", "expected"),
    [
        ("auto", F16, True, BF16),
        ("auto", F16, False, F32),
        ("auto", BF16, False, BF16),
        ("auto", F32, True, F32),
        ("bf16", F16, False, BF16),
        ("no", F16, True, F32),
    ],
)
def test_large_models_never_compute_in_fp16(choice, host_dtype, bf16_is_fast, expected) -> None:
    choice = MixedPrecision(choice)
    assert compute_dtype(choice, host_dtype, CUDA, bf16_is_fast, LARGE) is expected


def test_fp16_is_refused_from_ten_billion_parameters_on() -> None:
    asked = (MixedPrecision.FP16, F16, CUDA, False)
    assert compute_dtype(*asked, 9_999_999_999) is F16
    with pytest.raises(AtelierError, match=r"fp16, but this model has 10\.0 B .*loss scaling"):
        compute_dtype(*asked, 10_000_000_000)


def test_fp16_on_the_cpu_is_refused_in_words() -> None:
    with pytest.raises(AtelierError, match="mixed_precision fp16 needs a GPU: .*bf16"):
        compute_dtype(MixedPrecision.FP16, F32, CPU, False)


def test_another_packs_accelerator_decides_nothing_here_and_is_left_whole() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # what earlier tests have left
    theirs = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=4)
    with accelerating(CPU, F32) as ours:
        assert (ours.mixed_precision, ours.gradient_accumulation_steps) == ("no", 1)
    with accelerating(CPU, BF16) as ours:
        assert ours.mixed_precision == "no"  # the model casts, not autocast
    assert (theirs.mixed_precision, theirs.gradient_accumulation_steps) == ("bf16", 4)
    assert theirs.device == CPU
    AcceleratorState._reset_state(reset_partial_state=True)


def test_on_the_cpu_there_is_no_loss_scaler() -> None:
    with accelerating(CPU, BF16) as accelerator:
        assert accelerator.scaler is None
        assert accelerator.device == CPU


@pytest.mark.gpu
def test_fp16_on_a_gpu_scales_the_loss() -> None:
    with accelerating(CPU, F32) as plain:
        assert plain.scaler is None
    with accelerating(CUDA, F16) as scaling:
        assert scaling.scaler is not None


@pytest.mark.skipif(torch.cuda.is_available(), reason="accelerate has loss scaling for CUDA")
def test_fp16_on_a_device_without_loss_scaling_is_refused_in_words() -> None:
    directml = torch.device("privateuseone:0")
    with pytest.raises(AtelierError, match=r"fp16, but .* no loss scaling for a private.*bf16"):
        with accelerating(directml, F16):
            pass
    with accelerating(directml, F32) as accelerator:
        assert accelerator.scaler is None


def test_whether_bf16_is_fast_is_what_a_larger_product_shows() -> None:
    seconds = {}
    for dtype in (F32, BF16):
        a = torch.ones(384, 384, dtype=dtype)
        taken = []
        for _ in range(4):
            started = time.perf_counter()
            a @ a
            taken.append(time.perf_counter() - started)
        seconds[dtype] = min(taken)
    ratio = seconds[BF16] / seconds[F32]
    if 0.6 < ratio < 1.2:
        pytest.skip(f"bf16 takes {ratio:.2f} times as long here: no answer is wrong")
    assert bf16_is_faster_on_this_cpu() == (ratio < 1)


@pytest.mark.parametrize("dtype", (F32, F16, BF16))
def test_every_type_has_a_setting_that_gives_it(dtype: torch.dtype) -> None:
    assert compute_dtype(setting_for(dtype), F32, CUDA, False) == dtype
