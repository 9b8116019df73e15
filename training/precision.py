"""Number formats of a run, and the one wrapper around ``accelerate``.

Adapters and their gradients stay float32; the compute type is what activations have inside the
frozen model. float16 needs dynamic loss scaling, which ``accelerate`` brings; bfloat16 does not.
"""

from __future__ import annotations

from enum import Enum

import torch

from .errors import needed_package, require


class MixedPrecision(str, Enum):
    """Widget values, as accelerate and kohya-ss/sd-scripts spell them."""

    AUTO = "auto"
    NO = "no"
    BF16 = "bf16"
    FP16 = "fp16"


_DTYPES = {
    MixedPrecision.NO: torch.float32,
    MixedPrecision.BF16: torch.bfloat16,
    MixedPrecision.FP16: torch.float16,
}


def compute_dtype(
    choice: MixedPrecision, host_dtype: torch.dtype, device: torch.device, bf16_is_fast: bool
) -> torch.dtype:
    """The type of activations.

    Args:
        choice: the widget; ``auto`` takes the type in which the host samples this model, but
            bfloat16 rather than float16 where the device has it, for its range, and float32 on
            the CPU.
        host_dtype: that type.

    Raises:
        AtelierError: float16 on the CPU, which has no loss scaling there.
    """
    if choice is MixedPrecision.AUTO:
        if host_dtype != torch.float16:
            return host_dtype
        if bf16_is_fast:
            return torch.bfloat16
        return torch.float32 if device.type == "cpu" else torch.float16
    require(
        choice is not MixedPrecision.FP16 or device.type != "cpu",
        "mixed_precision fp16 needs a GPU: on the CPU choose auto, no (fp32) or bf16.",
    )
    return _DTYPES[choice]


def make_accelerator(device: torch.device, dtype: torch.dtype):
    """An ``accelerate.Accelerator`` for one run.

    Its settings live in process-wide singletons, so those of an earlier user in the same process
    are dropped first. The base model is never handed to it: the host owns its device, type and
    forward. Call :func:`forget_accelerator` when the run is over.
    """
    accelerate = needed_package("accelerate", "Training")
    forget_accelerator()
    scaling = "fp16" if dtype == torch.float16 else "no"
    return accelerate.Accelerator(cpu=device.type == "cpu", mixed_precision=scaling)


def forget_accelerator() -> None:
    """Drop accelerate's process-wide settings, so that other packs can choose theirs."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
