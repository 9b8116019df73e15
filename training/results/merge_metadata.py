"""What is said of a LoRA that was made of others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..network.existing_lora import DOWN, UP
from .lora_algebra import ResizedLayer
from .lora_file import as_strings

JOINED = ("atelier.dataset_source", "atelier.dataset_license")
"""Said of all of the pictures, whichever LoRA learned them."""
OUTDATED = ("ss_network_args", "ss_network_dropout")


def merged_metadata(
    loras: Sequence[tuple[Mapping[str, str], float]],
    layers: Sequence[ResizedLayer],
    tensors: Mapping[str, Tensor],
) -> dict[str, str]:
    """What all of them say alike, sources and licences of all pictures, and the new ranks.

    Args:
        loras: the metadata of each, and its weight.
        tensors: what came out.
    """
    first, others = loras[0][0], [metadata for metadata, _ in loras[1:]]
    alike = {key: v for key, v in first.items() if all(o.get(key) == v for o in others)}
    is_lora = all(key.endswith((UP, DOWN, "alpha")) for key in tensors)
    if len(loras) > 1 or is_lora:
        alike["ss_network_module"] = "networks.lora" if is_lora else "lycoris.kohya"
        alike = {key: value for key, value in alike.items() if key not in OUTDATED}
    told: dict[str, object] = dict(alike)
    for key in JOINED:
        found = [metadata[key] for metadata, _ in loras if metadata.get(key)]
        told[key] = "; ".join(dict.fromkeys(found))
    made_of = [
        {"title": metadata.get("modelspec.title", ""), "weight": weight}
        for metadata, weight in loras
    ]
    ranks = {layer.rank for layer in layers if layer.rank}
    dim = ranks.pop() if len(ranks) == 1 else "Dynamic"
    return as_strings(
        {
            **told,
            "ss_network_dim": dim,
            "ss_network_alpha": dim,
            "atelier.merged_from": json.dumps(made_of, ensure_ascii=False),
        }
    )
