"""Every spelling of the LoRA file, of every family: what ComfyUI and diffusers make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.ldm.modules.attention import CrossAttention
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import Tensor

from families import FAMILIES, UNET, Family
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.lora_check import check_file
from lora_atelier.training.host.lora_formats import Models, rewritten
from lora_atelier.training.network.spec import Algorithm, NetworkSpec
from lora_atelier.training.results.lora_file import SavePrecision, save_lora
from lora_atelier.training.results.lora_formats import KeyFormat
from tiny_training import normal, worked_network

KOHYA, COMFYUI, DIFFUSERS = KeyFormat.KOHYA, KeyFormat.COMFYUI, KeyFormat.DIFFUSERS
FLUX = {**FAMILIES["flux"].unet, "mlp_ratio": 4.0}  # diffusers has no other
ALL = {
    **FAMILIES,
    "sd2": Family("SD20", UNET, (4, 8, 8)),
    "flux": replace(FAMILIES["flux"], unet=FLUX),
}
NAMES = ("sd15", "sd2", "sdxl", "sd3", "flux")
"""Those that diffusers has pipelines for that can be built small."""
SPEC = NetworkSpec(network_dim=4, network_alpha=7.0)
REFUSALS = ("lora key not loaded", "NOT LOADED", "ERROR", "WARNING")


@cache
def patcher(name: str) -> Any:
    model = ALL[name].patcher()
    if name == "sd3":  # the host leaves this buffer as the memory was
        with torch.inference_mode():
            places = model.model.diffusion_model.pos_embed
            places.copy_(normal(9, *places.shape))
    return model


@cache
def lora_of(name: str, algorithm: str = "lora") -> dict[str, Tensor]:
    """As Train LoRA gives it."""
    kind = Algorithm(algorithm)
    spec = replace(SPEC, conv_dim=2 if name in NAMES[:3] else 0)
    if kind is not Algorithm.LORA:
        spec = NetworkSpec(algorithm=kind)
    network = worked_network(HostDiffusionModel(patcher(name)), spec).state_dict()
    # Strong enough to be seen in the answer of a model whose residual branches are weak.
    return {k: v * 10 if k.endswith("lora_up.weight") else v.clone() for k, v in network.items()}


@pytest.fixture(autouse=True, scope="module")
def freed() -> Iterator[None]:
    """The host's models must not outlive its modules."""
    yield
    mm.unload_all_models()
    lora_of.cache_clear()
    patcher.cache_clear()


def loaded(name: str, file: Path) -> Any:
    """The MODEL after the host's LoraLoader."""
    with torch.inference_mode():
        lora = comfy.utils.load_torch_file(str(file), safe_load=True)
        return comfy.sd.load_lora_for_models(patcher(name), None, lora, 1.0, 1.0)[0]


def saved(name: str, key_format: KeyFormat, folder: Path, without: str = "nothing") -> Path:
    models = Models(patcher(name))
    file = folder / f"{name}-{key_format.value}.safetensors"
    live = {key: value for key, value in lora_of(name).items() if without not in key}
    written = rewritten(live, models, key_format)
    save_lora(
        file,
        written,
        SavePrecision.FLOAT,
        check=lambda read: check_file(read, live, models, SavePrecision.FLOAT),
    )
    return file


@pytest.mark.parametrize("key_format", list(KeyFormat))
@pytest.mark.parametrize("name", [*NAMES, "qwen"])
def test_lora_loader_takes_every_key(
    name: str, key_format: KeyFormat, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = loaded(name, saved(name, key_format, tmp_path))
    assert [m for m in caplog.messages if any(words in m for words in REFUSALS)] == []
    layers = {key.rpartition(".lora_down")[0] for key in lora_of(name) if ".lora_down" in key}
    assert len(model.patches) == len(layers) > 10


@pytest.mark.parametrize("name", ["chroma", "lumina", "wan", "ltxv"])
def test_families_without_names_of_diffusers_are_refused_in_words(name: str) -> None:
    models = Models(patcher(name))
    lora = rewritten(lora_of(name), models, COMFYUI)
    assert all(key.startswith("diffusion_model.") for key in lora)
    if name != "chroma":  # a kind of Flux
        with pytest.raises(AtelierError, match="diffusers has no layer for .*kohya or comfyui"):
            rewritten(lora_of(name), models, DIFFUSERS)


@pytest.mark.parametrize("name", NAMES)
def test_round_trips_keep_every_tensor(name: str) -> None:
    models, kohya = Models(patcher(name)), lora_of(name)
    comfyui = rewritten(kohya, models, COMFYUI)
    assert not comfyui.keys() & kohya.keys()
    back = rewritten(comfyui, models, KOHYA)
    assert back.keys() == kohya.keys()
    assert all(torch.equal(back[key], kohya[key]) for key in kohya)

    for start in (kohya, comfyui):  # diffusers has no alpha: it goes into the down matrices
        back = rewritten(rewritten(start, models, DIFFUSERS), models, KOHYA)
        assert back.keys() == kohya.keys()
        for key, value in kohya.items():
            if key.endswith("lora_up.weight"):
                torch.testing.assert_close(back[key], value, rtol=0, atol=0)
            if key.endswith("lora_down.weight"):
                scale = float(kohya[key.replace("lora_down.weight", "alpha")]) / value.shape[0]
                torch.testing.assert_close(back[key], value * scale)


def test_every_algorithm_keeps_its_tensors_in_comfyuis_spelling() -> None:
    models = Models(patcher("sd15"))
    for algorithm in Algorithm:
        live = lora_of("sd15", algorithm.value)
        comfyui = rewritten(live, models, COMFYUI)
        check_file(comfyui, live, models, SavePrecision.FLOAT)
        back = rewritten(comfyui, models, KOHYA)
        assert back.keys() == live.keys()
        assert all(torch.equal(back[key], live[key]) for key in live)
        if algorithm is not Algorithm.LORA:
            with pytest.raises(AtelierError, match="plain LoRA alone"):
                rewritten(live, models, DIFFUSERS)


@dataclass(frozen=True)
class Other:
    """The same model in diffusers."""

    pipeline: Any
    ours: Callable[[Any], Tensor]
    """Answer of the host's module to one fixed input."""
    theirs: Callable[[Any], Tensor]
    """Answer of the module of diffusers to the same."""

    @property
    def module(self) -> Any:
        return getattr(self.pipeline, "unet", None) or self.pipeline.transformer


TEXT, POOLED, TIMES = normal(3, 2, 5, 48), normal(4, 2, 32), torch.tensor([100.0, 700.0])


def unet_of(name: str) -> Other:
    xl, host = name == "sdxl", patcher(name).model.diffusion_model
    heads = next(m.heads for m in host.modules() if isinstance(m, CrossAttention))
    module = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=48,
        attention_head_dim=heads,  # diffusers' old name for the number of heads
        use_linear_projection=True,
        **(
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            }
            if xl
            else {}
        ),
    )
    weights = host.state_dict().items()
    weights = {f"model.diffusion_model.{key}": value.clone() for key, value in weights}
    module.load_state_dict(convert_ldm_unet_checkpoint(weights, dict(module.config)))
    x, pooled, sizes = normal(2, 2, 4, 8, 8), normal(6, 2, 1280), torch.full((2, 6), 64.0)
    added = {"text_embeds": pooled, "time_ids": sizes} if xl else None
    y = None
    if xl:
        y = torch.cat([pooled, module.add_time_proj(sizes.flatten()).view(2, -1)], dim=1)
    nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    if xl:
        nothing |= dict.fromkeys(("text_encoder_2", "tokenizer_2"))
        pipeline = StableDiffusionXLPipeline(
            unet=module, scheduler=None, add_watermarker=False, **nothing
        )
    else:
        pipeline = StableDiffusionPipeline(
            **nothing,
            unet=module,
            scheduler=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    return Other(
        pipeline,
        lambda module: module(x, TIMES, context=TEXT, y=y),
        lambda unet: unet(x, TIMES, TEXT, added_cond_kwargs=added).sample,
    )


def from_host(mapping: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of diffusers' module, cut out of the host's."""
    found = {}
    for name, source in mapping.items():
        key, offset, function = (
            (*source, None)[:3]
            if isinstance(source, tuple)
            else (
                *(source, None),
                None,
            )
        )
        if key in weights:
            weight = weights[key] if offset is None else weights[key].narrow(*offset)
            found[name] = (function(weight) if function else weight).clone()
    return found


def flux_of(name: str) -> Other:
    base = patcher(name).model
    module = FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=48,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(8, 12, 12),
    )
    mapping = comfy.utils.flux_to_diffusers(base.model_config.unet_config)
    module.load_state_dict(from_host(mapping, base.diffusion_model.state_dict()))
    x, times, guidance = normal(2, 2, 16, 8, 8), TIMES / 1000, torch.full((2,), 3.5)
    packed = x.view(2, 16, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 16, 64)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    ids = torch.stack([torch.zeros(16), rows.flatten(), columns.flatten()], dim=1)

    def theirs(transformer: Any) -> Tensor:
        answer = transformer(
            hidden_states=packed,
            encoder_hidden_states=TEXT,
            pooled_projections=POOLED,
            timestep=times,
            guidance=guidance,
            img_ids=ids,
            txt_ids=torch.zeros(5, 3),
        ).sample
        return answer.view(2, 4, 4, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)

    nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return Other(
        FluxPipeline(scheduler=None, transformer=module, **nothing),
        lambda host: host(x, times, TEXT, POOLED, guidance),
        theirs,
    )


def sd3_of(name: str) -> Other:
    base = patcher(name).model
    module = SD3Transformer2DModel(
        sample_size=16,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=128,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    mapping = comfy.utils.mmdit_to_diffusers(base.model_config.unet_config)
    module.load_state_dict(from_host(mapping, base.diffusion_model.state_dict()))
    x = normal(2, 2, 16, 8, 8)
    nothing = dict.fromkeys(
        f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")
    )
    return Other(
        StableDiffusion3Pipeline(transformer=module, scheduler=None, vae=None, **nothing),
        lambda host: host(x, TIMES, context=TEXT, y=POOLED),
        lambda transformer: transformer(x, TEXT, POOLED, TIMES).sample,
    )


OTHERS = {"sd3": sd3_of, "flux": flux_of}


@pytest.mark.parametrize(
    ("name", "key_format"),
    # diffusers reads kohya's SD3 keys with none of its loaders.
    [(n, f) for n in NAMES for f in (KOHYA, DIFFUSERS) if (n, f) != ("sd3", KOHYA)],
)
def test_diffusers_answers_as_comfyui_does(
    name: str, key_format: KeyFormat, tmp_path: Path
) -> None:
    other = OTHERS.get(name, unet_of)(name)
    # Of kohya's Flux diffusers cuts linear1 at the widths of the real model, whatever the shapes.
    kohyas_flux = (name, key_format) == ("flux", KOHYA)
    file = saved(name, key_format, tmp_path, "linear1" if kohyas_flux else "nothing")
    with torch.inference_mode():
        mm.unload_all_models()
        mm.load_models_gpu([patcher(name)])
        plain = other.ours(patcher(name).model.diffusion_model).clone()
    with torch.no_grad():
        torch.testing.assert_close(other.theirs(other.module), plain, rtol=1e-3, atol=1e-3)
    with torch.inference_mode():
        model = loaded(name, file)
        mm.unload_all_models()
        mm.load_models_gpu([model])
        ours = other.ours(model.model.diffusion_model).clone()
        mm.unload_all_models()  # while the clone is there to give the weights back
    other.pipeline.load_lora_weights(str(file))
    with torch.no_grad():
        theirs = other.theirs(other.module)
    assert float((ours - plain).norm() / plain.norm()) > 0.01  # it does something
    assert float((theirs - ours).norm() / ours.norm()) < 1e-3


def test_a_file_for_another_model_is_refused() -> None:
    models = Models(patcher("flux"))
    with pytest.raises(AtelierError, match=r"would not load \d+ layers of the file"):
        check_file(lora_of("sd15"), lora_of("sd15"), models, SavePrecision.FLOAT)
    with pytest.raises(AtelierError, match="not in this model"):
        rewritten(lora_of("sd15"), models, COMFYUI)


def test_text_encoders_that_cannot_be_checked_are_said() -> None:
    lora = lora_of("sd15") | {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": torch.ones(())}
    with pytest.raises(AtelierError, match="text encoders too.* wire clip"):
        check_file(lora, lora, Models(patcher("sd15")), SavePrecision.FLOAT)


def lycoris(rows: int, columns: int) -> dict[str, dict[str, Tensor]]:
    """What LyCORIS writes of a layer, of which this pack trains none."""
    small = {"lokr_w1_a": normal(0, 2, 1), "lokr_w1_b": normal(1, 1, 2)}
    rotated = normal(9, 2, rows // 2, rows // 2) / 10
    return {
        "lokr": {**small, "lokr_w2": normal(2, rows // 2, columns // 2)},
        "glora": {
            "a1.weight": normal(3, 4, columns),
            "a2.weight": normal(4, columns, 4),
            "b1.weight": normal(5, 4, columns),
            "b2.weight": normal(6, rows, 4),
        },
        "oft": {
            "oft_blocks": rotated - rotated.transpose(1, 2),
            "rescale": 1 + normal(7, rows, 1) / 10,
        },
    }


@pytest.mark.parametrize("kind", ["lokr", "glora", "oft"])
@pytest.mark.parametrize("key_format", [KOHYA, COMFYUI])
def test_kinds_that_are_not_trained_here_are_translated_and_checked(
    kind: str, key_format: KeyFormat
) -> None:
    models = Models(patcher("sd15"))
    path = next(key for key in models.model.model_state_dict() if key.endswith("attn1.to_q.weight"))
    stem, shape = path.removesuffix(".weight"), models.model.model_state_dict()[path].shape
    live = {f"{stem}.{own}": value for own, value in lycoris(*shape)[kind].items()}
    written = rewritten(live, models, key_format)
    assert {key.removeprefix("lora_unet_") != key for key in written} == {key_format is KOHYA}
    check_file(written, live, models, SavePrecision.FLOAT)
    last = sorted(written)[0]
    with pytest.raises(AtelierError, match="The file is off by"):
        check_file({**written, last: -written[last]}, live, models, SavePrecision.FLOAT)


def test_a_layer_of_the_wrong_shape_is_refused() -> None:
    lora = dict(lora_of("sd15"))
    key = next(key for key in lora if key.endswith("attn1_to_q.lora_up.weight"))
    lora[key] = torch.randn(lora[key].shape[0] + 8, *lora[key].shape[1:])
    with pytest.raises(AtelierError, match="ComfyUI cannot apply the LoRA: ERROR lora"):
        check_file(lora, lora, Models(patcher("sd15")), SavePrecision.FLOAT)


@pytest.mark.parametrize("precision", list(SavePrecision))
def test_a_file_that_does_something_else_is_refused(precision: SavePrecision) -> None:
    models, lora = Models(patcher("sd15")), lora_of("sd15")
    other = dict(lora)
    key = next(key for key in lora if key.endswith("lora_up.weight"))
    other[key] = -lora[key]
    with pytest.raises(AtelierError, match="The file is off by"):
        check_file(other, lora, models, precision)


def test_numbers_too_small_for_fp16_are_refused(tmp_path: Path) -> None:
    models = Models(patcher("sd15"))
    lora = {k: v * 1e-6 if k.endswith("up.weight") else v for k, v in lora_of("sd15").items()}
    for precision in SavePrecision:

        def check(read: Mapping[str, Tensor], precision: SavePrecision = precision) -> None:
            check_file(read, lora, models, precision)

        file = tmp_path / precision.value
        if precision is SavePrecision.FP16:
            with pytest.raises(AtelierError, match="too small for save_precision fp16"):
                save_lora(file, lora, precision, check=check)
        else:
            save_lora(file, lora, precision, check=check)
        assert file.exists() == (precision is not SavePrecision.FP16)
