"""Pictures for a dataset, as CLIPTextEncode, KSampler and VAEDecode paint them, a batch at a time.

Each picture starts from the noise that KSampler gives its seed alone. Alone it is that picture to
the bit; in a batch to within rounding, and only where the sampler draws nothing as it goes. All
other samplers take one picture at a time, whatever the size of a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import comfy.sample
import torch
from comfy.cli_args import args
from torch import Tensor

from ..errors import require
from ..generate.plan import Base, GenerateSpec, Planned, batches
from .digests import SAMPLING_ONLY, clip_digest, model_digest, vae_digest
from .sampling import (
    decode_latents,
    encode_text,
    guided,
    require_encoders,
    sample_latents,
)

STEADY_SAMPLERS = frozenset(
    {
        *("euler", "euler_cfg_pp", "heun", "heunpp2", "dpm_2", "lms", "ddim"),
        *("dpmpp_2m", "dpmpp_2m_cfg_pp", "ipndm", "ipndm_v", "deis", "uni_pc", "uni_pc_bh2"),
        *("res_multistep", "res_multistep_cfg_pp", "gradient_estimation"),
        "gradient_estimation_cfg_pp",
    }
)
"""They draw no noise as they go, and treat every picture of a batch by itself."""

HELD_TEXTS = 256 << 20
"""Bytes of encoded prompts that are held at once."""


class Models(NamedTuple):
    """Of the graph."""

    model: Any
    clip: Any
    vae: Any


def base_of(models: Models, latent: Tensor, name: str) -> Base:
    """What is painted with.

    Args:
        latent: as of :func:`empty_latent`.
        name: of the file; "" when it is not known.

    Raises:
        AtelierError: there is no text encoder or no VAE.
    """
    require_encoders(models.clip, models.vae)
    shape = comfy.sample.fix_empty_latent_channels(models.model, latent).shape
    kind = type(models.model.model.model_config).__name__
    return Base(name or kind, _digest(models), tuple(shape[1:]))


def empty_latent(latent: dict[str, Any]) -> tuple[Tensor, int]:
    """One empty latent, and how many of them came.

    Raises:
        AtelierError: something is in it.
    """
    samples = latent["samples"]
    plain = isinstance(samples, Tensor) and not getattr(samples, "is_nested", False)
    require(
        plain and "noise_mask" not in latent and not samples.any(),
        "latent_image is not empty: pictures are painted from noise alone. Wire Empty Latent Image "
        "(or the empty latent of your model), which sets the size and the size of a batch.",
    )
    return samples[:1], len(samples)


def paint(
    models: Models,
    latent: Tensor,
    spec: GenerateSpec,
    pictures: Sequence[Planned],
    batch_size: int,
    tick: Callable[[int], None],
) -> Iterator[list[tuple[Planned, Tensor]]]:
    """Batches of finished pictures, each [H, W, 3], 0..1.

    Args:
        latent: one empty latent.
        tick: called after every step of the sampler with the number of pictures that took it, and
            after every prompt that was encoded with 0; may raise to end the work.
    """
    negative = encode_text(models.clip, spec.negative)
    most = batch_size if spec.sampler_name in STEADY_SAMPLERS else 1
    waiting = list(pictures)
    while waiting:
        positives = _encode_some(models.clip, (picture.prompt.text for picture in waiting), tick)
        now = [picture for picture in waiting if picture.prompt.text in positives]
        waiting = [picture for picture in waiting if picture.prompt.text not in positives]
        for run in batches(now, most):
            for batch, positive in _alike(run, positives):
                seeds = [picture.seed for picture in batch]
                latents = sample_latents(
                    models.model,
                    latent,
                    seeds,
                    spec,
                    guided(positive, spec.guidance),
                    negative,
                    partial(tick, len(batch)),
                )
                images = decode_latents(models.model.load_device, models.vae, latents, seeds[0])
                yield list(zip(batch, images, strict=True))


def may_write_metadata() -> bool:
    """Whether pictures may tell what they were made with (``--disable-metadata``)."""
    return not args.disable_metadata


def _digest(models: Models) -> str | None:
    model = models.model
    if any(model.model_options.get(name) for name in SAMPLING_ONLY):
        return None  # code of other nodes: it has no digest
    parts = (model_digest(model), clip_digest(models.clip), vae_digest(models.vae))
    if any(part is None for part in parts):
        return None
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _encode_some(clip: Any, texts: Iterable[str], tick: Callable[[int], None]) -> dict[str, list]:
    """Each text once, as many as may be held; at least one."""
    found: dict[str, list] = {}
    held = 0
    for text in texts:
        if text in found:
            continue
        if held >= HELD_TEXTS:
            break
        found[text] = encode_text(clip, text)
        held += sum(embedding.nbytes for embedding, _ in found[text])
        tick(0)  # Cancel: hundreds of prompts take minutes on a CPU
    return found


def _alike(
    run: Sequence[Planned], positives: dict[str, list]
) -> Iterator[tuple[Sequence[Planned], list]]:
    """A run with the conditioning of all; one by one where the prompts do not fit together."""
    together = _stacked([positives[picture.prompt.text] for picture in run])
    if together is not None:
        yield run, together
        return
    for picture in run:
        yield [picture], positives[picture.prompt.text]


def _stacked(conditionings: Sequence[list]) -> list | None:
    """Conditionings of one entry each as one of a batch; None where they cannot be told apart in
    it (other lengths, other extras, or a mask: of a batch of masks the host counts the tokens of
    all together, and gives them to each picture)."""
    if len(conditionings) == 1:
        return conditionings[0]
    if any(len(conditioning) != 1 for conditioning in conditionings):
        return None
    embeddings, extras = zip(*(conditioning[0] for conditioning in conditionings), strict=True)
    if "attention_mask" in extras[0]:
        return None
    if any(extra.keys() != extras[0].keys() for extra in extras):
        return None
    values = {name: _joined([extra[name] for extra in extras]) for name in extras[0]}
    embedding = _joined(embeddings)
    if embedding is None or any(
        value is None and extras[0][n] is not None for n, value in values.items()
    ):
        return None
    return [[embedding, values]]


def _joined(values: Sequence[Any]) -> Any:
    """Tensors of one shape along their batch, anything else if all are equal; else None."""
    if all(isinstance(value, Tensor) for value in values):
        alike = all(value.shape == values[0].shape and len(value) == 1 for value in values)
        return torch.cat(list(values)) if alike else None
    if any(isinstance(value, Tensor) for value in values):
        return None
    return values[0] if all(value == values[0] for value in values) else None
