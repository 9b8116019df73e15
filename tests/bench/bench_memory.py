"""What a training step takes of memory beside what it cannot do without.

Three training steps are run, and the bytes of every tensor that comes into being are counted
(:mod:`training.memory.allocations`): exact, on any device, however busy the machine. What cannot be
done without are the base as it is stored, the adapters and the optimizer's two moments; *over* is
what the busiest moment has besides: activations, gradients, casts.

    checkpointing   an UNet with the levels and depths of SDXL, with and without
    fp8             a Flux whose weights are stored in fp8 beside one in bf16, computed in bf16
    low rank        the Flux with its side paths in one step of autograd
                    (:mod:`training.base_model.low_rank`) beside the same layers written apart

Run it with `make bench ARGS=tests/bench/bench_memory.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from comfy_modules import make_importable

make_importable()

import comfy.supported_models  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402

from families import FLUX, UNET  # noqa: E402
from in_memory import encoded_dataset  # noqa: E402
from lora_atelier.training.base_model.frozen import FrozenLayer  # noqa: E402
from lora_atelier.training.base_model.precision import MixedPrecision  # noqa: E402
from lora_atelier.training.host.diffusion_model import HostDiffusionModel  # noqa: E402
from lora_atelier.training.memory.allocations import Allocations  # noqa: E402
from lora_atelier.training.network.adapters.lora import LoRA  # noqa: E402
from lora_atelier.training.network.spec import NetworkSpec  # noqa: E402
from lora_atelier.training.runs.loop import train  # noqa: E402
from lora_atelier.training.runs.run import TrainingRun, start  # noqa: E402
from tiny_training import Recorder, normal, quick_spec  # noqa: E402

TARGET = 0.6
MB = 1 << 20
SDXL = {
    **UNET,
    **{"model_channels": 64, "channel_mult": [1, 2, 4], "num_res_blocks": [2, 2, 2]},
    **{"transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10},
    **{"transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "num_head_channels": 64},
    **{"num_classes": "sequential", "adm_in_channels": 2816},
}
"""The levels and depths of the real one; a fifth of its width."""
FLUX_SHAPED = {
    **FLUX,
    **{"hidden_size": 256, "num_heads": 2, "axes_dim": [16, 56, 56], "mlp_ratio": 4.0},
    **{"depth": 2, "depth_single_blocks": 4},
}
"""Two kinds of blocks in the real one's proportion, its head and its places; a twelfth of its
width."""


class Peak(NamedTuple):
    """Bytes."""

    base: int
    trained: int
    """Adapters and the optimizer's moments, float32."""
    over: int


class Shape(NamedTuple):
    """What a family's models take."""

    kind: str
    config: Mapping[str, Any]
    latent: tuple[int, ...]
    conditioning: list[Any]


SDXL_SHAPE = Shape(
    "SDXL", SDXL, (4, 32, 32), [normal(1, 1, 77, 48), {"pooled_output": normal(2, 1, 1280)}]
)
FLUX_SHAPE = Shape(
    "Flux", FLUX_SHAPED, (16, 16, 16), [normal(1, 1, 64, 48), {"pooled_output": normal(2, 1, 32)}]
)


@torch.inference_mode()  # as a loader node makes it
def patcher(shape: Shape, stored: torch.dtype, computed: torch.dtype) -> ModelPatcher:
    config = getattr(comfy.supported_models, shape.kind)({**shape.config, "dtype": stored})
    config.set_inference_dtype(stored, None if stored == computed else computed)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = config.get_model({}, "")
        for parameter in base.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
            parameter.copy_(torch.randn(parameter.shape) / fan_in**0.5)
    cpu = torch.device("cpu")
    return ModelPatcher(base, load_device=cpu, offload_device=cpu)


def peak(shape: Shape, model: ModelPatcher, checkpointing: bool = False) -> Peak:
    """Of three steps at batch 1; in the first the optimizer makes its moments."""
    bf16 = model.model.diffusion_model.dtype != torch.float32
    spec = quick_spec(
        network=NetworkSpec(8, 8.0),
        mixed_precision=MixedPrecision.BF16 if bf16 else MixedPrecision.NO,
        gradient_checkpointing=checkpointing,
    )
    data = encoded_dataset([normal(3, *shape.latent)], {"a thing": shape.conditioning})
    host = HostDiffusionModel(model, spec.objective, gradient_checkpointing=checkpointing)
    state = start(TrainingRun(spec, data, host))
    trained = 3 * 4 * sum(t.numel() for name, t in state.network.items() if "lora" in name)
    peaks: list[int] = []
    with Allocations() as memory:  # what the state is frozen into at the end is not in it
        train(state, 3, Recorder(lambda: peaks.append(memory.peak)))
    return Peak(model.model_size(), trained, peaks[-1] - trained)


def table(title: str, rows: Mapping[str, Peak]) -> None:
    lines = [f"\n{title:<28}{'base':>9}{'trained':>9}{'over':>9}   MB"]
    for name, row in rows.items():
        lines.append(f"  {name:<26}" + "".join(f"{part / MB:9.1f}" for part in row))
    sys.stdout.write("\n".join(lines) + "\n")


def test_checkpointing() -> None:
    model = patcher(SDXL_SHAPE, torch.float32, torch.float32)
    off, on = (peak(SDXL_SHAPE, model, checkpointing) for checkpointing in (False, True))
    table("SDXL-shaped, fp32", {"without checkpointing": off, "with": on})
    ratio = on.over / off.over
    sys.stdout.write(f"  over: {ratio:.2f} with checkpointing (target at most {TARGET})\n")
    assert ratio <= TARGET


def test_a_base_in_fp8() -> None:
    wide, narrow = (
        peak(FLUX_SHAPE, patcher(FLUX_SHAPE, stored, torch.bfloat16))
        for stored in (torch.bfloat16, torch.float8_e4m3fn)
    )
    table("Flux-shaped, computed in bf16", {"stored in bf16": wide, "stored in fp8": narrow})
    base, over = narrow.base / wide.base, narrow.over / wide.over
    whole = sum(narrow) / sum(wide)
    sys.stdout.write(
        f"  base: {base:.2f} (target at most {TARGET}), over: {over:.2f}, all: {whole:.2f}\n"
    )
    assert base <= TARGET


def _apart(self: LoRA, frozen: FrozenLayer, x: Tensor) -> Tensor:
    return frozen(x) + self.side_path(frozen, x)


def one_layer(adapter: LoRA, layer: nn.Linear, rows: int) -> int:
    """Bytes above the layer and its adapter at the busiest moment of a pass there and back."""
    frozen = FrozenLayer(layer, own_weight)
    x = normal(4, rows, layer.in_features).requires_grad_()
    with Allocations() as memory:
        adapter(frozen, x).backward(torch.ones(rows, layer.out_features))
    return memory.peak


@contextmanager
def own_weight(layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    yield layer.weight, layer.bias


def test_the_low_rank_path_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """With checkpointing, so that the busiest moment lies in a block and not between two."""
    model = patcher(FLUX_SHAPE, torch.float32, torch.float32)
    layer = nn.Linear(1024, 1024).requires_grad_(False)
    adapter = LoRA(layer, 8, 8.0, torch.Generator().manual_seed(0))
    together = peak(FLUX_SHAPE, model, checkpointing=True)
    alone = one_layer(adapter, layer, 1024)
    monkeypatch.setattr(LoRA, "forward", _apart)
    apart = peak(FLUX_SHAPE, model, checkpointing=True)
    table("Flux-shaped, side paths", {"in one step": together, "written apart": apart})
    one = alone / one_layer(adapter, layer, 1024)
    sys.stdout.write(
        f"  over: {together.over / apart.over:.2f} in one step; of one layer alone: {one:.2f}\n"
    )
    assert together.over <= apart.over and one < 1
