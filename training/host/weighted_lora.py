"""A LoRA on the MODEL and CLIP of the graph, with a factor for each block.

What is put there are the patches that LoraLoader puts there (comfy/sd.py ``load_lora_for_models``),
with ``strength × factor`` for their strength.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.lora_convert
from torch import Tensor, nn

from ..base_model.frozen import is_frozen_layer
from ..errors import require
from ..network.adapters.base import weight_shape
from ..network.existing_lora import of_text_encoder
from ..network.targets import UNET_TRANSFORMERS, block_of
from ..results.block_weights import Blocks, BlockWeights, short_name
from ..results.lora_formats import key_parts

PREFIX = "diffusion_model."


@dataclass(frozen=True, eq=False)
class AppliedLora:
    """Clones with patches; the models that came in stay as they are."""

    model: Any
    clip: Any
    notes: tuple[str, ...]


def apply_weighted(
    model: Any,
    clip: Any,
    lora: Mapping[str, Tensor],
    strengths: tuple[float, float],
    weights: BlockWeights,
) -> AppliedLora:
    """Put the LoRA on the models.

    Args:
        clip: None = layers of text encoders are left out.
        strengths: of MODEL and of CLIP.

    Raises:
        AtelierError: no layer of the LoRA is in these models, or ``weights`` do not fit them.
    """
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    tensors = comfy.lora_convert.convert_lora(dict(lora))
    loaded = comfy.lora.load_lora(tensors, names, log_missing=False)
    blocks = model_blocks(model, clip)
    factors = weights.factors(blocks)
    by_factor: dict[float, dict[Any, Any]] = defaultdict(dict)
    changed: Counter[str] = Counter()
    for target, patch in loaded.items():
        part = _part_of(target, model, clip)
        by_factor[factors[part]][target] = patch
        changed[part] += 1
    new_model, new_clip = model.clone(), None if clip is None else clip.clone()
    missing = set(loaded)
    for factor, patches in by_factor.items():
        missing -= set(new_model.add_patches(patches, strengths[0] * factor))
        if new_clip is not None:
            missing -= set(new_clip.add_patches(patches, strengths[1] * factor))
    lost = lost_layers(tensors, names) + [_key(target) for target in missing]
    has_texts = clip is None and any(map(of_text_encoder, tensors))
    require(
        len(loaded) > len(missing),
        "lora: no layer of it is in this model: it was made for another one"
        f"{', or for its text encoder: wire clip' if has_texts else ''}. Its first key is "
        f"{next(iter(lora), 'missing: it is empty')}.",
    )
    notes = [
        f"{_layers(changed)} changed",
        *_about_lost(lost, clip),
        *_about_sizes(wrong_sizes(loaded, model, clip)),
        *_about_factors(changed, factors),
    ]
    return AppliedLora(new_model, new_clip, tuple(notes))


def model_blocks(model: Any, clip: Any) -> Blocks:
    """The parts of these models that can have a factor."""
    inner = model.model.diffusion_model
    state = [key.removeprefix(PREFIX) for key in model.model.state_dict() if key.startswith(PREFIX)]
    parts = tuple(dict.fromkeys(block_of(inner, path) for path in state))
    names = tuple(part for part in parts if "." in part or part == "middle_block")
    transformers = {
        block_of(inner, path)
        for path, module in inner.named_modules()
        if type(module).__name__ in UNET_TRANSFORMERS
    }
    encoders = () if clip is None else tuple(n for n, _ in clip.cond_stage_model.named_children())
    return Blocks(
        names,
        tuple(name for name in names if name in transformers) or names,
        tuple(part for part in parts if part not in names),
        encoders,
    )


def _part_of(target: Any, model: Any, clip: Any) -> str:
    """The block, or the text encoder, that a key of the host's belongs to."""
    key = _key(target)
    if key.startswith(PREFIX):
        return block_of(model.model.diffusion_model, key.removeprefix(PREFIX))
    return key.partition(".")[0]


def _key(target: Any) -> str:
    """Of a weight, or of some rows of it."""
    return target[0] if isinstance(target, tuple) else target


def lost_layers(tensors: Mapping[str, Tensor], names: Mapping[str, Any]) -> list[str]:
    """Layers that the host does not look for."""
    stems = {key_parts(key)[0] or key for key in tensors}
    return sorted(stem for stem in stems if not _is_known(stem, names))


def _is_known(stem: str, names: Mapping[str, Any]) -> bool:
    """Also where the ending has a name that only the host knows."""
    while stem not in names and "." in stem:
        stem = stem.rpartition(".")[0]
    return stem in names


def _about_lost(lost: list[str], clip: Any) -> list[str]:
    texts = [stem for stem in lost if of_text_encoder(f"{stem}.") and clip is None]
    others = [stem for stem in lost if stem not in texts]
    notes = []
    if texts:
        notes.append(f"{len(texts)} layers of text encoders are left out: wire clip to use them")
    if others:
        notes.append(
            f"{len(others)} layers are not in this model and are left out, e.g. "
            f"{', '.join(others[:3])}"
        )
    return notes


def wrong_sizes(loaded: Mapping[Any, Any], model: Any, clip: Any) -> list[str]:
    """Weights that have another size than the plain LoRA for them: the host logs an error for each
    when it draws, and goes on.

    Args:
        loaded: weight -> patch, as the host's loader gives them.
    """
    wrong = []
    for target, patch in loaded.items():
        own = _factors(patch)
        layer = None if isinstance(target, tuple) else _layer(target, model, clip)
        if own is None or layer is None or not is_frozen_layer(layer):
            continue
        rows, columns, *kernel = weight_shape(layer)
        for size in kernel:
            columns *= size
        if (own[0].shape[0], own[1][0].numel()) != (rows, columns):
            wrong.append(target)
    return wrong


def _about_sizes(wrong: list[str]) -> list[str]:
    if not wrong:
        return []
    return [
        f"{len(wrong)} layers have another size in this model, so that they do nothing, e.g. "
        f"{wrong[0]}: the LoRA was made for another family"
    ]


def _factors(patch: Any) -> tuple[Tensor, Tensor] | None:
    """Up and down of a plain LoRA."""
    if getattr(patch, "name", "") != "lora" or patch.weights[3] is not None:
        return None
    return None if patch.weights[5] is not None else patch.weights[:2]


def _layer(key: str, model: Any, clip: Any) -> nn.Module | None:
    path, _, last = key.rpartition(".")
    if last != "weight":
        return None
    root = model.model if key.startswith(PREFIX) else clip.cond_stage_model
    return root.get_submodule(path)


def _about_factors(changed: Counter[str], factors: Mapping[str, float]) -> list[str]:
    """Factors of the blocks that the LoRA changes."""
    if all(factors[part] == 1 for part in changed):
        return []
    parts = [part for part in factors if part in changed]
    return ["factors: " + ", ".join(f"{short_name(part)} {factors[part]:g}" for part in parts)]


def _layers(changed: Counter[str]) -> str:
    count = sum(changed.values())
    return "1 weight is" if count == 1 else f"{count} weights are"
