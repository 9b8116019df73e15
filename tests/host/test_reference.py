"""Losses and gradients against an independent implementation: diffusers and peft.

The same weights go into diffusers' UNet2DConditionModel, through diffusers' own converter. Noise,
timesteps, latents and text are drawn here and given to both. The LoRA on the other side is peft's,
and its layers are found by their names in our file, which checks those names too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy_extras.nodes_model_advanced as host_sampling
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.training_utils import compute_snr
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from in_memory import PLACEMENT
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.network.build import NetworkSpec
from lora_atelier.training.objective.objective import (
    ObjectiveSpec,
    PredictionType,
    add_noise,
    sample_losses,
)
from lora_atelier.training.results.lora_file import SavePrecision, save_lora
from tiny_training import Parts, load_parts, normal, predicting, worked_network

TIMESTEPS = torch.tensor([3, 250, 610, 998])
LATENTS, NOISE = normal(1, 4, 4, 8, 8), normal(2, 4, 4, 8, 8)
TEXT = normal(3, 4, 77, 768)
CONDITIONING = [[TEXT[i : i + 1], {}] for i in range(4)]
PLACEMENTS = [PLACEMENT] * 4
UNWEIGHTED = ObjectiveSpec(min_snr_gamma=0)
TARGETS = ("proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
DDPM = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}
DDPM |= {"beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture
def unet(tiny_checkpoint: Path) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(320,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=8,  # diffusers' old name for the number of heads
    )
    weights = convert_ldm_unet_checkpoint(load_file(tiny_checkpoint), dict(unet.config))
    unet.load_state_dict(weights, strict=True)
    return unet.requires_grad_(False)


def reference_losses(unet: Any, kind: str = "epsilon") -> Tensor:
    """[B] mean squared errors, as a diffusers training script computes them."""
    scheduler = DDPMScheduler(**DDPM, prediction_type=kind)
    noisy = scheduler.add_noise(LATENTS, NOISE, TIMESTEPS)
    target = NOISE if kind == "epsilon" else scheduler.get_velocity(LATENTS, NOISE, TIMESTEPS)
    answer = unet(noisy, TIMESTEPS, TEXT).sample
    return torch.nn.functional.mse_loss(answer, target, reduction="none").mean((1, 2, 3))


def our_losses(model: Any, spec: ObjectiveSpec = UNWEIGHTED) -> Tensor:
    host_model = HostDiffusionModel(model)
    noised = add_noise(
        LATENTS, NOISE, host_model.schedule.sigmas[TIMESTEPS], host_model.schedule, spec
    )
    with predicting(host_model) as predict:
        return sample_losses(
            predict(noised.noisy_latents, noised.sigmas, CONDITIONING, PLACEMENTS), noised
        )


def with_sampling(model: Any, kind: str) -> Any:
    """The MODEL after the host's ModelSamplingDiscrete node."""
    with torch.inference_mode():
        return host_sampling.ModelSamplingDiscrete().patch(model, kind, zsnr=False)[0]


def with_flow_sampling(model: Any, shift: float) -> Any:
    """The MODEL after the host's ModelSamplingSD3 node."""
    with torch.inference_mode():
        return host_sampling.ModelSamplingSD3().patch(model, shift)[0]


def test_every_loss_equals_that_of_diffusers(parts: Parts, unet: Any) -> None:
    expected = reference_losses(unet)
    torch.testing.assert_close(our_losses(parts.model), expected, rtol=1e-5, atol=0)


def test_min_snr_losses_equal_the_formula_on_diffusers_snr(parts: Parts, unet: Any) -> None:
    snr = compute_snr(DDPMScheduler(**DDPM), TIMESTEPS)
    assert snr[0] > 5 > snr[-1]  # both branches of the minimum are taken
    expected = reference_losses(unet) * torch.minimum(snr, torch.tensor(5.0)) / snr
    losses = our_losses(parts.model, ObjectiveSpec(min_snr_gamma=5))
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)


def test_every_adapter_gradient_equals_that_of_peft(parts: Parts, unet: Any) -> None:
    spec = NetworkSpec(network_dim=4, network_alpha=6.0)
    host_model = HostDiffusionModel(parts.model)
    network = worked_network(host_model, spec)
    reference = get_peft_model(unet, LoraConfig(r=4, lora_alpha=6, target_modules=list(TARGETS)))
    layers = {
        f"lora_unet_{path.removeprefix('base_model.model.').replace('.', '_')}": module
        for path, module in reference.named_modules()
        if hasattr(module, "lora_A")
    }
    assert layers.keys() == network.keys()
    for name, layer in layers.items():
        layer.lora_A.default.weight.data.copy_(network[name].lora_down.weight)
        layer.lora_B.default.weight.data.copy_(network[name].lora_up.weight)

    expected = reference_losses(reference)
    expected.mean().backward()
    noised = add_noise(
        LATENTS, NOISE, host_model.schedule.sigmas[TIMESTEPS], host_model.schedule, UNWEIGHTED
    )
    with predicting(host_model, network) as predict:
        answer = predict(noised.noisy_latents, noised.sigmas, CONDITIONING, PLACEMENTS)
        losses = sample_losses(answer, noised)
        losses.mean().backward()

    torch.testing.assert_close(losses.detach(), expected.detach(), rtol=1e-5, atol=0)
    for name, layer in layers.items():
        pairs = (
            (network[name].lora_down.weight.grad, layer.lora_A.default.weight.grad),
            (network[name].lora_up.weight.grad, layer.lora_B.default.weight.grad),
        )
        for ours, theirs in pairs:
            assert theirs.norm() > 0
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm(), name


def test_a_v_model_trains_on_the_velocity_of_diffusers(parts: Parts, unet: Any) -> None:
    model = with_sampling(parts.model, "v_prediction")
    schedule = HostDiffusionModel(model).schedule
    assert schedule.prediction_type is PredictionType.V_PREDICTION
    target = add_noise(LATENTS, NOISE, schedule.sigmas[TIMESTEPS], schedule, UNWEIGHTED).target
    velocity = DDPMScheduler(**DDPM).get_velocity(LATENTS, NOISE, TIMESTEPS)
    torch.testing.assert_close(target, velocity, rtol=1e-5, atol=1e-5)
    expected = reference_losses(unet, "v_prediction")
    torch.testing.assert_close(our_losses(model), expected, rtol=1e-5, atol=0)


def test_min_snr_divides_by_one_more_for_a_v_model(parts: Parts, unet: Any) -> None:
    snr = compute_snr(DDPMScheduler(**DDPM), TIMESTEPS)
    weights = torch.minimum(snr, torch.tensor(5.0)) / (snr + 1)
    losses = our_losses(with_sampling(parts.model, "v_prediction"), ObjectiveSpec(5))
    expected = reference_losses(unet, "v_prediction") * weights
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)


def test_training_a_v_clone_leaves_the_eps_model_an_eps_model(parts: Parts) -> None:
    before = our_losses(parts.model)
    our_losses(with_sampling(parts.model, "v_prediction"))
    assert torch.equal(our_losses(parts.model), before)


def test_a_flow_model_is_noised_and_aimed_as_by_diffusers(parts: Parts) -> None:
    reference = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    schedule = HostDiffusionModel(with_flow_sampling(parts.model, shift=3.0)).schedule
    assert schedule.prediction_type is PredictionType.FLOW
    noised = add_noise(LATENTS, NOISE, schedule.sigmas[TIMESTEPS], schedule, ObjectiveSpec(5))
    # diffusers counts from the noisy end: its entry 0 is our timestep 999.
    entries = 999 - TIMESTEPS
    torch.testing.assert_close(noised.sigmas, reference.sigmas[entries], rtol=1e-6, atol=1e-7)
    scaled = reference.scale_noise(LATENTS, reference.timesteps[entries], NOISE)
    torch.testing.assert_close(noised.noisy_latents, scaled, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(noised.target, NOISE - LATENTS)
    assert torch.equal(noised.weights, torch.ones(4))  # min-SNR is not for flow


def test_a_flow_target_followed_by_diffusers_removes_the_noise(parts: Parts) -> None:
    reference = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    schedule = HostDiffusionModel(with_flow_sampling(parts.model, shift=3.0)).schedule
    noised = add_noise(
        LATENTS[:1], NOISE[:1], schedule.sigmas[TIMESTEPS[2:3]], schedule, UNWEIGHTED
    )
    sample = noised.noisy_latents
    for timestep in reference.timesteps[999 - int(TIMESTEPS[2]) : -1]:
        sample = reference.step(noised.target, timestep, sample).prev_sample
    almost_clean = reference.scale_noise(LATENTS[:1], reference.timesteps[-1:], NOISE[:1])
    torch.testing.assert_close(sample, almost_clean, rtol=0, atol=1e-4)


def test_a_flow_loss_equals_that_of_diffusers(parts: Parts, unet: Any) -> None:
    reference = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    entries = 999 - TIMESTEPS
    noisy = reference.scale_noise(LATENTS, reference.timesteps[entries], NOISE)
    answer = unet(noisy, reference.timesteps[entries], TEXT).sample
    expected = (answer - (NOISE - LATENTS)).square().mean((1, 2, 3))
    losses = our_losses(with_flow_sampling(parts.model, shift=3.0))
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)


def test_diffusers_loads_our_file_and_answers_as_the_training_did(
    parts: Parts, unet: Any, tmp_path: Path
) -> None:
    host_model = HostDiffusionModel(parts.model)
    network = worked_network(host_model, NetworkSpec(network_dim=4, network_alpha=6.0))
    file = tmp_path / "ours.safetensors"
    save_lora(file, network.state_dict(), SavePrecision.FLOAT)
    untouched = reference_losses(unet)

    loader = StableDiffusionLoraLoaderMixin
    tensors, alphas = loader.lora_state_dict(str(file), unet_config=unet.config)
    loader.load_lora_into_unet(tensors, alphas, unet)
    loaded = reference_losses(unet)

    noised = add_noise(
        LATENTS, NOISE, host_model.schedule.sigmas[TIMESTEPS], host_model.schedule, UNWEIGHTED
    )
    with predicting(host_model, network) as predict:
        answer = predict(noised.noisy_latents, noised.sigmas, CONDITIONING, PLACEMENTS)
        ours = sample_losses(answer, noised).detach()
    torch.testing.assert_close(loaded.detach(), ours, rtol=1e-4, atol=0)
    assert not torch.allclose(loaded, untouched, rtol=1e-3)
