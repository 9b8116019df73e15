"""Every algorithm on every choice of layers gives in ComfyUI what training saw; and continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.sd
import comfy.supported_models
import comfy.utils
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from host_configs import flux_config
from in_memory import PLACEMENT
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.session import describe
from lora_atelier.training.network.build import Algorithm, NetworkSpec, build_network
from lora_atelier.training.network.existing_lora import ExistingLora
from lora_atelier.training.network.targets import TargetModules
from lora_atelier.training.results.lora_file import SavePrecision, save_lora
from lora_atelier.training.runs.run import start
from tiny_training import (
    CAPTIONS,
    Parts,
    encode,
    load_parts,
    make_run,
    normal,
    predicting,
    quick_spec,
    worked_network,
)

REFUSALS = ("lora key not loaded", "NOT LOADED", "ERROR", "SHAPE MISMATCH")
SPECS = {
    "lora": NetworkSpec(4, 7.0),
    "rsLoRA": NetworkSpec(4, 2.0, rs_lora=True),
    "locon": NetworkSpec(4, 7.0, conv_dim=3, conv_alpha=2.0),
    "dora": NetworkSpec(4, 7.0, Algorithm.DORA),
    "dora with convolutions": NetworkSpec(4, 7.0, Algorithm.DORA, conv_dim=3),
    "loha": NetworkSpec(4, 2.0, Algorithm.LOHA),
    "loha with convolutions": NetworkSpec(4, 2.0, Algorithm.LOHA, conv_dim=2),
    "lokr": NetworkSpec(4, 7.0, Algorithm.LOKR),
    "lokr, full, with convolutions": NetworkSpec(
        512, 7.0, Algorithm.LOKR, conv_dim=512, lokr_factor=8
    ),
    "full": NetworkSpec(algorithm=Algorithm.FULL, target_modules=TargetModules.ATTENTION),
    "oft": NetworkSpec(16, algorithm=Algorithm.OFT),
    "boft": NetworkSpec(16, algorithm=Algorithm.BOFT, target_modules=TargetModules.ATTENTION),
    "attention": NetworkSpec(4, target_modules=TargetModules.ATTENTION),
    "all_linear": NetworkSpec(4, target_modules=TargetModules.ALL_LINEAR),
    "all_linear_conv": NetworkSpec(4, target_modules=TargetModules.ALL_LINEAR_CONV),
    "oft everywhere": NetworkSpec(
        4, algorithm=Algorithm.OFT, target_modules=TargetModules.ALL_LINEAR_CONV
    ),
    "regex": NetworkSpec(
        4, target_modules=TargetModules.REGEX, target_regex=r"attn2\.to_k|up_blocks_3"
    ),
    "block_dims": NetworkSpec(4, block_dims=(8, 0, 2, 4)),
}


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def encoded(parts: Parts) -> dict[str, Any]:
    return encode(parts.clip, CAPTIONS)


def load_stock(model: Any, tensors: dict[str, Tensor]) -> Any:
    """The MODEL after the host's LoraLoader."""
    with torch.inference_mode():
        return comfy.sd.load_lora_for_models(model, None, dict(tensors), 1.0, 1.0)[0]


def prediction(model: Any, encoded: dict[str, Any], network: Any = None) -> Tensor:
    with predicting(HostDiffusionModel(model), network) as predict:
        x, sigmas = normal(60, 4, 4, 8, 8) * 2, torch.tensor([0.3, 1.0, 2.0, 6.0])
        return predict(x, sigmas, list(encoded.values()), [PLACEMENT] * 4).detach()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def refused(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [m for m in caplog.messages if any(words in m for words in REFUSALS)]


@pytest.fixture(scope="module")
def base(parts: Parts, encoded: dict[str, Any]) -> Tensor:
    """What the model answers by itself."""
    return prediction(parts.model, encoded)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_stock_loader_takes_every_key(
    spec: NetworkSpec, parts: Parts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = worked_network(HostDiffusionModel(parts.model), spec)
    save_lora(tmp_path / "a.safetensors", network.state_dict(), SavePrecision.FLOAT)
    file = comfy.utils.load_torch_file(str(tmp_path / "a.safetensors"), safe_load=True)
    assert len(load_stock(parts.model, file).patches) == len(network)
    assert refused(caplog) == []


@pytest.mark.parametrize("name", ["locon", "dora with convolutions", "lokr", "oft"])
def test_the_model_with_the_file_on_it_answers_as_it_did_in_training(
    name: str, parts: Parts, encoded: dict[str, Any], base: Tensor, caplog: Any
) -> None:
    network = worked_network(HostDiffusionModel(parts.model), SPECS[name])
    trained = prediction(parts.model, encoded, network)
    patched = load_stock(parts.model, network.state_dict())
    assert relative(prediction(patched, encoded), trained) < 1e-4
    assert relative(trained, base) > 0.003  # it does something
    assert refused(caplog) == []


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_layer_equals_the_weight_that_comfyui_makes_of_the_file(
    spec: NetworkSpec, parts: Parts
) -> None:
    model = HostDiffusionModel(parts.model)
    network = worked_network(model, spec)
    keys = comfy.lora.model_lora_keys_unet(parts.model.model, {})
    patches = comfy.lora.load_lora(network.state_dict(), keys)
    weights = parts.model.model.state_dict()
    with predicting(model, network):
        for i, (name, target) in enumerate(model.layers(spec).items()):
            if name not in network:
                continue
            key = f"diffusion_model.{target.path}.weight"
            patch = (1.0, patches[key], 1.0, None, None)
            merged = comfy.lora.calculate_weight([patch], weights[key].clone(), key)
            layer = target.layer
            shape = (merged.shape[1],) if merged.ndim == 2 else (merged.shape[1], 6, 6)
            x = normal(80 + i, 2, *shape)
            theirs = (
                nn.functional.linear(x, merged)
                if merged.ndim == 2
                else nn.functional.conv2d(x, merged, None, layer.stride, layer.padding)
            )
            bias = (
                0 if layer.bias is None else layer.bias.clone().view(-1, *[1] * (merged.ndim - 2))
            )
            ours = layer(x).detach()
            assert relative(ours, (theirs + bias).detach()) <= 1e-5, name


def test_locon_adds_the_convolutions_of_the_blocks_under_their_names(parts: Parts) -> None:
    model = HostDiffusionModel(parts.model)
    plain, locon = (set(model.layers(NetworkSpec(conv_dim=n))) for n in (0, 4))
    assert len(plain) == 48
    assert locon - plain == {
        *("lora_unet_down_blocks_0_resnets_0_conv1", "lora_unet_down_blocks_0_resnets_0_conv2"),
        *("lora_unet_mid_block_resnets_0_conv1", "lora_unet_mid_block_resnets_0_conv2"),
        *("lora_unet_mid_block_resnets_1_conv1", "lora_unet_mid_block_resnets_1_conv2"),
        *("lora_unet_up_blocks_0_resnets_0_conv1", "lora_unet_up_blocks_0_resnets_0_conv2"),
        *("lora_unet_up_blocks_0_resnets_1_conv1", "lora_unet_up_blocks_0_resnets_1_conv2"),
    }


def test_the_node_says_how_much_is_trained(parts: Parts) -> None:
    text = describe(parts.model, parts.clip, quick_spec(network=NetworkSpec(4, 2.0)))
    network = build_network(
        HostDiffusionModel(parts.model).layers(NetworkSpec(4)), NetworkSpec(4), 0
    )
    count = sum(p.numel() for p in network.parameters())
    assert text == f"LoRA: 48 layers, {count / 1000:.1f} k parameters, rank 4"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (NetworkSpec(block_dims=(4, 4, 4)), "3 numbers, .* 4 blocks: input_blocks.1, middle_block"),
        (
            NetworkSpec(target_modules=TargetModules.REGEX, target_regex="attn7"),
            '"attn7", which matches no layer',
        ),
        (NetworkSpec(existing=ExistingLora({}, "empty")), '"empty" holds nothing'),
        (
            NetworkSpec(existing=ExistingLora({"lora_unet_x.diff": torch.zeros(2)}, "other")),
            '"other": 1 of its 1 layers cannot be continued on this model: lora_unet_x',
        ),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    spec: NetworkSpec, words: str, parts: Parts
) -> None:
    with pytest.raises(AtelierError, match=words):
        describe(parts.model, parts.clip, quick_spec(network=spec))


def test_dora_begins_as_the_model_with_the_loras_already_on_it(
    parts: Parts, encoded: dict[str, Any], base: Tensor
) -> None:
    """Its lengths are those of the patched weights, not of the file on disk."""
    first = worked_network(HostDiffusionModel(parts.model), NetworkSpec(4, 40.0)).state_dict()
    patched = load_stock(parts.model, first)
    spec = quick_spec(network=NetworkSpec(4, 4.0, Algorithm.DORA))
    run = make_run(patched, encoded, spec)
    network = run.new_network()
    network.load_state_dict(start(run).network)
    expected = prediction(patched, encoded)
    assert relative(prediction(patched, encoded, network), expected) < 1e-4
    assert relative(expected, base) > 0.01


def with_names(parts: Parts, tensors: dict[str, Tensor], spelling: str) -> dict[str, Tensor]:
    """A file of ours under the names of other programs."""
    keys = comfy.lora.model_lora_keys_unet(parts.model.model, {})
    diffusers = {
        key: name for name, key in keys.items() if name.startswith("unet.") and isinstance(key, str)
    }
    renamed = {}
    for key, value in tensors.items():
        layer, _, own = key.partition(".")
        path = keys[layer].removesuffix(".weight")
        processor = diffusers[keys[layer]]
        plain = processor.replace(".processor.to_", ".to_").removeprefix("unet.")
        plain += ".0" if plain.endswith("to_out") else ""
        peft = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}.get(
            own, own
        )
        side = {"lora_down.weight": "down.weight", "lora_up.weight": "up.weight"}.get(own, own)
        renamed |= {
            "ldm": {
                f"lora_unet_{path.removeprefix('diffusion_model.').replace('.', '_')}.{own}": value
            },
            "comfyui": {f"{path}.{own}": value},
            "comfyui, peft": {f"{path}.{peft}": value},
            "diffusers": {
                f"{processor}_lora.{side}" if side != own else f"{processor}.{own}": value
            },
            "diffusers, peft": {f"unet.{plain}.{peft}": value},
            "peft": {f"base_model.model.{plain}.{peft}": value},
        }[spelling]
    return renamed


SPELLINGS = ("ldm", "comfyui", "comfyui, peft", "diffusers", "diffusers, peft", "peft")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_lora_under_any_programs_names_is_continued(spelling: str, parts: Parts) -> None:
    tensors = worked_network(HostDiffusionModel(parts.model), NetworkSpec(3, 2.0)).state_dict()
    file = with_names(parts, tensors, spelling)
    assert len(file) == len(tensors) and file.keys() != tensors.keys()
    spec = NetworkSpec(existing=ExistingLora(file, "old"))
    again = build_network(HostDiffusionModel(parts.model).layers(spec), spec, 0).state_dict()
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("name", ["locon", "dora", "lokr", "block_dims"])
def test_step_0_of_a_continued_lora_is_the_stock_loader_with_that_file(
    name: str, parts: Parts, encoded: dict[str, Any], base: Tensor
) -> None:
    old = SPECS[name]
    tensors = worked_network(HostDiffusionModel(parts.model), old).state_dict()
    tensors = {key: value.half() for key, value in tensors.items()}
    tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"] = torch.tensor(1.0)
    spec = NetworkSpec(algorithm=old.algorithm, existing=ExistingLora(tensors, "old"))
    run = make_run(parts.model, encoded, quick_spec(network=spec))
    network = run.new_network()
    network.load_state_dict(start(run).network)
    expected = prediction(load_stock(parts.model, tensors), encoded)
    assert relative(prediction(parts.model, encoded, network), expected) < 1e-4
    assert relative(expected, base) > 0.003
    text = describe(parts.model, parts.clip, run.spec)
    assert text.endswith('continued from "old" (1 keys of text encoders are not continued)')


def test_part_of_a_file_that_fits_no_layer_is_refused_by_name(parts: Parts) -> None:
    tensors = worked_network(HostDiffusionModel(parts.model), NetworkSpec(3)).state_dict()
    stray = {f"lora_unet_stray.{end}": torch.ones(3, 3) for end in ("lora_down.weight",)}
    spec = NetworkSpec(existing=ExistingLora({**tensors, **stray}, "old"))
    with pytest.raises(AtelierError, match="1 of its 49 layers .*: lora_unet_stray"):
        HostDiffusionModel(parts.model).layers(spec)


FLUX = flux_config(
    image_model="flux",
    in_channels=16,
    out_channels=16,
    vec_in_dim=32,
    context_in_dim=48,
    hidden_size=64,
    mlp_ratio=4.0,
    num_heads=2,
    depth=1,
    depth_single_blocks=1,
    axes_dim=[8, 12, 12],
    theta=10000,
    patch_size=2,
    qkv_bias=True,
    guidance_embed=True,
    dtype=torch.float32,
)


@pytest.fixture(scope="module")
def flux() -> ModelPatcher:
    """The host's own Flux class with a few blocks of a few channels."""
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(6)
        base = comfy.model_base.Flux(comfy.supported_models.Flux(FLUX))
        for parameter in base.parameters():  # the host leaves them as the memory was
            parameter.copy_(torch.randn_like(parameter) / 8)
    cpu = torch.device("cpu")
    return ModelPatcher(base, load_device=cpu, offload_device=cpu)


def test_a_diffusers_lora_of_flux_whose_layers_are_fused_here_is_continued(flux: Any) -> None:
    """to_q, to_k, to_v and proj_mlp are rows of one layer: its ΔW is the host's, to the digit."""
    single, double = "single_transformer_blocks.0", "transformer_blocks.0"
    rows = {f"{single}.attn.to_q": 64, f"{single}.proj_mlp": 256, f"{double}.attn.to_v": 64}
    file = {}
    for i, (name, width) in enumerate({**rows, f"{double}.attn.to_out.0": 64}.items()):
        file[f"transformer.{name}.lora_A.weight"] = normal(i, 2 + i, 64)
        file[f"transformer.{name}.lora_B.weight"] = normal(10 + i, width, 2 + i)
    spec = NetworkSpec(existing=ExistingLora(file, "old"))
    layers = HostDiffusionModel(flux).layers(spec)
    network = build_network(layers, spec, 0)
    assert [target.path for target in layers.values()] == [
        "double_blocks.0.img_attn.qkv",
        "double_blocks.0.img_attn.proj",
        "single_blocks.0.linear1",
    ]
    patched = load_stock(flux, file)
    for name, target in layers.items():
        key = f"diffusion_model.{target.path}.weight"
        zero = torch.zeros(target.layer.weight.shape)
        expected = comfy.lora.calculate_weight(patched.patches[key], zero, key)
        assert relative(network[name].delta_weight().detach(), expected) <= 1e-5


def test_part_of_a_layer_that_is_no_plain_lora_is_refused(flux: Any) -> None:
    name = "transformer.transformer_blocks.0.attn.to_q"
    file = {f"{name}.lora_A.weight": normal(1, 2, 64), f"{name}.lora_B.weight": normal(2, 64, 2)}
    file[f"{name}.dora_scale"] = torch.ones(1, 64)
    spec = NetworkSpec(algorithm=Algorithm.DORA, existing=ExistingLora(file, "old"))
    with pytest.raises(AtelierError, match=f"{name} is a part of a layer here"):
        HostDiffusionModel(flux).layers(spec)


def test_a_layer_that_a_file_holds_twice_is_refused(parts: Parts) -> None:
    tensors = worked_network(HostDiffusionModel(parts.model), NetworkSpec(3)).state_dict()
    both = {**tensors, **with_names(parts, tensors, "comfyui")}
    spec = NetworkSpec(existing=ExistingLora(both, "old"))
    with pytest.raises(AtelierError, match="holds the layer .* more than once"):
        HostDiffusionModel(parts.model).layers(spec)


def test_on_flux_attention_means_the_fused_layers_too(flux: Any) -> None:
    chosen = HostDiffusionModel(flux).layers(NetworkSpec(target_modules=TargetModules.ATTENTION))
    assert [target.path for target in chosen.values()] == [
        "double_blocks.0.img_attn.qkv",
        "double_blocks.0.img_attn.proj",
        "double_blocks.0.txt_attn.qkv",
        "double_blocks.0.txt_attn.proj",
        "single_blocks.0.linear1",
        "single_blocks.0.linear2",
    ]
