"""Number formats on the host's own models: which are refused, and adapters stored narrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management as mm
import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from host_configs import flux_config
from lora_atelier.training.base_model.precision import MixedPrecision
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.diffusion_model import HostDiffusionModel, parameter_count
from lora_atelier.training.network.build import Algorithm, NetworkSpec
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.runs.adapter_precision import AdapterPrecision
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingState, start
from tiny_training import CAPTIONS, Parts, Recorder, encode, load_parts, make_run, quick_spec

FLUX = flux_config(
    image_model="flux",
    **{"in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096},
    **{"hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "axes_dim": [16, 56, 56]},
    **{"theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": True},
)
NARROW = [AdapterPrecision.BF16_STOCHASTIC, AdapterPrecision.BF16_KAHAN]


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def encoded(parts: Parts) -> dict[str, Any]:
    return encode(parts.clip, CAPTIONS)


def flux(blocks: int, dtype: torch.dtype, load_device: str) -> HostDiffusionModel:
    """Flux without its weights; with 19 and 38 blocks it is the real one."""
    config = comfy.supported_models.Flux({**FLUX, "depth": blocks, "depth_single_blocks": 38})
    config.set_inference_dtype(dtype, None)
    with torch.inference_mode():
        base = comfy.model_base.Flux(config, device=torch.device("meta"))
    device = torch.device(load_device)
    return HostDiffusionModel(ModelPatcher(base, load_device=device, offload_device=device))


def test_fp16_is_refused_for_ten_billion_parameters_and_more() -> None:
    real, smaller = (flux(n, torch.float16, "cuda") for n in (19, 10))
    count, less = (parameter_count(m.patcher.model.diffusion_model) for m in (real, smaller))
    everything = sum(p.numel() for p in real.patcher.model.diffusion_model.parameters())
    assert count == pytest.approx(everything, rel=1e-3) and count > 10e9 > less
    message = r"mixed_precision is fp16, but this model has 11\.9 B .* Choose bf16, or auto"
    with pytest.raises(AtelierError, match=message):
        real.compute_dtype(MixedPrecision.FP16)
    assert smaller.compute_dtype(MixedPrecision.FP16) is torch.float16
    assert real.compute_dtype(MixedPrecision.BF16) is torch.bfloat16


def test_auto_never_takes_fp16_for_them() -> None:
    if mm.should_use_bf16(torch.device("cuda"), manual_cast=True):
        large = smaller = torch.bfloat16
    else:
        large, smaller = torch.float32, torch.float16
    assert flux(10, torch.float16, "cuda").compute_dtype(MixedPrecision.AUTO) is smaller
    assert flux(19, torch.float16, "cuda").compute_dtype(MixedPrecision.AUTO) is large
    assert flux(19, torch.bfloat16, "cuda").compute_dtype(MixedPrecision.AUTO) is torch.bfloat16


@pytest.mark.parametrize("precision", NARROW)
@pytest.mark.parametrize(
    ("network", "compute"),
    [
        (NetworkSpec(4, 2.0, conv_dim=2), MixedPrecision.BF16),
        (NetworkSpec(4, 2.0, Algorithm.DORA), MixedPrecision.NO),
    ],
    ids=["locon in bf16", "dora in fp32"],
)
def test_narrow_adapters_learn_on_the_hosts_model_what_wide_ones_learn(
    parts: Parts,
    encoded: dict[str, Any],
    precision: AdapterPrecision,
    network: NetworkSpec,
    compute: MixedPrecision,
) -> None:
    def trained(adapter_precision: AdapterPrecision) -> TrainingState:
        spec = quick_spec(
            train_batch_size=4,
            network=network,
            mixed_precision=compute,
            adapter_precision=adapter_precision,
        )
        with torch.inference_mode():
            return train(start(make_run(parts.model, encoded, spec)), 4, Recorder())

    exact, state = trained(AdapterPrecision.FP32), trained(precision)
    losses = [[record.loss for record in s.history] for s in (exact, state)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0] != losses[1]
    ups = [key for key in exact.network if key.endswith("lora_up.weight")]
    one, other = (torch.cat([s.network[k].flatten() for k in ups]) for s in (exact, state))
    assert float(torch.cosine_similarity(one, other, dim=0)) > 0.9


def test_four_passes_of_one_picture_are_one_pass_of_four(
    parts: Parts, encoded: dict[str, Any]
) -> None:
    """AdamW's first moment, with nothing remembered, is the gradient of the last step."""

    def gradients(**sizes: int) -> list[Tensor]:
        optimizer = OptimizerSpec(unet_lr=1e-3, betas="0.0, 0.999", max_grad_norm=0)
        spec = quick_spec(optimizer=optimizer, network=NetworkSpec(4, 2.0, conv_dim=2), **sizes)
        with torch.inference_mode():
            state = train(start(make_run(parts.model, encoded, spec)), 2, Recorder())
        return [moment["exp_avg"] for moment in state.optimizer["optimizer"]["state"].values()]

    together = torch.cat([g.flatten() for g in gradients(train_batch_size=4)])
    apart = torch.cat([g.flatten() for g in gradients(gradient_accumulation_steps=4)])
    assert float((together - apart).norm() / together.norm()) < 1e-5
