"""Names of layers in the file against sd-scripts' rule, and a genuine SD2-v checkpoint.

The rule (networks/lora.py, lora_flux.py, lora_sd3.py, in words): a prefix, then the path of every
linear layer and 1×1 convolution inside the transformer blocks, dots made underscores. The path is
that in diffusers' U-Net for SD1.x and SD2, that in the original model for the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import comfy.lora
import comfy.model_base
import comfy.model_management as mm
import comfy.sd
import comfy.supported_models
import comfy.utils
import pytest
import torch
from diffusers import FluxPipeline, UNet2DConditionModel
from torch import nn

import tiny_sd2
from families import FAMILIES, UNET, Family
from lora_atelier.training.host.base_facts import base_facts
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.lora_check import check_file, fit
from lora_atelier.training.host.lora_formats import Models, rewritten
from lora_atelier.training.host.lora_keys import file_names
from lora_atelier.training.host.text_encoder import HostTextEncoder
from lora_atelier.training.network.spec import NetworkSpec, TextEncoders
from lora_atelier.training.results.lora_file import SavePrecision, save_lora
from lora_atelier.training.results.lora_formats import KeyFormat
from tiny_training import normal, worked_network

ALL = {**FAMILIES, "sd2": Family("SD20", UNET, (4, 8, 8))}
BLOCKS = {
    "sdxl": ("SpatialTransformer",),
    "sd3": ("DismantledBlock",),
    "flux": ("DoubleStreamBlock", "SingleStreamBlock"),
}
"""Family -> the host's classes for what sd-scripts looks into."""
REFUSALS = ("lora key not loaded", "NOT LOADED", "ERROR", "WARNING")


def layers_within(root: nn.Module, classes: Iterable[str]) -> list[str]:
    """Paths of the linear layers and 1×1 convolutions inside modules of these classes."""
    return [
        f"{name}.{path}"
        for name, block in root.named_modules()
        if type(block).__name__ in classes
        for path, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
        or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
    ]


def by_rule(paths: Iterable[str]) -> set[str]:
    return {f"lora_unet_{path.replace('.', '_')}" for path in paths}


@pytest.mark.parametrize("name", ["sd15", "sd2"])
def test_u_nets_of_sd1_and_sd2_are_named_after_diffusers(name: str) -> None:
    base = ALL[name].patcher().model
    theirs = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=48,
        use_linear_projection=True,
    )
    expected = by_rule(layers_within(theirs, ["Transformer2DModel"]))
    ours = layers_within(base.diffusion_model, ["SpatialTransformer"])
    assert set(file_names(base, ours).values()) == expected
    assert len(expected) > 40


@pytest.mark.parametrize("name", BLOCKS)
def test_other_families_are_named_after_their_own_modules(name: str) -> None:
    base = ALL[name].patcher().model
    paths = layers_within(base.diffusion_model, BLOCKS[name])
    assert len(paths) > 15
    assert set(file_names(base, paths).values()) == by_rule(paths)


def test_a_genuine_sd2_v_checkpoint_is_named_checked_and_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tiny_sd2.tiny_sd2(tmp_path)
    with torch.inference_mode():
        model, clip, *_ = comfy.sd.load_checkpoint_guess_config(
            str(checkpoint), output_vae=False, te_model_options=tiny_sd2.TEXT_OPTIONS
        )
    assert model.model.model_type is comfy.model_base.ModelType.V_PREDICTION
    facts = base_facts(model)
    told = (facts.version, facts.architecture, facts.prediction_type, facts.is_v2)
    assert told == ("sd_v2_v", "stable-diffusion-v2-768-v", "v", True)
    spec = NetworkSpec(4, 7.0, text_encoders=TextEncoders.CLIP)
    trained = HostDiffusionModel(model, None, HostTextEncoder(clip, torch.device("cpu")))
    lora = {key: value.clone() for key, value in worked_network(trained, spec).state_dict().items()}
    stems = {key.partition(".")[0] for key in lora}
    texts = {stem for stem in stems if stem.startswith("lora_te_text_model_encoder_layers_")}
    assert len(texts) == 6 * tiny_sd2.LAYERS
    middle = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    assert middle in stems
    assert lora[f"{middle}.lora_down.weight"].shape == (4, 1024)
    models = Models(model, clip)
    assert fit(lora, models).is_whole
    for key_format in KeyFormat:
        file = tmp_path / f"{key_format.value}.safetensors"
        save_lora(
            file,
            rewritten(lora, models, key_format),
            SavePrecision.FLOAT,
            check=lambda read: check_file(read, lora, models, SavePrecision.FLOAT),
        )
        caplog.clear()
        with torch.inference_mode():
            read = comfy.utils.load_torch_file(str(file), safe_load=True)
            loaded = comfy.sd.load_lora_for_models(model, clip, read, 1.0, 1.0)
        assert [m for m in caplog.messages if any(words in m for words in REFUSALS)] == []
        assert len(loaded[0].patches) + len(loaded[1].patcher.patches) == len(stems)
    mm.unload_all_models()


def test_diffusers_cuts_kohyas_linear1_of_flux_as_comfyui_does(tmp_path: Path) -> None:
    """At the width of the real model, which diffusers takes for granted; no weights are needed."""
    config = {
        **FAMILIES["flux"].unet,
        **{"hidden_size": 3072, "num_heads": 24, "mlp_ratio": 4.0, "axes_dim": [16, 56, 56]},
        **{"depth": 1, "depth_single_blocks": 1},
    }
    base = comfy.supported_models.Flux({**config, "dtype": torch.float32})
    base = base.get_model({}, "", device="meta")
    stem, rows = "lora_unet_single_blocks_0_linear1", 3 * 3072 + 4 * 3072
    lora = {
        f"{stem}.lora_down.weight": normal(1, 4, 3072),
        f"{stem}.lora_up.weight": normal(2, rows, 4),
        f"{stem}.alpha": torch.tensor(7.0),
    }
    file = tmp_path / "a.safetensors"
    save_lora(file, lora, SavePrecision.FLOAT)
    theirs = FluxPipeline.lora_state_dict(str(file))
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    pieces = {key.partition(".lora_A")[0] for key in theirs if ".lora_A" in key}
    names = comfy.lora.model_lora_keys_unet(base, {})
    change = lora[f"{stem}.lora_up.weight"] @ lora[f"{stem}.lora_down.weight"] * (7.0 / 4)
    covered = 0
    for piece in pieces:
        host = names[piece]
        _, (_, start, count) = host[:2]
        got = theirs[f"{piece}.lora_B.weight"] @ theirs[f"{piece}.lora_A.weight"]
        torch.testing.assert_close(got, change[start : start + count], rtol=1e-4, atol=1e-3)
        covered += count
    assert covered == rows
    assert len(pieces) == 4
