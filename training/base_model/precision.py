"""Number formats of a run, and the one wrapper around ``accelerate``.

The compute type is what activations have inside the frozen model; how the adapters are stored is
another choice (:mod:`training.runs.adapter_precision`). float16 needs dynamic loss scaling, which
``accelerate`` brings; bfloat16 does not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cache
from typing import Any

import torch

from ..errors import needed_package, require


class MixedPrecision(str, Enum):
    """Widget values, as accelerate and kohya-ss/sd-scripts spell them."""

    AUTO = "auto"
    NO = "no"
    BF16 = "bf16"
    FP16 = "fp16"


LARGE = 10_000_000_000
"""Parameters from which on activations leave the range of float16."""

_DTYPES = {
    MixedPrecision.NO: torch.float32,
    MixedPrecision.BF16: torch.bfloat16,
    MixedPrecision.FP16: torch.float16,
}


def compute_dtype(
    choice: MixedPrecision,
    host_dtype: torch.dtype,
    device: torch.device,
    bf16_is_fast: bool,
    parameters: int = 0,
) -> torch.dtype:
    """The type of activations.

    Args:
        choice: the widget; ``auto`` takes the type in which the host samples this model, but
            bfloat16 rather than float16 where the device has it, for its range, and float32
            rather than float16 for models of 10 B parameters and more. On a CPU it takes bfloat16
            where that is fast, and float32 elsewhere: there bfloat16 may take fifty times as long.
        host_dtype: that type.
        parameters: how many the frozen model has.

    Raises:
        AtelierError: float16 on the CPU, which has no loss scaling there, or for such a model.
    """
    large = parameters >= LARGE
    if choice is MixedPrecision.AUTO:
        if device.type == "cpu":
            return torch.bfloat16 if bf16_is_fast else torch.float32
        if host_dtype != torch.float16:
            return host_dtype
        if bf16_is_fast:
            return torch.bfloat16
        return torch.float32 if large else torch.float16
    require(
        choice is not MixedPrecision.FP16 or not large,
        f"mixed_precision is fp16, but this model has {parameters / 1e9:.1f} B parameters: in "
        "models of 10 B and more, activations leave the range of fp16 on the way forward already, "
        "where loss scaling cannot help. Choose bf16, or auto.",
    )
    require(
        choice is not MixedPrecision.FP16 or device.type != "cpu",
        "mixed_precision fp16 needs a GPU: on the CPU choose auto, no (fp32) or bf16.",
    )
    return _DTYPES[choice]


@cache
def bf16_is_faster_on_this_cpu() -> bool:
    """Measured on a matrix product, a few milliseconds, once a process.

    There is no middle: CPUs with instructions for it (AMX, AVX512-BF16) are about twice as fast,
    others many times slower. So noise does not change the answer, and a state remembers it anyway.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(128, 256, dtype=dtype), torch.ones(256, 128, dtype=dtype)
        taken = []
        for _ in range(4):  # the first ones warm up
            started = time.perf_counter()
            a @ b
            taken.append(time.perf_counter() - started)
        seconds[dtype] = min(taken)
    return seconds[torch.bfloat16] < 0.8 * seconds[torch.float32]


def setting_for(dtype: torch.dtype) -> MixedPrecision:
    """The widget's name of a type of activations."""
    return next(setting for setting, kind in _DTYPES.items() if kind == dtype)


@contextmanager
def accelerating(device: torch.device, dtype: torch.dtype) -> Iterator[Any]:
    """An ``accelerate.Accelerator`` for the length of a run.

    Its settings live in process-wide singletons: another pack's must not decide ours, nor ours
    theirs, so what was there is put aside and put back. The base model is never handed to it: the
    host owns its device, type and forward.

    Under ``accelerate launch`` it finds the other processes by the environment. The link to them
    belongs to the process, not to these settings: it is made the first time and found again after.
    Accumulation is said to be 1, whatever the environment says: the trainer divides by itself.

    Raises:
        AtelierError: float16 on a device that accelerate does not know, as DirectML's.
    """
    accelerate = needed_package("accelerate", "Training")
    state = needed_package("accelerate.state", "Training")
    kinds = (state.PartialState, state.AcceleratorState, state.GradientState)
    before = [dict(kind._shared_state) for kind in kinds]
    for kind in kinds:
        kind._shared_state.clear()
    try:
        scaling = "fp16" if dtype == torch.float16 else "no"
        accelerator = accelerate.Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=scaling,
            gradient_accumulation_plugin=accelerate.utils.GradientAccumulationPlugin(num_steps=1),
        )
        require(
            dtype != torch.float16 or device.type == "cpu" or accelerator.scaler is not None,
            f"mixed_precision is fp16, but accelerate has no loss scaling for a {device.type} "
            "device, without which small gradients are lost. Choose bf16, or no (fp32).",
        )
        yield accelerator
    finally:
        for kind, values in zip(kinds, before, strict=True):
            kind._shared_state.clear()
            kind._shared_state.update(values)
