"""The loss of a batch of each family against diffusers: its modules, its schedulers, its targets.

The same weights go into diffusers' module, by diffusers' own converters or by the tables in which
the host notes the names that diffusers gives. Latents, noise, noise levels and text are given to
both; what is noised, at which timestep and towards what is each one's own affair. Then each family
is trained wrong (`MISTAKES`), and each mistake has to be noticed.

Some are not as `families` has them. Flux and Chroma: diffusers has no MLP but one four times as
wide. Chroma: the host reads its modulation from a list as long as the real model's, which a model
with fewer blocks does not fill. Z-Image: its time embedding is 1024 wide in diffusers, and only at
some widths are both MLPs of one size. Lumina 2: fewer heads for keys than for queries, as in the
real model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import comfy.model_management as mm
import comfy.utils
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from diffusers import (
    AuraFlowTransformer2DModel,
    ChromaTransformer2DModel,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders.single_file_utils import (
    convert_auraflow_transformer_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
    convert_lumina2_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
    convert_wan_transformer_to_diffusers,
    convert_z_image_transformer_checkpoint_to_diffusers,
)
from torch import Tensor, nn

from families import FAMILIES, MORE_FAMILIES, Family
from lora_atelier.training.dataset.fit import Placement
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.objective.objective import ObjectiveSpec, add_noise, sample_losses
from mistakes import flipped, mistimed, shifted
from tiny_training import normal, predicting

TIMESTEPS = torch.tensor([250, 900])
TOLERANCE = 1e-4
"""Of an answer, whose numbers are of the order of one."""
NOTICED = 30 * TOLERANCE
CUT = Placement((640, 480), (96, 72), (16, 4), (64, 64))
SIZES = torch.tensor([[480.0, 640, 4, 16, 64, 64]] * 2)
"""Of a picture with that placement, in diffusers' order: height before width."""
GUIDANCE = 1.5
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

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
    betas: dict[str, Any] = field(default_factory=lambda: STABLE_DIFFUSION)
    """Of the others, where DDPMScheduler has others by itself."""


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


def places(side: int) -> Tensor:
    """[side², 3]: 0, row and column of each patch."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()


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

    def answer(x: Tensor, times: Tensor, text: Tensor, pooled: Tensor | None) -> Tensor:
        found = module(
            hidden_states=packed(x),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=times / 1000,
            guidance=torch.full((2,), GUIDANCE),
            img_ids=places(4),
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


def pixart(weights: Weights) -> Answer:
    module = PixArtTransformer2DModel(
        sample_size=64,  # of whose positions both count those of smaller pictures as parts
        num_layers=2,
        attention_head_dim=24,
        num_attention_heads=2,
        cross_attention_dim=48,
        caption_channels=48,
    )
    names = comfy.utils.pixart_to_diffusers(MORE_FAMILIES["pixart"].unet)
    del names["caption_projection.y_embedding"]  # the empty caption, which diffusers encodes itself
    module = loaded(module, named_by_host(names, weights))
    # The other half of its answer is the variance.
    return lambda x, times, text, pooled: module(x, text, times).sample.chunk(2, dim=1)[0]


def lumina(weights: Weights) -> Answer:
    module = Lumina2Transformer2DModel(
        hidden_size=64,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        axes_dim_rope=(8, 12, 12),
        cap_feat_dim=48,
    )
    names = {}
    for name, weight in weights.items():  # diffusers' converter splits them by the real widths only
        if "qkv" in name:
            parts = zip("qkv", weight.split([64, 32, 32]), strict=True)
            names |= {name.replace("qkv", f"to_{letter}"): part for letter, part in parts}
        else:
            names[name] = weight
    module = loaded(module, convert_lumina2_to_diffusers(names))

    def answer(x: Tensor, times: Tensor, text: Tensor, pooled: Tensor | None) -> Tensor:
        mask = torch.ones(text.shape[:2], dtype=torch.long)
        return -module(x, 1 - times / 1000, text, mask).sample

    return answer


def z_image(weights: Weights) -> Answer:
    module = ZImageTransformer2DModel(
        dim=1152,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=9,
        n_kv_heads=9,
        cap_feat_dim=48,
    )
    module = loaded(module, convert_z_image_transformer_checkpoint_to_diffusers(dict(weights)))

    def answer(x: Tensor, times: Tensor, text: Tensor, pooled: Tensor | None) -> Tensor:
        found = module(list(x.unsqueeze(2)), 1 - times / 1000, list(text)).sample
        return -torch.stack(found).squeeze(2)

    return answer


DISTILLED = {"in_layer": "linear_1", "out_layer": "linear_2", "scale": "weight"}


def chroma(weights: Weights) -> Answer:
    config = DEEP_CHROMA.unet
    module = ChromaTransformer2DModel(
        num_layers=config["depth"],
        num_single_layers=config["depth_single_blocks"],
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=48,
        axes_dims_rope=tuple(config["axes_dim"]),
        approximator_hidden_dim=32,
        approximator_layers=2,
    )
    names = named_by_host(comfy.utils.flux_to_diffusers(config), weights)
    for name, weight in weights.items():
        if name.startswith("distilled_guidance_layer."):
            names[re.sub("|".join(DISTILLED), lambda found: DISTILLED[found[0]], name)] = weight
    module = loaded(module, names)

    def answer(x: Tensor, times: Tensor, text: Tensor, pooled: Tensor | None) -> Tensor:
        found = module(
            hidden_states=packed(x),
            encoder_hidden_states=text,
            timestep=times / 1000,
            img_ids=places(4),
            txt_ids=torch.zeros(text.shape[1], 3),
        ).sample
        return unpacked(found, x.shape[-1])

    return answer


def changed(family: Family, **unet: Any) -> Family:
    return replace(family, unet={**family.unet, **unet})


WIDE_FLUX = replace(changed(FAMILIES["flux"], mlp_ratio=4.0), guidance=GUIDANCE)
DEEP_CHROMA = changed(FAMILIES["chroma"], mlp_ratio=4.0, depth=19, depth_single_blocks=38)
NARROW_LUMINA = changed(FAMILIES["lumina"], n_kv_heads=1)
WIDE_ZIMAGE = changed(MORE_FAMILIES["zimage"], dim=1152, n_layers=1, n_heads=9, n_kv_heads=9)
REFERENCES = {
    "sd2-v": Reference(MORE_FAMILIES["sd2-v"], sd2, "v_prediction"),
    "sdxl": Reference(FAMILIES["sdxl"], sdxl, "epsilon"),
    "sd3": Reference(FAMILIES["sd3"], sd3, shift=3.0),
    "flux": Reference(WIDE_FLUX, flux),
    "qwen": Reference(FAMILIES["qwen"], qwen),
    "wan": Reference(FAMILIES["wan"], wan, shift=8.0),
    "auraflow": Reference(MORE_FAMILIES["auraflow"], auraflow, shift=1.73),
    "pixart": Reference(MORE_FAMILIES["pixart"], pixart, "epsilon", betas={}),
    "lumina": Reference(NARROW_LUMINA, lumina, shift=6.0),
    "zimage": Reference(WIDE_ZIMAGE, z_image, shift=3.0),
    "chroma": Reference(DEEP_CHROMA, chroma),
}


def noised_by_diffusers(
    reference: Reference, latents: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy latents, timesteps and target, as its training scripts make them."""
    if reference.prediction != "flow":
        scheduler = DDPMScheduler(**reference.betas, prediction_type=reference.prediction)
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


Batch = tuple[Tensor, Tensor, Tensor]
"""Target, answer and losses [B]."""


@dataclass(frozen=True)
class Compared:
    """A batch of two pictures for the pack and for diffusers."""

    reference: Reference
    patcher: ModelPatcher

    @property
    def latents(self) -> Tensor:
        return normal(1, 2, *self.reference.family.latent)

    @property
    def noise(self) -> Tensor:
        return normal(2, 2, *self.reference.family.latent)

    @cached_property
    def expected(self) -> Batch:
        conditioning = self.reference.family.conditioning(2)
        text = torch.cat([embedding for embedding, _ in conditioning])
        pooled = None
        if self.reference.family.pooled:
            pooled = torch.cat([extras["pooled_output"] for _, extras in conditioning])
        parameters = self.patcher.model.diffusion_model.state_dict()
        weights = {name: weight.clone() for name, weight in parameters.items()}
        noisy, times, target = noised_by_diffusers(self.reference, self.latents, self.noise)
        answer = self.reference.answer(weights)(noisy, times, text, pooled)
        return target, answer, (answer - target).square().flatten(1).mean(1)

    def trained(self) -> Batch:
        family = self.reference.family
        spec = ObjectiveSpec(min_snr_gamma=0, guidance=family.guidance)
        model = HostDiffusionModel(self.patcher, spec)
        per_timestep = len(model.schedule.sigmas) // 1000
        is_flow = model.schedule.prediction_type.value == "flow"
        first = 1 if is_flow else 0  # flow's table begins at 1
        sigmas = model.schedule.sigmas[TIMESTEPS * per_timestep - first]
        noised = add_noise(self.latents, self.noise, sigmas, model.schedule, spec)
        with predicting(model) as predict:
            texts, cuts = family.conditioning(2), [CUT] * 2
            answer = predict(noised.noisy_latents, noised.sigmas, texts, cuts).detach()
        return noised.target, answer, sample_losses(answer, noised)


@cache
def compared(name: str) -> Compared:
    return Compared(REFERENCES[name], REFERENCES[name].family.patcher())


@pytest.fixture(autouse=True, scope="module")
def freed() -> Iterator[None]:
    """The host's models must not outlive its modules."""
    yield
    mm.unload_all_models()
    compared.cache_clear()


@pytest.mark.parametrize("name", REFERENCES)
def test_every_loss_equals_that_of_diffusers(name: str) -> None:
    target, answer, losses = compared(name).trained()
    its_target, its_answer, its_losses = compared(name).expected
    torch.testing.assert_close(target, its_target, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answer, its_answer, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(losses, its_losses, rtol=2e-5, atol=0)


MISTAKES = (flipped, shifted, mistimed)


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_mistake_is_noticed(
    name: str, mistake: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = compared(name).expected[1]
    mistake(monkeypatch)
    difference = compared(name).trained()[1] - expected
    assert float(difference.abs().max()) > NOTICED
