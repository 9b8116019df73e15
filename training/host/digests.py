"""What a text encoder or VAE is, told from its numbers.

Every number of a model of the usual size counts, through a checksum of each weight; of the largest
text encoders (over 2 GB) evenly spaced values of each weight stand for it, since reading them whole
would take longer than encoding a few captions. Patches (a LoRA on the CLIP) count as well, and the
weights as they were without them: a loaded model carries its patches in its weights.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from comfy.sdxl_clip import SDXLClipModel
from torch import Tensor, nn

from .tokens import tokenize

SAMPLES = 256
"""Evenly spaced values of each weight of a large model."""

READ_WHOLE = 2 << 30
"""Bytes; models larger than this are told by samples."""

SAMPLING_ONLY = (
    *("sampler_cfg_function", "sampler_post_cfg_function", "sampler_pre_cfg_function"),
    "disable_cfg1_optimization",
)
"""What nodes hang on a MODEL for its sampler; training never calls it."""

CALLED_IN_TRAINING = ("callbacks", "hook_patches", "additional_models", "attachments")
"""Where code of other nodes may lie that has no digest."""

PRECISION = "manual_cast_dtype"
"""The object patch that sets the type a model computes in: newer hosts give it to every CLIP."""

PROBE = "A photo, (of) 3 cats."
"""A text whose tokens show how a tokenizer cuts, pads and frames."""


def vae_digest(vae: Any) -> str | None:
    """Changes when the latents of a picture may change; None when that cannot be told."""
    patcher = getattr(vae, "patcher", None)
    if patcher is None or _opaque(patcher):
        return None
    facts = (
        _kind(vae),
        _kind(vae.first_stage_model),
        str(vae.vae_dtype),
        vae.latent_channels,
        vae.latent_dim,
        getattr(vae, "crop_input", True),
        getattr(vae, "not_video", False),
        getattr(vae, "downscale_index_formula", None),
    )
    return _digest(_parts(facts), _weights(patcher))


def clip_digest(clip: Any) -> str | None:
    """Changes when the conditioning of a caption may change.

    None when that cannot be told: another node has hung hooks or code of its own on the encoder, or
    keeps its weights where they cannot be read (GGUF).
    """
    patcher = clip.patcher
    hooks = (patcher.forced_hooks, clip.apply_hooks_to_conds)
    if hooks != (None, None) or _opaque(patcher, read=(PRECISION,)):
        return None
    model = clip.cond_stage_model
    facts = (
        _kind(model),
        _kind(clip.tokenizer),
        clip.layer_idx,
        str(patcher.object_patches.get(PRECISION)),
        sorted(clip.tokenizer_options.items()),
        tokenize(clip, PROBE),
        clip.tokenizer.state_dict(),  # vocabularies that came with the file
        [
            (name, module.options_default)
            for name, module in model.named_modules()
            if hasattr(module, "options_default")
        ],
    )
    return _digest(_parts(facts), _weights(patcher, _without_effect(model)))


def model_digest(patcher: Any) -> str | None:
    """Changes when a MODEL may answer otherwise; None when that cannot be told.

    Samplings that other nodes exchanged (ModelSamplingSD3, ModelSamplingDiscrete) are known.
    """
    functions = patcher.model_options.get("transformer_options", {})
    if _opaque(patcher, read=("model_sampling", PRECISION)) or _holds_anything(functions):
        return None
    if set(patcher.model_options) - {"transformer_options", *SAMPLING_ONLY}:
        return None
    if any(_holds_anything(getattr(patcher, name, None)) for name in CALLED_IN_TRAINING):
        return None
    sampling = patcher.get_model_object("model_sampling")
    facts = (
        _kind(patcher.model),
        _kind(patcher.model.diffusion_model),
        [_kind_name(kind) for kind in type(sampling).__mro__],
        sorted(
            (k, v) for k, v in vars(sampling).items() if isinstance(v, bool | int | float | str)
        ),
        sampling.sigmas,
        str(patcher.get_model_object(PRECISION)),
    )
    return _digest(_parts(facts), _weights(patcher))


def tokens_digest(tokens: Any) -> str:
    """Of what a tokenizer gives, the vectors of embedding files included."""
    return _digest(_parts(tokens))


def _without_effect(model: nn.Module) -> set[str]:
    """Weights that no conditioning depends on.

    CLIP-L's projection of the pooled output is in no file of SD1.5 or SDXL, so the host leaves it
    as the memory was; and it hands the pooled output on as it was before the projection (SD1.5,
    SD3, Flux), or drops it (SDXL).
    """
    dropped = {"clip_l"} if isinstance(model, SDXLClipModel) else set()
    return {
        f"{name}.transformer.text_projection.weight"
        for name, module in model.named_modules()
        if hasattr(module, "options_default")
        and (name in dropped or not module.options_default[2])  # return_projected_pooled
    }


def _opaque(patcher: Any, read: Collection[str] = ()) -> bool:
    """Whether a model has other nodes' code on it, or weights, that cannot be read.

    Args:
        read: object patches that the caller reads itself.
    """
    if set(patcher.object_patches) - set(read):
        return True
    if any(weight.is_meta for weight in patcher.model_state_dict().values()):
        return True
    names = ("weight_wrapper_patches", "injections", "wrappers")
    return any(_holds_anything(getattr(patcher, name, None)) for name in names)


def _holds_anything(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_anything(item) for item in value.values())
    return bool(value)


def _weights(patcher: Any, left_out: Collection[str] = ()) -> Iterator[bytes]:
    """Names, shapes, types and numbers of the unpatched weights, then of the patches."""
    weights = patcher.model_state_dict()
    size = sum(weight.numel() * weight.element_size() for weight in weights.values())
    for name, weight in sorted(weights.items()):
        if name in left_out:
            continue
        if name in patcher.backup:
            weight = patcher.backup[name].weight
        elif name in patcher.hook_backup:
            weight = patcher.hook_backup[name][0]
        yield name.encode()
        yield from _tensor(weight, whole=size <= READ_WHOLE)
    for name, patches in sorted(patcher.patches.items()):
        if name not in left_out:
            yield name.encode()
            yield from _parts(patches)


def _parts(value: Any) -> Iterator[bytes]:
    """Everything in a patch or setting that can change what it does."""
    if isinstance(value, Tensor):
        yield from _tensor(value)
    elif isinstance(value, list | tuple):
        yield f"{len(value)} in {type(value).__name__}".encode()
        for item in value:
            yield from _parts(item)
    elif isinstance(value, dict):
        yield f"{len(value)} in dict".encode()
        for item in sorted(value.items(), key=lambda item: str(item[0])):
            yield from _parts(item)
    elif hasattr(value, "weights"):  # a weight adapter: LoRA, LoHa, …
        yield _kind(value).encode()
        yield from _parts(value.weights)
    elif callable(value):
        yield getattr(value, "__qualname__", _kind(value)).encode()
    else:
        yield repr(value).encode()


@torch.no_grad()
def _tensor(tensor: Tensor, whole: bool = True) -> Iterator[bytes]:
    """Type, shape and numbers, whatever the storage."""
    if hasattr(tensor, "_qdata"):  # the host's quantised tensors
        yield from _parts(_scales(tensor))
        tensor = tensor._qdata
    tensor = tensor.detach().as_subclass(Tensor)
    yield f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    flat = tensor.reshape(-1)
    if not whole:
        flat = flat[:: max(1, flat.numel() // SAMPLES)]
    numbers = flat.contiguous().cpu().view(torch.uint8).numpy()
    yield zlib.crc32(numbers.data).to_bytes(4, "little") if whole else numbers.tobytes()


def _scales(quantised: Any) -> dict[str, Any]:
    """What gives the stored numbers their meaning: a dict, or an object in newer hosts."""
    params = getattr(quantised, "_layout_params", None)
    return vars(quantised._params) if params is None else params


def _kind(value: Any) -> str:
    return _kind_name(type(value))


def _kind_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _digest(*streams: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for stream in streams:
        for part in stream:
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
