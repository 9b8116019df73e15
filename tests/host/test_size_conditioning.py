"""SDXL is told how each picture was scaled and cut, in the order in which diffusers tells it.

The model is the host's own SDXL class around a UNet of a few channels: sizes reach the UNet as the
vector `y`, whose layout does not depend on the width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.model_base
import comfy.supported_models
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from diffusers.models.embeddings import Timesteps
from torch import Tensor

from lora_atelier.training.dataset.fit import FitOptions, Placement, Variant, place
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from tiny_training import normal, predicting

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "transformer_depth": [0, 1],
    "transformer_depth_output": [0, 0, 1, 1],
    "transformer_depth_middle": 1,
    "channel_mult": [1, 2],
    "num_head_channels": 16,
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "context_dim": 2048,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "legacy": False,
    "dtype": torch.float32,
}
TEXT, POOLED = normal(1, 2, 77, 2048), normal(2, 2, 1280)
CONDITIONING = [[TEXT[i : i + 1], {"pooled_output": POOLED[i : i + 1]}] for i in range(2)]
CUT = place((640, 427), FitOptions((512,)), Variant(0), "a.jpg")
MIRRORED = Placement((300, 900), (352, 1056), (10, 40), (320, 960), flip=True)


@pytest.fixture(scope="module")
def model() -> HostDiffusionModel:
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(5)
        config = comfy.supported_models.SDXL(UNET)
        base = comfy.model_base.SDXL(config)
        for parameter in base.parameters():  # the host leaves them as the memory was
            fan_in = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
            parameter.copy_(torch.randn_like(parameter) / fan_in**0.5)
    cpu = torch.device("cpu")
    return HostDiffusionModel(ModelPatcher(base, load_device=cpu, offload_device=cpu))


@pytest.fixture
def told(model: HostDiffusionModel) -> Iterator[list[Tensor]]:
    """Every `y` that the UNet was given."""
    seen: list[Tensor] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["y"].detach().clone())

    unet = model.patcher.model.diffusion_model
    with_look = unet.register_forward_pre_hook(look, with_kwargs=True)
    yield seen
    with_look.remove()


def predict(model: HostDiffusionModel, placements: list[Placement]) -> Tensor:
    with predicting(model) as answer:
        x, sigmas = normal(3, 2, 4, 8, 8), torch.tensor([0.5, 3.0])
        return answer(x, sigmas, CONDITIONING, placements).detach()


def diffusers_vector(placement: Placement, pooled: Tensor) -> Tensor:
    """original (h, w), crop (top, left), target (h, w), as diffusers' SDXL training embeds them."""
    time_ids = (placement.original[::-1], placement.crop[::-1], placement.size[::-1])
    numbers = torch.tensor([n for pair in time_ids for n in pair], dtype=torch.float32)
    embed = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
    return torch.cat([pooled, embed(numbers).flatten()])


def test_every_picture_of_a_batch_is_told_its_own_sizes(
    model: HostDiffusionModel, told: list[Tensor]
) -> None:
    assert CUT.crop != (0, 0) and CUT.size != CUT.original
    predict(model, [CUT, MIRRORED])
    expected = [diffusers_vector(p, POOLED[i]) for i, p in enumerate((CUT, MIRRORED))]
    torch.testing.assert_close(torch.cat(told), torch.stack(expected), rtol=0, atol=2e-4)


def test_the_sizes_change_the_prediction(model: HostDiffusionModel) -> None:
    one, other = predict(model, [CUT, MIRRORED]), predict(model, [CUT, CUT])
    torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-5)
    assert (one[1] - other[1]).norm() > 1e-3 * one[1].norm()
