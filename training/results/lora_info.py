"""What a LoRA file says of itself, and what its tensors tell, in lines for people.

The metadata are a stranger's: any of them may be missing, damaged or endless.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from ..network.existing_lora import DOWN, Size, of_text_encoder, size_in_file
from .lora_formats import key_parts

MOST_TAGS = 20
LONGEST_LINE = 400
"""Letters of one line; a description can be a page."""

Parts = Mapping[str, Tensor]
Kind = TypeVar("Kind", dict, list)

FORMS = (
    # A tensor of a layer -> what the layer's adapter is called.
    ("dora_scale", "DoRA"),
    ("hada_w1_a", "LoHa"),
    ("lokr_w1", "LoKr"),
    ("lokr_w1_a", "LoKr"),
    ("a1.weight", "GLoRA"),
    ("oft_blocks", "OFT"),
    ("diff", "full update"),
    (DOWN, "LoRA"),
)


def lora_info(lora: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[str]:
    """Lines on the LoRA; what nobody told is left out.

    Args:
        metadata: of the file, under the names of sd-scripts, ModelSpec and this pack.
    """
    told = {key: " ".join(value.split()) for key, value in metadata.items()}
    lines = [
        _labelled("title", told.get("modelspec.title") or told.get("ss_output_name", "")),
        _labelled("author", told.get("modelspec.author", "")),
        _labelled("base model", _base(told)),
        *_network(lora),
        _labelled("trigger words", told.get("modelspec.trigger_phrase", "")),
        _labelled("tags", told.get("modelspec.tags", "")),
        _labelled("most frequent in the captions", _frequent(told.get("ss_tag_frequency", ""))),
        _labelled("trained", _training(told)),
        _labelled("licence", told.get("modelspec.license", "")),
        _labelled("pictures", _joined(told, "atelier.dataset_source", "atelier.dataset_license")),
        _labelled("description", told.get("modelspec.description", "")),
        _labelled("made of", _merged(told.get("atelier.merged_from", ""))),
        *_broken(lora),
    ]
    if not told:
        lines.append("The file says nothing of how it was made.")
    return [_short(line) for line in lines if line]


def _base(told: Mapping[str, str]) -> str:
    version = told.get("ss_base_model_version") or told.get("modelspec.architecture", "")
    name = told.get("ss_sd_model_name", "")
    prediction = told.get("modelspec.prediction_type", "")
    return ", ".join(filter(None, (name, version, prediction and f"predicts {prediction}")))


def _network(lora: Mapping[str, Tensor]) -> list[str]:
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in lora.items():
        stem, own = key_parts(key)
        layers[stem or key][own] = value
    of_texts = sum(of_text_encoder(f"{stem}.") for stem in layers)
    forms = Counter(_form(parts) for parts in layers.values())
    kinds = " and ".join(form for form, _ in forms.most_common())
    places = f"{len(layers) - of_texts} layers of the diffusion model"
    if of_texts:
        places += f" and {of_texts} of text encoders"
    size = sum(value.numel() * value.element_size() for value in lora.values())
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in lora.values()})
    ranks = _ranks([_size(parts) for parts in layers.values() if DOWN in parts])
    return [
        f"{kinds}{ranks}: {places}",
        f"{size / 1e6:.1f} MB in {' and '.join(dtypes)}",
    ]


def _form(parts: Parts) -> str:
    return next((form for own, form in FORMS if own in parts), "other")


def _size(parts: Parts) -> Size:
    """A file without alpha means a scale of 1."""
    size = size_in_file(parts)
    return size if "alpha" in parts else Size(size.dim, float(size.dim))


def _ranks(sizes: list[Size]) -> str:
    if not sizes:
        return ""
    dims = sorted({size.dim for size in sizes})
    rank = f"rank {dims[0]}" if len(dims) == 1 else f"ranks {dims[0]} to {dims[-1]}"
    alphas = {size.alpha for size in sizes}
    if len(alphas) == 1:
        return f" of {rank}, alpha {alphas.pop():g}"
    scales = sorted({size.alpha / size.dim for size in sizes if size.dim})
    scale = f"{scales[0]:g}" if len(scales) == 1 else f"{scales[0]:g} to {scales[-1]:g}"
    return f" of {rank}, alpha / rank {scale}"


def _frequent(text: str) -> str:
    """``fox ×20, red ×12``, of all of its datasets together."""
    count: Counter[str] = Counter()
    for tags in _loaded(text, dict).values():
        for tag, number in tags.items() if isinstance(tags, dict) else ():
            if isinstance(number, int) and tag.strip():
                count[tag.strip()] += number
    most = count.most_common(MOST_TAGS)
    more = [f"and {len(count) - MOST_TAGS} others"] if len(count) > MOST_TAGS else []
    return ", ".join([*(f"{tag} ×{number}" for tag, number in most), *more])


def _training(told: Mapping[str, str]) -> str:
    parts = (
        ("", "ss_steps", " steps"),
        ("batch ", "ss_total_batch_size", ""),
        ("", "ss_num_train_images", " pictures an epoch"),
        ("at ", "ss_resolution", " px"),
        ("", "ss_optimizer", ""),
        ("U-Net or transformer rate ", "ss_unet_lr", ""),
        ("text encoder rate ", "ss_text_encoder_lr", ""),
    )
    return ", ".join(
        f"{before}{told[key]}{after}"
        for before, key, after in parts
        if told.get(key, "None") != "None"  # sd-scripts writes Python's None
    )


def _merged(text: str) -> str:
    """``Fox ×1, Ink ×0.5``: what a merged LoRA was made of."""
    rows = [row for row in _loaded(text, list) if isinstance(row, dict)]
    return ", ".join(f"{row.get('title') or 'untitled'} ×{row.get('weight')}" for row in rows)


def _broken(lora: Mapping[str, Tensor]) -> list[str]:
    broken = [key for key, value in lora.items() if not bool(value.float().isfinite().all())]
    if not broken:
        return []
    return [
        f"Not usable: {len(broken)} of {len(lora)} tensors hold numbers that are not finite, e.g. "
        f"{broken[0]}. Pictures made with it are black."
    ]


def _loaded(text: str, kind: type[Kind]) -> Kind:
    """JSON of that kind; an empty one for anything else."""
    try:
        value = json.loads(text or "null")
    except (ValueError, RecursionError):
        return kind()
    return value if isinstance(value, kind) else kind()


def _joined(told: Mapping[str, str], *keys: str) -> str:
    return ", ".join(filter(None, (told.get(key, "") for key in keys)))


def _labelled(label: str, text: str) -> str:
    return f"{label}: {text}" if text else ""


def _short(line: str) -> str:
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"
