"""A LoRA cut up into layers, whatever it is made of, and what of it can be added up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from ..errors import require
from ..network.existing_lora import DOWN, UP
from .lora_formats import key_parts

MID = "lora_mid.weight"
VECTORS = ("diff_b", "w_norm", "b_norm")
"""Differences of biases and norms: added up, and never made smaller."""
DEPENDENT = {
    "dora_scale": "DoRA",
    "oft_blocks": "OFT or BOFT",
    "set_weight": "a weight that is replaced",
    "reshape_weight": "a weight of another size",
}
"""Keys of which the change depends on the base's own weight, which is no plain difference."""
FORMS = (
    (UP, DOWN),
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),
    ("diff",),
    ("lokr_w1", "lokr_w2"),
    ("lokr_w1", "lokr_w2_a", "lokr_w2_b"),
    ("lokr_w1_a", "lokr_w1_b", "lokr_w2"),
    ("lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"),
)
"""What has to be there."""


Parts = Mapping[str, Tensor]


def layers_of(lora: Mapping[str, Tensor], name: str) -> dict[str, dict[str, Tensor]]:
    """Layer as the LoRA names it -> the adapter's own names -> tensors.

    Raises:
        AtelierError: there are keys of which nobody knows what they mean, or numbers that are not
            finite.
    """
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in lora.items():
        stem, own = _split(key)
        require(
            own != "",
            f"{name}: the key {key} has an ending that nobody knows. It is no LoRA, or of a kind "
            "that cannot be merged.",
        )
        require(
            bool(value.float().isfinite().all()),  # fp8 has no isfinite
            f"{name}: {key} holds numbers that are not finite: its training diverged. Use an "
            "earlier checkpoint.",
        )
        found[stem][own] = value
    require(len(found) > 0, f"{name} is empty.")
    return dict(found)


def require_difference(stem: str, parts: Parts, name: str) -> None:
    """Refuse what is no plain difference, and what is not whole.

    Raises:
        AtelierError: says which layer, and what it is.
    """
    for own, kind in DEPENDENT.items():
        require(
            own not in parts,
            f"{name}: {stem} is {kind}. What that does depends on the weights of the base model, "
            "so it can be neither merged nor resized. Use Apply Trained LoRA for each one instead.",
        )
    forms = [form for form in FORMS if {*form} <= parts.keys()]
    vectors = any(own in parts for own in VECTORS)
    require(
        len(forms) == 1 or (not forms and vectors and parts.keys() <= {*VECTORS, "alpha"}),
        f"{name}: {stem} holds {', '.join(sorted(parts))}, which makes no adapter, or "
        "more than one.",
    )


def has_weight(parts: Parts) -> bool:
    """Whether it changes a matrix, and not only a bias or a norm."""
    if "diff" in parts:
        return parts["diff"].ndim > 1
    return any({*form} <= parts.keys() for form in FORMS)


def _split(key: str) -> tuple[str, str]:
    stem, own = key_parts(key)
    if own:
        return stem, own
    for ending in DEPENDENT:
        if key.endswith(f".{ending}"):
            return key.removesuffix(f".{ending}"), ending
    return "", ""
