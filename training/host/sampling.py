"""Pictures through ComfyUI's own text encoding, sampler and VAE, as its nodes would draw them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ..errors import require
from ..random_streams import global_stream
from ..results.preview_spec import PreviewSpec

Tick = Callable[[], None]
"""Called after every step of the sampler; may raise to end the work."""


class SamplerSettings(Protocol):
    """Widgets of KSampler."""

    steps: int
    cfg: float
    sampler_name: str
    scheduler: str


class Preview(NamedTuple):
    """One picture."""

    prompt: int
    """Index into the prompts."""
    seed: int
    image: Tensor
    """[1, H, W, 3] float32, 0..1."""


def sampler_names() -> list[str]:
    """What KSampler offers on this host."""
    return list(comfy.samplers.KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    """What KSampler offers on this host."""
    return list(comfy.samplers.KSampler.SCHEDULERS)


def sample_previews(
    model: Any, clip: Any, vae: Any, spec: PreviewSpec, tick: Tick
) -> Iterator[Preview]:
    """Every prompt with every seed, equal to CLIPTextEncode, KSampler and VAEDecode.

    All are sampled before the first is decoded: where memory is scarce, diffusion model and VAE
    take each other's place once and not for every picture.

    Args:
        model, clip: with whatever is to be seen on them, as ordinary patches.

    Raises:
        AtelierError: there is no text encoder or no VAE.
    """
    require_encoders(clip, vae)
    texts = dict.fromkeys([*spec.prompts, spec.negative])
    conditionings = {text: encode_text(clip, text) for text in texts}
    latents = []
    for prompt, seed in spec.columns:
        positive = guided(conditionings[spec.prompts[prompt]], spec.guidance)
        negative = conditionings[spec.negative]
        empty = empty_latent(vae, spec)
        latents.append(sample_latents(model, empty, [seed], spec, positive, negative, tick))
    for (prompt, seed), latent in zip(spec.columns, latents, strict=True):
        yield Preview(prompt, seed, decode_latents(model.load_device, vae, latent, seed))


def require_encoders(clip: Any, vae: Any) -> None:
    """Refuse a checkpoint without one of them.

    Raises:
        AtelierError: there is no text encoder or no VAE.
    """
    require(clip is not None, "clip: there is no text encoder, so no prompt can be read.")
    has_vae = getattr(vae, "first_stage_model", vae) is not None  # the host may give an empty one
    require(has_vae, "vae: there is no VAE, so no picture can be decoded.")


def free_memory() -> None:
    """Take every model from the device, and its patches out of its weights."""
    mm.unload_all_models()
    mm.soft_empty_cache()


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether it is what the device raises when a tensor does not fit."""
    return isinstance(error, mm.OOM_EXCEPTION)


@torch.inference_mode()  # as nodes run
def encode_text(clip: Any, text: str) -> list:
    """As CLIPTextEncode: brackets are weights."""
    with global_stream(clip.patcher.load_device, 0, "preview text"):
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def guided(conditioning: list, guidance: float) -> list:
    """As the node FluxGuidance; 0 leaves it to the model."""
    if guidance == 0:
        return conditioning
    return [[embedding, {**extras, "guidance": guidance}] for embedding, extras in conditioning]


@torch.inference_mode()
def sample_latents(
    model: Any,
    empty: Tensor,
    seeds: Sequence[int],
    settings: SamplerSettings,
    positive: list,
    negative: list,
    tick: Tick,
) -> Tensor:
    """KSampler's latents, one for each seed, from the noise that it gives alone.

    Args:
        empty: [1, ...], as EmptyLatentImage.
        positive: conditioning of all, or a batch of as many.
    """
    # The host seeds torch's global streams with the picture's seed, and samplers draw from them.
    with global_stream(model.load_device, seeds[0], "preview"):
        latent = comfy.sample.fix_empty_latent_channels(model, empty)
        noise = torch.cat([comfy.sample.prepare_noise(latent, seed) for seed in seeds])
        return comfy.sample.sample(
            model,
            noise,
            settings.steps,
            settings.cfg,
            settings.sampler_name,
            settings.scheduler,
            positive,
            negative,
            latent.expand_as(noise).clone(),
            denoise=1.0,
            callback=lambda step, x0, x, total: tick(),
            disable_pbar=True,
            seed=seeds[0],
        )


def empty_latent(vae: Any, spec: PreviewSpec) -> Tensor:
    """As EmptyLatentImage, in the VAE's own steps; the host gives it the model's channels."""
    steps = getattr(vae, "spacial_compression_encode", lambda: 8)()
    height, width = spec.height // steps, spec.width // steps
    return torch.zeros([1, 4, height, width], device=mm.intermediate_device())


@torch.inference_mode()
def decode_latents(device: torch.device, vae: Any, latents: Tensor, seed: int) -> Tensor:
    """[B, H, W, 3]: of what video models draw, the first picture of each."""
    with global_stream(device, seed, "preview"):
        images = vae.decode(latents)
    return images.reshape(len(latents), -1, *images.shape[-3:])[:, 0]
