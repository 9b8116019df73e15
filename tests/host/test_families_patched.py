"""MODELs as other loaders and nodes give them: they are trained as they are sampled, on top of
their own patches, and keep those."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.ops
import comfy.sd
import comfy_extras.nodes_model_advanced as sampling_nodes
import comfy_extras.nodes_model_merging as merging_nodes
import comfy_extras.nodes_torch_compile as compile_nodes
import folder_paths
import nodes
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.torch_helpers import set_torch_compile_wrapper
from safetensors.torch import save_file
from torch import Tensor, nn

from families import FAMILIES
from in_memory import encoded_dataset
from loaded_families import LOADED
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.result import apply_lora
from lora_atelier.training.network.build import NetworkSpec
from lora_atelier.training.results.lora_file import trained_lora
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingRun, start
from sampled_steps import Step, relative
from tiny_training import Recorder, quick_spec, worked_network

TOLERANCE, NOTICED = 1e-5, 3e-4
SD3 = LOADED["sd3.5"]

Changed = Callable[[ModelPatcher], ModelPatcher]


@pytest.fixture(autouse=True, scope="module")
def freed() -> Iterator[None]:
    """The host's models must not outlive its modules."""
    yield
    mm.unload_all_models()


def sampling_of_flux(model: ModelPatcher) -> ModelPatcher:
    return sampling_nodes.ModelSamplingFlux().patch(model, 1.3, 0.6, 1344, 768)[0]


def sampling_of_sd3(model: ModelPatcher) -> ModelPatcher:
    return sampling_nodes.ModelSamplingSD3().patch(model, 5.0)[0]


def sampling_of_auraflow(model: ModelPatcher) -> ModelPatcher:
    return sampling_nodes.ModelSamplingAuraFlow().patch_aura(model, 2.5)[0]


def sampling_of_v_models(model: ModelPatcher) -> ModelPatcher:
    return sampling_nodes.ModelSamplingDiscrete().patch(model, "v_prediction", zsnr=True)[0]


def with_lora(model: ModelPatcher) -> ModelPatcher:
    """After LoraLoader, at less than its full strength."""
    network = worked_network(HostDiffusionModel(model), NetworkSpec(4, 8.0))
    weights = {k: v * 5 if "lora_up" in k else v for k, v in network.state_dict().items()}
    return comfy.sd.load_lora_for_models(model, None, weights, 0.7, 0)[0]


def merged(model: ModelPatcher) -> ModelPatcher:
    """After ModelMergeSimple, with a model whose weights are the same in another order."""
    other = SD3.load({name: weight.flip(0) for name, weight in SD3.state_dict().items()})
    return merging_nodes.ModelMergeSimple().merge(model, other, 0.6)[0]


class Packed(nn.Module):
    """As GGUF loaders bring a Linear: bytes with a scale, and numbers only while it computes."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.step = float(layer.weight.abs().max()) / 127
        levels = (layer.weight / self.step).round().to(torch.int16) + 128
        self.weight = nn.Parameter(levels.to(torch.uint8).flatten(), requires_grad=False)
        self.bias = layer.bias

    def cast_bias_weight(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        levels = self.weight.view(self.out_features, self.in_features).to(like)
        return (levels - 128) * self.step, None if self.bias is None else self.bias.to(like)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, *self.cast_bias_weight(x))


def packed(model: ModelPatcher) -> ModelPatcher:
    for module in list(model.model.diffusion_model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(module, name, Packed(layer))
    model.size = 0  # the patcher remembers how large it was
    return model


def compiled(model: ModelPatcher) -> ModelPatcher:
    """As after TorchCompileModel, with a backend that needs no compiler."""
    assert compile_nodes.set_torch_compile_wrapper is set_torch_compile_wrapper
    model = model.clone()
    set_torch_compile_wrapper(model=model, backend="eager")
    return model


CHANGES: dict[str, tuple[str, Changed, bool]] = {
    "ModelSamplingFlux": ("flux", sampling_of_flux, True),
    "ModelSamplingSD3": ("sd3", sampling_of_sd3, True),
    "ModelSamplingAuraFlow": ("flux", sampling_of_auraflow, True),
    "ModelSamplingDiscrete": ("sd15", sampling_of_v_models, True),
    "LoraLoader": ("flux", with_lora, True),
    "ModelMergeSimple": ("sd3.5", merged, True),
    "GGUF": ("flux", packed, False),
    "TorchCompileModel": ("flux", compiled, False),
}
"""A family, what is done to its MODEL, and whether it gives another picture then."""


def family_of(name: str) -> Any:
    return SD3 if name == "sd3.5" else FAMILIES[name]


def model_of(name: str) -> ModelPatcher:
    return SD3.load() if name == "sd3.5" else FAMILIES[name].patcher()


def trained(step: Step) -> dict[str, Tensor]:
    texts = {f"caption {i}": c for i, c in enumerate(step.family.conditioning(2))}
    data = encoded_dataset(list(step.read_latents()), texts)
    run = TrainingRun(quick_spec(train_batch_size=2), data, HostDiffusionModel(step.patcher))
    with torch.inference_mode():
        return trained_lora(train(start(run), 3, Recorder()))


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_is_trained_as_it_is_sampled_and_keeps_its_change(change: str) -> None:
    name, do, differs = CHANGES[change]
    plain = Step(family_of(name), model_of(name))
    before = plain.sampled
    with torch.inference_mode():
        step = Step(plain.family, do(plain.patcher))
    assert step.difference() < TOLERANCE
    if differs:
        assert relative(step.sampled, before) > NOTICED
    lora = trained(step)
    assert all(w.any() and w.isfinite().all() for n, w in lora.items() if "lora_up" in n)
    if change == "GGUF":  # whose loader brings a patcher of its own
        return
    nothing = {n: torch.zeros_like(w) if "lora_up" in n else w for n, w in lora.items()}
    result = Step(step.family, apply_lora(step.patcher, None, nothing)[0])
    assert relative(result.sampled, step.sampled) < TOLERANCE
    result = Step(step.family, apply_lora(step.patcher, None, lora)[0])
    assert relative(result.sampled, step.sampled) > 5 * TOLERANCE  # of three steps
    assert result.difference() < TOLERANCE


@pytest.fixture(scope="module")
def unet_file() -> str:
    """A file for UNETLoader."""
    folder = Path(folder_paths.get_folder_paths("diffusion_models")[0])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(SD3.state_dict(), folder / "small.safetensors")
    return "small.safetensors"


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])
def test_what_unet_loader_stores_in_fp8_is_trained_as_it_is_sampled(
    unet_file: str, weight_dtype: str
) -> None:
    with torch.inference_mode():
        model = nodes.UNETLoader().load_unet(unet_file, weight_dtype)[0]
    stored = torch.float8_e5m2 if "e5m2" in weight_dtype else torch.float8_e4m3fn
    step = Step(SD3, model)
    assert model.model.diffusion_model.joint_blocks[0].x_block.attn.qkv.weight.dtype is stored
    assert step.difference() < TOLERANCE
    assert relative(step.sampled, Step(SD3, SD3.load()).sampled) > NOTICED
    assert all(w.any() for n, w in trained(step).items() if "lora_up" in n)
