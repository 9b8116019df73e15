"""Text encoders in the LoRA file: ComfyUI and diffusers read them, and answer alike.

The encoders are the host's own classes with few layers of few channels; those of SD2 are named as
OpenCLIP's there, and as transformers' in files.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.text_encoders.flux
import comfy.text_encoders.sd2_clip
import comfy.text_encoders.sd3_clip
import comfy.utils
import pytest
import torch
from comfy.supported_models_base import ClipTarget
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from families import FAMILIES
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.lora_check import check_file
from lora_atelier.training.host.lora_formats import Models, rewritten
from lora_atelier.training.host.text_encoder import HostTextEncoder
from lora_atelier.training.network.spec import NetworkSpec, TextEncoders
from lora_atelier.training.results.lora_file import SavePrecision, save_lora
from lora_atelier.training.results.lora_formats import KeyFormat
from tiny_training import worked_network

KOHYA, DIFFUSERS = KeyFormat.KOHYA, KeyFormat.DIFFUSERS
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "projection_dim": 32,
}
TOKENS = torch.tensor([[49406, 320, 736, 3240, *[49407] * 73]])
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
REFUSALS = ("lora key not loaded", "NOT LOADED", "ERROR", "WARNING")


@dataclass(frozen=True)
class Encoders:
    """A family as its text encoders."""

    tokenizer: Any
    model: Any
    names: tuple[str, ...]
    """Of the encoders in the host, in the order in which diffusers numbers them."""
    kohya: tuple[str, ...]
    """What sd-scripts begins their layers with."""
    pipeline: Callable[..., Any]
    own: str = "unet"
    """What the pipeline calls the diffusion model."""
    projects: bool = False
    """The first encoder has a projection in diffusers, too."""


def unet() -> Any:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=32,
    )


def sd3() -> Any:
    return SD3Transformer2DModel(
        sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2
    )


def flux() -> Any:
    return FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
    )


def sd3_clip(**arguments: Any) -> Any:
    return comfy.text_encoders.sd3_clip.SD3ClipModel(
        clip_l=True, clip_g=True, t5=False, **arguments
    )


def flux_clip(**arguments: Any) -> Any:
    t5 = {"num_layers": 1, "d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2, "vocab_size": 99}
    options = {**arguments.pop("model_options"), "t5xxl_model_config": t5}
    return comfy.text_encoders.flux.FluxClipModel(**arguments, model_options=options)


XL = (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
ENCODERS = {
    "sd15": Encoders(
        comfy.sd1_clip.SD1Tokenizer,
        comfy.sd1_clip.SD1ClipModel,
        ("clip_l",),
        ("lora_te",),
        partial(
            StableDiffusionPipeline,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
    ),
    "sd2": Encoders(
        comfy.text_encoders.sd2_clip.SD2Tokenizer,
        comfy.text_encoders.sd2_clip.SD2ClipModel,
        ("clip_h",),
        ("lora_te",),
        partial(
            StableDiffusionPipeline,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
    ),
    "sdxl": Encoders(
        *XL,
        ("clip_l", "clip_g"),
        ("lora_te1", "lora_te2"),
        partial(StableDiffusionXLPipeline, add_watermarker=False),
    ),
    "sd3": Encoders(
        comfy.text_encoders.sd3_clip.SD3Tokenizer,
        sd3_clip,
        ("clip_l", "clip_g"),
        ("lora_te1", "lora_te2"),
        partial(StableDiffusion3Pipeline, text_encoder_3=None, tokenizer_3=None),
        "transformer",
        projects=True,
    ),
    "flux": Encoders(
        comfy.text_encoders.flux.FluxTokenizer,
        flux_clip,
        ("clip_l",),
        ("lora_te1",),
        partial(FluxPipeline, text_encoder_2=None, tokenizer_2=None),
        "transformer",
    ),
}
DIFFUSION = {"sd3": sd3, "flux": flux}


@pytest.fixture(autouse=True)
def freed() -> Any:
    yield
    mm.unload_all_models()
    gc.collect()


def clip_of(family: Encoders) -> Any:
    """The host's CLIP with weights that keep signals alive."""
    config = {f"{name}_model_config": SMALL for name in ("clip_l", "clip_g", "clip_h")}
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(4)
        clip = comfy.sd.CLIP(ClipTarget(family.tokenizer, family.model), model_options=config)
        for parameter in clip.cond_stage_model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            noise = torch.randn(parameter.shape) / max(fan_in, 1) ** 0.5
            parameter.copy_(noise if parameter.ndim != 1 else 1 + noise)
    return clip


def lora_of(clip: Any, name: str) -> dict[str, Tensor]:
    """As Train LoRA gives it, of the text encoders alone."""
    spec = NetworkSpec(4, 7.0, text_encoders=TextEncoders.CLIP)
    diffusion = FAMILIES["sd15" if name == "sd2" else name].patcher()
    model = HostDiffusionModel(diffusion, None, HostTextEncoder(clip, torch.device("cpu")))
    network = worked_network(model, spec).state_dict()
    texts = {key: value.clone() for key, value in network.items() if key.startswith("lora_te")}
    return {k: v * 10 if k.endswith("lora_up.weight") else v for k, v in texts.items()}


def layer_names(encoder: str) -> set[str]:
    """sd-scripts' rule: the prefix, then the path in transformers' CLIPTextModel, of every linear
    layer in a CLIPAttention or a CLIPMLP, with underscores for the dots."""
    layers = [f"self_attn_{part}" for part in PROJECTIONS] + ["mlp_fc1", "mlp_fc2"]
    return {
        f"{encoder}_text_model_encoder_layers_{number}_{layer}"
        for number in range(SMALL["num_hidden_layers"])
        for layer in layers
    }


def other_of(name: str, clip: Any) -> Any:
    """The pipeline of diffusers whose text encoders have the weights of the host's."""
    family = ENCODERS[name]
    modules: dict[str, Any] = {}
    for number, encoder in enumerate(family.names, start=1):
        part = getattr(clip.cond_stage_model, encoder).transformer
        act = {"clip_l": "quick_gelu"}.get(encoder, "gelu")
        config = CLIPTextConfig(**SMALL, hidden_act=act, eos_token_id=49407)
        projects = family.projects or number == 2
        module = (CLIPTextModelWithProjection if projects else CLIPTextModel)(config)
        inside = "" if hasattr(module, "text_model") else "text_model."  # newer transformers
        weights = part.state_dict().items()
        weights = {key.removeprefix(inside): value.clone() for key, value in weights}
        absent = module.load_state_dict(weights, strict=False)
        assert [key for key in absent.missing_keys if "position_ids" not in key] == []
        ending = "" if number == 1 else f"_{number}"
        modules |= {f"text_encoder{ending}": module.eval(), f"tokenizer{ending}": None}
    modules[family.own] = DIFFUSION.get(name, unet)()
    return family.pipeline(vae=None, scheduler=None, **modules)


def answers(clip: Any, family: Encoders) -> list[Tensor]:
    """Of each of the host's encoders to the same words; last layer, normed."""
    found = []
    with torch.inference_mode():
        clip.patcher.patch_model()
        for encoder in family.names:
            transformer: nn.Module = getattr(clip.cond_stage_model, encoder).transformer
            found.append(transformer(TOKENS, dtype=torch.float32)[0].float().clone())
        clip.patcher.unpatch_model()
    return found


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(
    ("name", "key_format"),
    # diffusers reads kohya's SD3 keys with none of its loaders.
    [(n, f) for n in ENCODERS for f in (KOHYA, DIFFUSERS) if (n, f) != ("sd3", KOHYA)],
)
def test_both_read_the_text_encoders_and_answer_alike(
    name: str, key_format: KeyFormat, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family, file = ENCODERS[name], tmp_path / "a.safetensors"
    clip = clip_of(family)
    lora, models = lora_of(clip, name), Models(None, clip)
    stems = {key.partition(".")[0] for key in lora}
    assert stems == set().union(*map(layer_names, family.kohya))
    save_lora(
        file,
        rewritten(lora, models, key_format),
        SavePrecision.FLOAT,
        check=lambda read: check_file(read, lora, models, SavePrecision.FLOAT),
    )
    plain = answers(clip, family)
    with torch.inference_mode():
        read = comfy.utils.load_torch_file(str(file), safe_load=True)
        loaded = comfy.sd.load_lora_for_models(None, clip, read, 1.0, 1.0)[1]
    assert [m for m in caplog.messages if any(words in m for words in REFUSALS)] == []
    assert len(loaded.patcher.patches) == len(stems)
    ours = answers(loaded, family)

    other = other_of(name, clip)
    encoders = [other.text_encoder, getattr(other, "text_encoder_2", None)][: len(family.names)]

    def theirs() -> list[Tensor]:
        with torch.no_grad():
            return [encoder(TOKENS).last_hidden_state for encoder in encoders]

    for host, same in zip(plain, theirs(), strict=True):
        assert distance(same, host) < 1e-4
    other.load_lora_weights(str(file))
    for before, with_lora, same in zip(plain, ours, theirs(), strict=True):
        assert distance(with_lora, before) > 0.01  # it does something
        assert distance(same, with_lora) < 1e-3
