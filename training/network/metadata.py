"""What a LoRA file says of its network, under the names of kohya-ss/sd-scripts and LyCORIS.

Source: train_network.py (``ss_network_*``, ``ss_scale_weight_norms``); networks/lora.py and
lycoris/kohya.py for what ``ss_network_args`` holds, whose values are strings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from torch import Tensor

from .existing_lora import ExistingLora, size_in_file
from .spec import Algorithm, NetworkSpec

LYCORIS_NAMES = {
    Algorithm.DORA: "locon",
    Algorithm.LOHA: "loha",
    Algorithm.LOKR: "lokr",
    Algorithm.FULL: "full",
    Algorithm.OFT: "diag-oft",
    Algorithm.BOFT: "boft",
}
"""``algo`` of LyCORIS; DoRA is LoCon with ``dora_wd``."""


def network_metadata(spec: NetworkSpec, tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """Key -> value; "" where there is nothing to say.

    Args:
        tensors: the LoRA itself: a continued one has the rank of the file it came from.
    """
    dim, alpha = spec.network_dim, spec.network_alpha
    if spec.existing is not None:
        sizes = {size_in_file(p) for p in ExistingLora(tensors, "").layers().values()}
        dims, alphas = {size.dim for size in sizes}, {size.alpha for size in sizes}
        dim, alpha = (n.pop() if len(n) == 1 else "Dynamic" for n in (dims, alphas))
    return {
        "ss_network_module": "networks.lora" if _is_kohyas_own(spec) else "lycoris.kohya",
        "ss_network_dim": dim,
        "ss_network_alpha": alpha,
        "ss_network_dropout": spec.network_dropout or "",
        "ss_network_args": json.dumps(args) if (args := _arguments(spec)) else "",
        "ss_scale_weight_norms": spec.scale_weight_norms or "",
        "atelier.target_modules": "" if spec.existing else spec.target_modules.value,
        "atelier.text_encoders": spec.text_encoders.value if spec.trains_text_encoders else "",
        "atelier.existing_lora": spec.existing.name if spec.existing else "",
    }


def _is_kohyas_own(spec: NetworkSpec) -> bool:
    return spec.algorithm is Algorithm.LORA


def _arguments(spec: NetworkSpec) -> dict[str, str]:
    values = {
        "algo": LYCORIS_NAMES.get(spec.algorithm),
        "dora_wd": True if spec.algorithm is Algorithm.DORA else None,
        "wd_on_output": False if spec.algorithm is Algorithm.DORA else None,
        "rs_lora": spec.rs_lora or None,
        "conv_dim": spec.conv_dim or None,
        "conv_alpha": spec.size(spatial=True).alpha if spec.conv_dim else None,
        "rank_dropout": spec.rank_dropout or None,
        "module_dropout": spec.module_dropout or None,
        "factor": spec.lokr_factor if spec.algorithm is Algorithm.LOKR else None,
        "text_encoder_dim": spec.text_encoder_dim or None,
        "text_encoder_alpha": spec.text_encoder_alpha or None,
        "target_regex": spec.target_regex or None,
        "block_dims": ",".join(map(str, spec.block_dims)) or None,
    }
    return {key: str(value) for key, value in values.items() if value is not None}
