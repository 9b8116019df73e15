"""The memory that a run on a full-size model is estimated to take: the tables of the README.

Models of ComfyUI's own classes at full size, on the device ``meta``, where they take no memory; one
micro-step of each is rehearsed as before every run (:mod:`training.memory.estimate`). Nothing is
measured here. Run it with `make bench ARGS=tests/bench/bench_estimates.py`; it takes two minutes.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch

from comfy_modules import make_importable

make_importable()

import comfy.supported_models  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402

from host_configs import flux_config  # noqa: E402
from in_memory import encoded_dataset  # noqa: E402
from loaded_families import QWEN, WIDE_FLUX, ZIMAGE  # noqa: E402
from loaded_families import SD15 as NARROW_SD15  # noqa: E402
from loaded_families import SDXL as NARROW_SDXL  # noqa: E402
from lora_atelier.training.base_model.precision import MixedPrecision  # noqa: E402
from lora_atelier.training.host.diffusion_model import HostDiffusionModel  # noqa: E402
from lora_atelier.training.memory.estimate import MemoryEstimate  # noqa: E402
from lora_atelier.training.network.spec import NetworkSpec  # noqa: E402
from lora_atelier.training.optimizers.kinds import OptimizerType  # noqa: E402
from lora_atelier.training.optimizers.optimizer import OptimizerSpec  # noqa: E402
from lora_atelier.training.runs.run import TrainingRun  # noqa: E402
from tiny_training import quick_spec  # noqa: E402

GB = 1 << 30
FP16, BF16, FP8 = torch.float16, torch.bfloat16, torch.float8_e4m3fn
SHAPES = torch.device("meta")


class Model(NamedTuple):
    """A full-size model, and what it is told."""

    kind: str
    config: dict[str, Any]
    channels: int
    text: tuple[int, int]
    """Tokens × width."""
    pooled: int = 0
    is_video: bool = False


SD15 = {
    **NARROW_SD15,
    **{"num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4]},
    **{"transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_output": [1] * 9 + [0] * 3},
}
SDXL = {
    **NARROW_SDXL,
    **{"channel_mult": [1, 2, 4], "transformer_depth_middle": 10},
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
}
SD35_MEDIUM = {
    "in_channels": 16,
    "patch_size": 2,
    "depth": 24,
    "input_size": None,
    "adm_in_channels": 2048,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": 4096, "out_features": 1536},
    },
    "pos_embed_max_size": 384,
    "num_patches": 384 * 384,
    "qk_norm": "rms",
    "pos_embed_scaling_factor": None,
    "x_block_self_attn_layers": list(range(13)),
}
FLUX = flux_config(WIDE_FLUX, vec_in_dim=768, context_in_dim=4096, depth=19, depth_single_blocks=38)
MODELS = {
    "SD1.5": Model("SD15", SD15, 4, (77, 768)),
    "SDXL": Model("SDXL", SDXL, 4, (77, 2048), 1280),
    "SD3.5 medium": Model("SD3", SD35_MEDIUM, 16, (154, 4096), 2048),
    "Flux dev": Model("Flux", FLUX, 16, (256, 4096), 768),
    "Z-Image": Model("ZImage", {**ZIMAGE, "n_layers": 30, "cap_feat_dim": 2560}, 16, (128, 2560)),
    "Qwen-Image": Model("QwenImage", {**QWEN, "num_layers": 60}, 16, (128, 3584), is_video=True),
}
BILLIONS = {
    "SD1.5": 0.86,
    "SDXL": 2.57,
    "SD3.5 medium": 2.24,  # and the places of its patches, which are a buffer
    "Flux dev": 11.90,
    "Z-Image": 6.15,
    "Qwen-Image": 20.43,
}
"""Parameters of the real ones."""
STORED = {
    "SD1.5": [(FP16, 512)],
    "SDXL": [(FP16, 1024), (FP8, 1024)],
    "SD3.5 medium": [(FP16, 1024), (FP8, 1024)],
    "Flux dev": [(FP8, 512), (FP8, 1024), (BF16, 1024)],
    "Z-Image": [(FP8, 1024), (BF16, 1024)],
    "Qwen-Image": [(FP8, 1024), (BF16, 1024)],
}
CHOICES: dict[str, dict[str, Any]] = {
    "as above": {},
    "4 pictures a step": {"batch": 4},
    "768 px": {"side": 768},
    "rank 128": {"rank": 128},
    "rank 128, AdamW8bit": {"rank": 128, "optimizer": OptimizerType.ADAMW_8BIT},
}


def patcher(model: Model, stored: torch.dtype) -> ModelPatcher:
    with torch.inference_mode():
        config = getattr(comfy.supported_models, model.kind)({**model.config, "dtype": stored})
        config.set_inference_dtype(stored, None if stored == BF16 else BF16)
        base = config.get_model({}, "", device=SHAPES)
    cpu = torch.device("cpu")
    return ModelPatcher(base, load_device=cpu, offload_device=cpu)


def estimate(
    name: str,
    stored: torch.dtype,
    side: int,
    checkpointing: bool,
    batch: int = 1,
    rank: int = 16,
    optimizer: OptimizerType = OptimizerType.ADAMW,
) -> MemoryEstimate:
    model = MODELS[name]
    spec = quick_spec(
        network=NetworkSpec(rank, float(rank)),
        optimizer=OptimizerSpec(optimizer),
        mixed_precision=MixedPrecision.BF16,
        gradient_checkpointing=checkpointing,
        train_batch_size=batch,
    )
    frames = (1,) if model.is_video else ()
    latents = [torch.empty(model.channels, *frames, side // 8, side // 8) for _ in range(batch)]
    pooled = torch.empty(1, model.pooled) if model.pooled else None
    texts = {
        f"picture {i}": [torch.empty(1, *model.text), {"pooled_output": pooled}]
        for i in range(batch)
    }
    host = HostDiffusionModel(
        patcher(model, stored), spec.objective, gradient_checkpointing=checkpointing
    )
    numbers = sum(p.numel() for p in host.patcher.model.diffusion_model.parameters())
    assert abs(numbers / 1e9 - BILLIONS[name]) < 0.01  # it has the size of the real one
    found = TrainingRun(spec, encoded_dataset(latents, texts), host).memory
    assert found.activations is not None
    return found


def row(title: str, *run: Any, **choices: Any) -> None:
    off, on = (estimate(*run, checkpointing, **choices) for checkpointing in (False, True))
    sys.stdout.write(f"{title:<28}{off.total / GB:8.1f}{on.total / GB:8.1f}\n")


def test_models() -> None:
    sys.stdout.write(f"\n{'GB, without and with':<28}checkpointing\n")
    for name, ways in STORED.items():
        for stored, side in ways:
            row(f"{name}, {str(stored).removeprefix('torch.')[:9]}, {side}", name, stored, side)


def test_choices() -> None:
    sys.stdout.write("\nSDXL, float16, 1024\n")
    for title, choices in CHOICES.items():
        rest = {key: value for key, value in choices.items() if key != "side"}
        row(title, "SDXL", FP16, choices.get("side", 1024), **rest)
