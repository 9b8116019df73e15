"""The loss of a batch of each family against diffusers: its modules, its schedulers, its targets.

The same weights go into diffusers' module, by diffusers' own converters or by the tables in which
the host notes the names that diffusers gives. Latents, noise, noise levels and text are given to
both; what is noised, at which timestep and towards what is each one's own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.utils
import pytest
import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)
from diffusers.loaders.single_file_utils import (
    convert_auraflow_transformer_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
    convert_wan_transformer_to_diffusers,
)
from torch import Tensor, nn

from families import FAMILIES, MORE_FAMILIES, Family
from lora_atelier.training.dataset.fit import Placement
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.objective.objective import ObjectiveSpec, add_noise, sample_losses
from tiny_training import normal, predicting

TIMESTEPS = torch.tensor([250, 900])
CUT = Placement((640, 480), (96, 72), (16, 4), (64, 64))
SIZES = torch.tensor([[480.0, 640, 4, 16, 64, 64]] * 2)
"""Of a picture with that placement, in diffusers' order: height before width."""
GUIDANCE = 1.5
DDPM = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear"}
DDPM |= {"beta_start": 0.00085, "beta_end": 0.012}

Weights = Mapping[str, Tensor]
Answer = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""``answer(noisy latents, timesteps 0..1000, text, pooled text)``."""


@dataclass(frozen=True)
class Reference:
    """A family in diffusers."""

    family: Family
    answer: Callable[[Weights], Answer]
    prediction: str = "flow"
    shift: float = 0.0
    """Of flow models; 0 = by an exponent of 1.15, as Flux is shifted for large pictures."""


def named_by_host(mapping: Mapping[str, Any], weights: Weights) -> dict[str, Tensor]:
    """Weights under diffusers' names; an entry is the host's name, or that, a part and a change."""
    found = {}
    for name, source in mapping.items():
        key, part, change = (
            (*source, None)[:3] if isinstance(source, tuple) else (source, None, None)
        )
        if key in weights:
            weight = weights[key] if part is None else weights[key].narrow(*part)
            found[name] = weight if change is None else change(weight)
    return found


def loaded(module: nn.Module, weights: Weights) -> nn.Module:
    module.load_state_dict(weights, strict=True)
    return module.requires_grad_(False).eval()


def unet(weights: Weights, **more: Any) -> UNet2DConditionModel:
    module = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=2,
        cross_attention_dim=48,
        attention_head_dim=1,  # diffusers' old name for the number of heads
        use_linear_projection=True,
        **more,
    )
    names = {f"model.diffusion_model.{name}": weight for name, weight in weights.items()}
    return loaded(module, convert_ldm_unet_checkpoint(names, dict(module.config)))


def sd2(weights: Weights) -> Answer:
    module = unet(weights)
    return lambda x, times, text, pooled: module(x, times, text).sample


def sdxl(weights: Weights) -> Answer:
    module = unet(
        weights,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )

    def answer(x: Tensor, times: Tensor, text: Tensor, pooled: Tensor | None) -> Tensor:
        added = {"text_embeds": pooled, "time_ids": SIZES}
        return module(x, times, text, added_cond_kwargs=added).sample

    return answer


def sd3(weights: Weights) -> Answer:
    module = SD3Transformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=128,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    module = loaded(module, convert_sd3_transformer_checkpoint_to_diffusers(dict(weights)))
    return lambda x, times, text, pooled: module(x, text, pooled, times).sample


def packed(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H/2 · W/2, 4 C], as diffusers' pipelines pack latents."""
    batch, channels, height, width = x.shape
    parts = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return parts.reshape(batch, height * width // 4, 4 * channels)


def unpacked(x: Tensor, side: int) -> Tensor:
    parts = x.view(len(x), side // 2, side // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return parts.reshape(len(x), -1, side, side)


def flux(weights: Weights) -> Answer:
    config = WIDE_FLUX.unet
    module = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=48,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=tuple(config["axes_dim"]),
    )
    module = loaded(module, named_by_host(comfy.utils.flux_to_diffusers(config), weights))
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    places = torch.stack([torch.zeros(16), rows.flatten(), columns.flatten()], dim=1)

    def answer(x: Tensor, times: Tensor, text: Tensor, pooled: Tensor | None) -> Tensor:
        found = module(
            hidden_states=packed(x),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=times / 1000,
            guidance=torch.full((2,), GUIDANCE),
            img_ids=places,
            txt_ids=torch.zeros(text.shape[1], 3),
        ).sample
        return unpacked(found, x.shape[-1])

    return answer


def qwen(weights: Weights) -> Answer:
    module = QwenImageTransformer2DModel(
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=48,
        axes_dims_rope=(8, 12, 12),
    )
    module = loaded(module, weights)

    def answer(x: Tensor, times: Tensor, text: Tensor, pooled: Tensor | None) -> Tensor:
        found = module(
            hidden_states=packed(x[:, :, 0]),
            timestep=times / 1000,
            encoder_hidden_states=text,
            encoder_hidden_states_mask=None,
            img_shapes=[[(1, 4, 4)]] * 2,
        ).sample
        return unpacked(found, x.shape[-1]).unsqueeze(2)

    return answer


def wan(weights: Weights) -> Answer:
    module = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        text_dim=48,
        freq_dim=32,
        ffn_dim=128,
        num_layers=2,
        cross_attn_norm=True,
    )
    module = loaded(module, convert_wan_transformer_to_diffusers(dict(weights)))
    return lambda x, times, text, pooled: module(x, times, text).sample


def auraflow(weights: Weights) -> Answer:
    module = AuraFlowTransformer2DModel(
        sample_size=16,
        num_mmdit_layers=1,
        num_single_dit_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=64,
        pos_embed_max_size=64,
    )
    module = loaded(module, convert_auraflow_transformer_checkpoint_to_diffusers(dict(weights)))
    return lambda x, times, text, pooled: module(x, text, times / 1000).sample


WIDE_FLUX = replace(
    FAMILIES["flux"], unet={**FAMILIES["flux"].unet, "mlp_ratio": 4.0}, guidance=GUIDANCE
)  # diffusers has no other ratio
REFERENCES = {
    "sd2-v": Reference(MORE_FAMILIES["sd2-v"], sd2, "v_prediction"),
    "sdxl": Reference(FAMILIES["sdxl"], sdxl, "epsilon"),
    "sd3": Reference(FAMILIES["sd3"], sd3, shift=3.0),
    "flux": Reference(WIDE_FLUX, flux),
    "qwen": Reference(FAMILIES["qwen"], qwen),
    "wan": Reference(FAMILIES["wan"], wan, shift=8.0),
    "auraflow": Reference(MORE_FAMILIES["auraflow"], auraflow, shift=1.73),
}


def noised_by_diffusers(
    reference: Reference, latents: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, timesteps and target, as its training scripts make them."""
    if reference.prediction != "flow":
        scheduler = DDPMScheduler(**DDPM, prediction_type=reference.prediction)
        noisy = scheduler.add_noise(latents, noise, TIMESTEPS)
        if reference.prediction == "epsilon":
            return noisy, TIMESTEPS, noise
        return noisy, TIMESTEPS, scheduler.get_velocity(latents, noise, TIMESTEPS)
    is_dynamic = reference.shift == 0
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=1.0 if is_dynamic else reference.shift, use_dynamic_shifting=is_dynamic
    )
    levels = (TIMESTEPS.flip(0) / 1000).tolist()  # it counts from the noisy end
    scheduler.set_timesteps(sigmas=levels, mu=1.15 if is_dynamic else None)
    times = scheduler.timesteps.flip(0)
    return scheduler.scale_noise(latents, times, noise), times, noise - latents


@pytest.mark.parametrize("name", REFERENCES)
def test_every_loss_equals_that_of_diffusers(name: str) -> None:
    reference = REFERENCES[name]
    family = reference.family
    patcher = family.patcher()
    latents, noise = normal(1, 2, *family.latent), normal(2, 2, *family.latent)
    conditioning = family.conditioning(2)
    text = torch.cat([embedding for embedding, _ in conditioning])
    pooled = None
    if family.pooled:
        pooled = torch.cat([extras["pooled_output"] for _, extras in conditioning])

    weights = {n: w.clone() for n, w in patcher.model.diffusion_model.state_dict().items()}
    noisy, times, target = noised_by_diffusers(reference, latents, noise)
    answer = reference.answer(weights)(noisy, times, text, pooled)
    expected = (answer - target).square().flatten(1).mean(1)

    spec = ObjectiveSpec(min_snr_gamma=0, guidance=family.guidance)
    model = HostDiffusionModel(patcher, spec)
    per_timestep = len(model.schedule.sigmas) // 1000
    first = 0 if model.schedule.prediction_type.value != "flow" else 1  # flow's table begins at 1
    sigmas = model.schedule.sigmas[TIMESTEPS * per_timestep - first]
    noised = add_noise(latents, noise, sigmas, model.schedule, spec)
    with predicting(model) as predict:
        found = predict(noised.noisy_latents, noised.sigmas, conditioning, [CUT] * 2).detach()
    torch.testing.assert_close(noised.target, target, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, answer, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sample_losses(found, noised), expected, rtol=1e-5, atol=0)
