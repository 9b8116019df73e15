"""A trained LoRA in the graph, without a file: applied, resized, merged, and given to core."""

from __future__ import annotations

import numpy as np
import pytest

from host import HostServer
from training_graph import LOADER, TRAIN, few_pictures, latent, node, picture, training, with_lora

pytestmark = pytest.mark.slow


def test_it_draws_what_loraloader_draws_with_the_file(server: HostServer) -> None:
    few_pictures(server)
    base = {"model": [LOADER, 0], "clip": [LOADER, 1]}
    whole = {"weight_1": 1.0, "network_dim": 0, "conv_dim": 0, "dynamic_param": 0.9}
    whole |= {"dynamic_method": "none", "weight_2": 1.0}
    strengths = {"strength_model": 1.0, "strength_clip": 1.0, "block_weights": ""}
    nothing = {**strengths, "strength_model": 0.0, "strength_clip": 0.0}
    save = {"save_precision": "float", "add_to_models_loras": True}
    prompt = {
        **training("few", prefix="atelier/applied"),
        "small": node("AtelierMergeLoRAs", **{**whole, "network_dim": 2}, lora_1=[TRAIN, 3]),
        "less": node(
            "AtelierMergeLoRAs",
            **{**whole, "weight_2": -0.5},
            lora_1=[TRAIN, 3],
            lora_2=[TRAIN, 3],
        ),
        "saved": node(
            "AtelierSaveLoRA", lora=["small", 0], filename_prefix="atelier/small", **save
        ),
        "a": node("AtelierApplyLoRA", lora=[TRAIN, 3], **base, **strengths),
        "b": node("AtelierApplyLoRA", lora=["small", 0], **base, **strengths),
        "c": node(
            "AtelierApplyLoRA", lora=["less", 0], **base, **{**strengths, "strength_model": 2}
        ),
        "d": node("AtelierApplyLoRA", lora=[TRAIN, 3], **base, **nothing),
        "core": node("LoraModelLoader", model=[LOADER, 0], lora=["small", 0], strength_model=1.0),
        **picture("whole", "a"),
        **picture("small", "b"),
        **picture("twice_half", "c"),
        **picture("off", "d"),
    }
    core = picture("core", LOADER)
    core["core-ks"]["inputs"]["model"] = ["core", 0]
    result = server.queue(prompt | core).check()
    text = "".join(map(str, result.outputs["a"]["text"]))
    assert text == "48 weights are changed"
    assert "rank 2 " in "".join(map(str, result.outputs["small"]["text"]))
    drawn = {n: latent(server, result, n) for n in ("whole", "small", "twice_half", "off", "core")}
    from_files = {
        name: latent(server, server.queue(with_lora(f"file-{name}", file)).check(), f"file-{name}")
        for name, file in (
            ("whole", "atelier/applied_00001_.safetensors"),
            ("small", "atelier/small_00001_.safetensors"),
        )
    }
    assert np.array_equal(drawn["whole"], from_files["whole"])
    assert np.array_equal(drawn["small"], from_files["small"])
    assert np.array_equal(drawn["small"], drawn["core"])
    effect = np.abs(drawn["whole"] - drawn["off"]).max()
    assert effect > 0.1
    assert np.abs(drawn["twice_half"] - drawn["whole"]).max() < 1e-3 * effect
    assert 0 < np.abs(drawn["small"] - drawn["whole"]).max() < effect
