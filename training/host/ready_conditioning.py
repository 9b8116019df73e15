"""A CONDITIONING of the graph in place of the captions: for text encoders that are elsewhere.

It has one entry for all pictures, or one for each in the order of the dataset, as the core node
Conditioning (Combine) puts them together; a batch of N in one entry stands for N of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..base_model.precision import MixedPrecision
from ..cache import TensorCache, digest_of
from ..dataset.fit import Placement
from ..dataset.samples import ImageDataset, shorten
from ..errors import AtelierError, require
from ..memory.rehearsal import SHAPES, rehearsing
from ..network.spec import NetworkSpec
from ..runs.examples import Conditioning, own_key
from ..runs.identity import tensors_digest
from ..tensor_tree import NotATree, take_apart
from .diffusion_model import HostDiffusionModel
from .encoders import CachedText, plain

VERSION = 1
"""Part of every key: raise it when the same conditioning would be kept in another form."""

FOLLOWED_BY_SAMPLERS_ONLY = {
    **dict.fromkeys(("area", "mask", "control", "gligen", "hooks"), None),
    **dict.fromkeys(("start_percent", "clip_start_percent"), 0.0),
    **dict.fromkeys(("end_percent", "clip_end_percent"), 1.0),
}
"""What core nodes write beside an embedding for the sampler alone, and its value without effect."""

DRAWN = (
    *("shuffle_caption", "caption_tag_dropout_rate"),
    *("caption_dropout_rate", "caption_dropout_every_n_epochs"),
)
"""Widgets of Edit Captions that choose anew what is read of a caption."""

MISFITS = ("reduction dim", "cannot be multiplied", "size of tensor", "must match", "normalized_sh")
"""Parts of what torch says of shapes that do not belong together."""

STEP = 8
"""Px for which a number of a latent is taken to stand; no model understands more by another."""

log = logging.getLogger("lora_atelier")


def conditioning_of_pictures(
    conditioning: Any, dataset: ImageDataset, network: NetworkSpec
) -> dict[str, Conditioning]:
    """A picture's own key -> its conditioning: copies that autograd accepts, on the CPU.

    Args:
        conditioning: entries [embedding [B, T, D], extras]; extras with B rows are cut likewise.

    Raises:
        AtelierError: there are neither one nor as many as pictures, they hold what training cannot
            follow, or something is to act on captions that nobody reads.
    """
    _require_captions_unread(dataset, network)
    rows = [row for entry in conditioning for row in _rows(entry)]
    names = [sample.name for sample in dataset.samples]
    require(
        len(rows) in (1, len(names)),
        f"conditioning: it has {len(rows)} entries, but the dataset {len(names)} pictures. Wire "
        "one entry for all, or one for each in this order (Conditioning (Combine) puts them one "
        f"behind the other): {shorten(names)}.",
    )
    own = [plain(row) for row in rows]
    for row in own:
        _require_followed(row)
    own *= len(names) if len(own) == 1 else 1
    return {own_key(s): row for s, row in zip(dataset.samples, own, strict=True)}


def kept_conditioning(
    own: Mapping[str, Conditioning], cache: TensorCache
) -> tuple[Mapping[str, Conditioning], str]:
    """(the same, read from disk when asked for, those of the most numbers first; a digest)."""
    keys = {}
    for name in sorted(own, key=lambda name: -_numbers(own[name])):
        tensors, form = take_apart(own[name])
        keys[name] = digest_of(VERSION, "conditioning", tensors_digest(tensors), form)
        if cache.read(keys[name]) is None:
            cache.write(keys[name], tensors, {"form": form})
    return CachedText(cache, keys, {}), digest_of(sorted(keys.items()))


def require_understood(
    model: HostDiffusionModel,
    precision: MixedPrecision,
    conditionings: Iterable[Conditioning],
    placement: Placement,
) -> None:
    """Rehearse a look at a picture under each kind of conditioning, which takes no weights.

    Args:
        placement: of a picture that is to train; its size is a usual one for the model.

    Raises:
        AtelierError: the model expects an embedding of another width, or more beside it.
    """
    kinds = {_kind(conditioning): conditioning for conditioning in conditionings}
    for conditioning in kinds.values():
        try:
            _rehearse(model, precision, conditioning, placement)
        except Exception as error:  # other people's code, which may need numbers or know no shapes
            if isinstance(error, KeyError) and _is_extra(error.args[0]):
                raise AtelierError(
                    f"conditioning: this model also reads {error}, which is not in it. Encode the "
                    "captions with the text encoders that belong to the model."
                ) from error
            if any(words in str(error) for words in MISFITS):
                shape = "×".join(map(str, conditioning[0].shape[1:]))
                raise AtelierError(
                    f"conditioning: its embedding ({shape}) does not fit this model. Encode the "
                    f"captions with the text encoders that belong to the model. ({error})"
                ) from error
            log.info("How this model reads a conditioning could not be tried: %s", error)


def conditioning_notes(conditioning: Any, dataset: ImageDataset) -> list[str]:
    """What a person should know of captions that are not read, a sentence each."""
    texts = {sample.captions for sample in dataset.samples}
    several = [sample.name for sample in dataset.samples if len(sample.captions) > 1]
    notes = []
    if sum(len(entry[0]) for entry in conditioning) == 1 and len(texts) > 1:
        notes.append(
            f"conditioning: one entry for all {len(dataset.samples)} pictures, though their "
            f"captions differ: they are learned as {len(texts)} ways to show the same."
        )
    if several:
        notes.append(
            f"conditioning: {len(several)} pictures have several captions ({shorten(several)}), "
            "but each is seen under the one conditioning it was given."
        )
    return notes


def _require_captions_unread(dataset: ImageDataset, network: NetworkSpec) -> None:
    require(
        not network.trains_text_encoders,
        f"text_encoders is {network.text_encoders.value}, but conditioning is connected, which was "
        "made before: nothing would reach the text encoder. Set it to none on LoRA Network, or "
        "wire clip in place of conditioning.",
    )
    for sample in dataset.samples:
        options = sample.caption_options
        drawn = [name for name in DRAWN if getattr(options, name)]
        if not drawn and any(options.varies(caption) for caption in sample.captions):
            drawn = ["enable_wildcard"]
        require(
            not drawn,
            f"{' and '.join(drawn)} cannot act on conditioning that is ready: it was made of whole "
            f'captions ("{sample.name}"). Switch it off on Edit Captions, or wire clip in place of '
            "conditioning.",
        )


def _rows(entry: Sequence[Any]) -> Iterator[Conditioning]:
    """An entry of a batch as one entry for each of its rows."""
    embedding, extras = entry[0], entry[1]
    require(
        isinstance(embedding, Tensor) and embedding.ndim > 1,
        "conditioning: an entry of it holds no embedding. Wire what a text encoder gives.",
    )
    for row in range(len(embedding)):
        own = extras
        if len(embedding) > 1:
            own = {name: _row(name, value, row, len(embedding)) for name, value in extras.items()}
        yield [embedding[row : row + 1], own]


def _row(name: str, value: Any, row: int, rows: int) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_row(name, item, row, rows) for item in value)
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) == 1:
        return value
    require(
        len(value) == rows,
        f"conditioning: its {name} is a batch of {len(value)}, but its embedding one of {rows}.",
    )
    return value[row : row + 1]


def _require_followed(conditioning: Conditioning) -> None:
    embedding, extras = conditioning
    require(
        bool(embedding.isfinite().all()),
        "conditioning: it holds numbers that are not finite. The text encoder's precision was too "
        "low: run it in bf16 or fp32.",
    )
    for name, neutral in FOLLOWED_BY_SAMPLERS_ONLY.items():
        if name in extras and extras[name] is not None and extras[name] != neutral:
            raise AtelierError(
                f"conditioning: it carries {name}, which only a sampler follows. Wire it as the "
                "text encoder gave it."
            )
    try:
        take_apart(conditioning)
    except NotATree as error:
        raise AtelierError(
            f"conditioning: it carries a value of the kind {error}, which training cannot keep. "
            "Wire it as the text encoder gave it."
        ) from error


@torch.inference_mode(False)
@torch.no_grad()
def _rehearse(
    model: HostDiffusionModel,
    precision: MixedPrecision,
    conditioning: Conditioning,
    placement: Placement,
) -> None:
    dtype, kind = model.compute_dtype(precision), model.patcher.model.latent_format
    width, height = (side // STEP for side in placement.size)
    sides = [*[1] * (kind.latent_dimensions - 2), height, width]
    with rehearsing() as memory, model.rehearsing({}, dtype, memory) as predict:
        x = torch.empty(1, kind.latent_channels, *sides, device=SHAPES)
        predict(x, torch.ones(1, device=SHAPES), [conditioning], [placement])


def _is_extra(name: Any) -> bool:
    """Whether a conditioning may hold something of this name: the host hands all of it on as
    arguments. Other keys are missing where a device without numbers is asked for its memory."""
    return isinstance(name, str) and name.isidentifier()


def _kind(conditioning: Conditioning) -> tuple[Any, ...]:
    """What two entries have in common that fit the same models; lengths may differ."""
    embedding, extras = conditioning
    return embedding.ndim, embedding.shape[-1], tuple(sorted(extras))


def _numbers(conditioning: Conditioning) -> int:
    return sum(leaf.numel() for leaf in tree_leaves(conditioning) if isinstance(leaf, Tensor))
