"""The adapters: what they compute, how they begin, and how their keys are spelled."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network import LoRAConv2d, LoRALinear, NetworkSpec, build_network


def _random_up(adapter: nn.Module) -> nn.Module:
    nn.init.normal_(adapter.lora_up.weight, generator=torch.Generator().manual_seed(5))
    return adapter


def _one(layer: nn.Module, dim: int = 3, alpha: float = 6.0, seed: int = 0) -> nn.Module:
    return build_network({"layer": layer}, NetworkSpec(dim, alpha), seed)["layer"]


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(5, 7), torch.randn(2, 4, 5)),
        (nn.Conv2d(5, 7, 3, stride=2, padding=1), torch.randn(2, 5, 8, 8)),
    ],
    ids=["linear", "conv"],
)
def test_at_step_0_an_adapter_adds_exactly_nothing(layer: nn.Module, x: Tensor) -> None:
    added = _one(layer)(x)
    assert added.shape == layer(x).shape
    assert torch.count_nonzero(added) == 0


def test_a_linear_adapter_adds_alpha_over_dim_times_up_down_x() -> None:
    adapter = _random_up(_one(nn.Linear(5, 7), dim=3, alpha=6.0))
    x = torch.randn(2, 4, 5)
    expected = x @ (adapter.lora_up.weight @ adapter.lora_down.weight).T * (6.0 / 3)
    torch.testing.assert_close(adapter(x), expected)


def test_a_conv_adapter_equals_one_convolution_with_the_merged_kernel() -> None:
    layer = nn.Conv2d(5, 7, 3, stride=2, padding=1)
    adapter = _random_up(_one(layer, dim=3, alpha=6.0))
    up = adapter.lora_up.weight[:, :, 0, 0]
    merged = torch.einsum("or,rihw->oihw", up, adapter.lora_down.weight) * (6.0 / 3)
    x = torch.randn(2, 5, 8, 8)
    expected = nn.functional.conv2d(x, merged, None, stride=2, padding=1)
    torch.testing.assert_close(adapter(x), expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(5, 7), (2, 4, 5)), (nn.Conv2d(5, 7, 3, stride=2, padding=1), (2, 5, 8, 8))],
    ids=["linear", "conv"],
)
def test_gradients_equal_those_of_peft(layer: nn.Module, shape: tuple[int, ...]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    adapter = _random_up(_one(layer, dim=3, alpha=6.0))
    x, towards = torch.randn(shape), torch.randn(layer(torch.zeros(shape)).shape)
    ((layer(x).detach() + adapter(x)) * towards).sum().backward()
    config = LoraConfig(r=3, lora_alpha=6, target_modules=["0"], lora_dropout=0.0)
    theirs = inject_adapter_in_model(config, nn.Sequential(layer))
    down, up = theirs[0].lora_A["default"].weight, theirs[0].lora_B["default"].weight
    with torch.no_grad():
        down.copy_(adapter.lora_down.weight)
        up.copy_(adapter.lora_up.weight)
    (theirs(x) * towards).sum().backward()
    torch.testing.assert_close(adapter.lora_down.weight.grad, down.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(adapter.lora_up.weight.grad, up.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [(nn.Linear(100, 7), 100), (nn.Conv2d(10, 7, 3), 90)],
    ids=["linear", "conv"],
)
def test_down_starts_uniform_within_one_over_the_root_of_its_inputs(
    layer: nn.Module, fan_in: int
) -> None:
    """Kaiming with a = √5: √(2 / (1 + 5)) · √3 / √fan_in = 1 / √fan_in."""
    down = _one(layer, dim=64).lora_down.weight
    bound = 1 / math.sqrt(fan_in)
    assert down.abs().max() <= bound
    assert down.abs().max() > 0.99 * bound
    assert down.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_choosing_other_layers_does_not_change_how_a_layer_begins() -> None:
    layer, spec = nn.Linear(5, 7), NetworkSpec(3, 3.0)
    alone = build_network({"b": layer}, spec, 9)["b"]
    among = build_network({"a": nn.Linear(8, 8), "b": layer, "c": layer}, spec, 9)
    assert torch.equal(alone.lora_down.weight, among["b"].lora_down.weight)
    assert not torch.equal(among["b"].lora_down.weight, among["c"].lora_down.weight)


def test_the_seed_decides_how_a_layer_begins() -> None:
    layer = nn.Linear(5, 7)
    first, again, other = (_one(layer, seed=s).lora_down.weight for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_global_stream_is_left_as_it_was() -> None:
    layers = {"a": nn.Linear(5, 7), "b": nn.Conv2d(5, 7, 1)}
    before = torch.get_rng_state()
    build_network(layers, NetworkSpec(), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_the_state_dict_has_the_keys_and_shapes_of_the_file() -> None:
    layers = {"lora_unet_a": nn.Linear(5, 7), "lora_unet_b": nn.Conv2d(4, 6, 3)}
    tensors = build_network(layers, NetworkSpec(2, 1.5), 0).state_dict()
    assert {key: tuple(value.shape) for key, value in tensors.items()} == {
        "lora_unet_a.lora_down.weight": (2, 5),
        "lora_unet_a.lora_up.weight": (7, 2),
        "lora_unet_a.alpha": (),
        "lora_unet_b.lora_down.weight": (2, 4, 3, 3),
        "lora_unet_b.lora_up.weight": (6, 2, 1, 1),
        "lora_unet_b.alpha": (),
    }
    assert tensors["lora_unet_a.alpha"].item() == 1.5
    assert {value.dtype for value in tensors.values()} == {torch.float32}


def test_only_up_and_down_are_trained() -> None:
    network = build_network({"a": nn.Linear(5, 7)}, NetworkSpec(2, 1.0), 0)
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    assert names == {"a.lora_down.weight", "a.lora_up.weight"}


def test_adapters_are_float32_whatever_the_layer_is() -> None:
    adapter = _one(nn.Linear(5, 7).half())
    assert adapter.lora_down.weight.dtype == torch.float32
    assert adapter(torch.randn(2, 5).bfloat16()).dtype == torch.bfloat16


def test_each_kind_of_layer_gets_its_kind_of_adapter() -> None:
    assert type(_one(nn.Linear(5, 7))) is LoRALinear
    assert type(_one(nn.Conv2d(5, 7, 1))) is LoRAConv2d


@pytest.mark.parametrize("dim", [0, -4, 1025, 8.0, math.nan])
def test_a_rank_that_is_no_whole_number_in_range_is_refused(dim: float) -> None:
    with pytest.raises(AtelierError, match=f"network_dim is {dim}: .* from 1 to 1024"):
        NetworkSpec(network_dim=dim)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_an_alpha_that_is_no_positive_number_is_refused(alpha: float) -> None:
    with pytest.raises(AtelierError, match=f"network_alpha is {alpha}"):
        NetworkSpec(network_alpha=alpha)


def test_a_model_without_layers_to_train_is_refused() -> None:
    with pytest.raises(AtelierError, match="No layer of this model"):
        build_network({}, NetworkSpec(), 0)
