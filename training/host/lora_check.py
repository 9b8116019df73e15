"""A finished LoRA file against the LoRA in memory, through the host's own loader.

The change of every layer, ``ΔW``, is worked out twice by the code that LoraLoader runs: from the
tensors in memory, in float32, and from what the file gives back. How far the two are apart, is the
error ``‖ΔW_file − ΔW‖ / ‖ΔW‖`` over all layers together.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import comfy.lora
import comfy.lora_convert
import comfy.model_management as mm
import torch
from torch import Tensor

from ..errors import require
from ..network.existing_lora import of_text_encoder
from ..results.lora_file import SavePrecision
from ..results.lora_formats import key_parts
from .complaints import host_complaints
from .lora_formats import Models
from .weighted_lora import lost_layers, wrong_sizes

ALLOWED_ERROR = {SavePrecision.FLOAT: 1e-4, SavePrecision.FP16: 0.01, SavePrecision.BF16: 0.02}
"""Several times what rounding does: 2⁻¹¹ of each number for fp16, 2⁻⁸ for bf16."""

DEPENDENT = (".dora_scale", ".oft_blocks", ".rescale", ".set_weight", ".a1.weight")
"""Endings of keys of which the change depends on the weight; what else there is, is added."""

Patches = Mapping[str, list[tuple[Any, ...]]]


def check_file(
    read: Mapping[str, Tensor],
    live: Mapping[str, Tensor],
    models: Models,
    precision: SavePrecision,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Refuse a file that the host would not load as a whole, or that does something else.

    Args:
        read: what the file gives back.
        live: the LoRA in memory, in any spelling.
        tick: called for every layer.

    Raises:
        AtelierError: says what the host would not take, or how far the file is off.
    """
    key_map, shapes = _host_names(models)
    lost = sorted({stem for stem, _ in map(key_parts, read) if stem not in key_map})
    require(
        models.clip is not None or not any(of_text_encoder(f"{stem}.") for stem in lost),
        "The LoRA changes text encoders too, which cannot be checked without them. It was not "
        "saved: wire clip.",
    )
    require(
        not lost,
        f"ComfyUI would not load {len(lost)} layers of the file, e.g. {lost[:2]}. It was not "
        "saved: this LoRA is for another model than the one it is checked on.",
    )
    with _no_complaints():
        ours, theirs = _patches(live, key_map), _patches(read, key_map)
        require(
            ours.keys() == theirs.keys(),
            f"The file changes {len(theirs)} weights and the LoRA {len(ours)}. It was not saved.",
        )
        added = not any(key.endswith(DEPENDENT) for key in live)
        error = length = 0.0
        for key, patches in ours.items():
            require(key in shapes, f"The LoRA changes {key}, which is not in this model.")
            expected = _change(patches, shapes[key], key, added)
            change = _change(theirs[key], shapes[key], key, added)
            error += float((change - expected).square().sum())
            length += float(expected.square().sum())
            tick()
    relative = math.sqrt(error / length) if length > 0 else math.sqrt(error)
    require(
        relative <= ALLOWED_ERROR[precision],
        f"The file is off by {relative:.1%} from the LoRA in memory. It was not saved: its numbers "
        f"are too small for save_precision {precision.value}; choose float, or bf16.",
    )


class Fit(NamedTuple):
    """How much of a LoRA the host's loader would put on models, without putting it there."""

    layers: int
    """Layers of the LoRA for the models at hand."""
    lost: tuple[str, ...]
    """Those of them that the models have not, by their names in the file."""
    wrong: tuple[str, ...]
    """Weights of the models that have another size."""
    unseen: int
    """Layers for the diffusion model or the text encoders where that is not at hand."""

    @property
    def is_whole(self) -> bool:
        return not (self.lost or self.wrong or self.unseen)


def fit(lora: Mapping[str, Tensor], models: Models) -> Fit:
    """Names and sizes only: no weight is read, so it takes milliseconds.

    Args:
        models: at least one of them.
    """
    names, _ = _host_names(models)
    tensors = comfy.lora_convert.convert_lora(dict(lora))
    stems = {key_parts(key)[0] or key for key in tensors}
    of_texts = {stem for stem in stems if of_text_encoder(f"{stem}.")}
    seen: set[str] = set()
    if models.model is not None:
        seen |= stems - of_texts
    if models.clip is not None:
        seen |= of_texts
    lost = [stem for stem in lost_layers(tensors, names) if stem in seen]
    loaded = comfy.lora.load_lora(tensors, names, log_missing=False)
    wrong = wrong_sizes(loaded, models.model, models.clip)
    return Fit(len(seen), tuple(lost), tuple(wrong), len(stems) - len(seen))


def _host_names(models: Models) -> tuple[dict[str, Any], dict[str, torch.Size]]:
    """Names that LoraLoader looks for -> what it patches, and the shapes of that."""
    names: dict[str, Any] = {}
    shapes = {}
    if models.model is not None:
        names = comfy.lora.model_lora_keys_unet(models.model.model, names)
        shapes |= {k: v.shape for k, v in models.model.model_state_dict().items()}
    if models.clip is not None:
        names = comfy.lora.model_lora_keys_clip(models.clip.cond_stage_model, names)
        shapes |= {k: v.shape for k, v in models.clip.cond_stage_model.state_dict().items()}
    return names, shapes


def _patches(lora: Mapping[str, Tensor], key_map: Mapping[str, Any]) -> Patches:
    """Weight -> what the host would do to it, as its ModelPatcher keeps it."""
    found = defaultdict(list)
    loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(lora)), key_map)
    for target, patch in loaded.items():
        cut = isinstance(target, tuple)
        key, offset, function = (*target, None)[:3] if cut else (target, None, None)
        found[key].append((1.0, patch, 1.0, offset, function))
    return found


@torch.no_grad()
def _change(patches: list[tuple[Any, ...]], shape: torch.Size, key: str, added: bool) -> Tensor:
    """``ΔW`` [shape], float32, on the host's device.

    Args:
        added: it does not depend on the weight, so that it can be had without rounding.
    """
    device = mm.get_torch_device()
    if added:
        weight = torch.zeros(shape, device=device)
    else:  # any weight that is not even will do
        count = torch.arange(math.prod(shape), dtype=torch.float32, device=device)
        weight = torch.sin(count).view(shape)
    before = weight.clone()
    return comfy.lora.calculate_weight(patches, weight, key) - before


@contextmanager
def _no_complaints() -> Iterator[None]:
    """What the host has to say of a LoRA it only logs, and goes on; here it is an error.

    Raises:
        AtelierError: with the host's words.
    """
    with host_complaints() as messages:
        yield
    require(
        not messages,
        f"ComfyUI cannot apply the LoRA: {'; '.join(messages[:3])}. It was not saved: it is "
        "damaged, or for another model than the one it is checked on.",
    )
