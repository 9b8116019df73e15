"""The adapters: what they compute, how they begin, and how their keys are spelled."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lora_atelier.training.base_model.frozen import FrozenLayer
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.build import (
    Algorithm,
    NetworkSpec,
    build_network,
    describe_network,
    short_number,
)
from lora_atelier.training.network.existing_lora import ExistingLora
from lora_atelier.training.network.targets import TargetLayer


def _random_up(adapter: nn.Module) -> nn.Module:
    nn.init.normal_(adapter.lora_up.weight, generator=torch.Generator().manual_seed(5))
    return adapter


def _build(layers: dict[str, nn.Module], spec: NetworkSpec, seed: int) -> nn.ModuleDict:
    return build_network({name: TargetLayer(layer) for name, layer in layers.items()}, spec, seed)


def _one(layer: nn.Module, dim: int = 3, alpha: float = 6.0, seed: int = 0) -> nn.Module:
    return _build({"layer": layer}, NetworkSpec(dim, alpha), seed)["layer"]


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(5, 7), torch.randn(2, 4, 5)),
        (nn.Conv2d(5, 7, 3, stride=2, padding=1), torch.randn(2, 5, 8, 8)),
    ],
    ids=["linear", "conv"],
)
def test_at_step_0_an_adapter_adds_exactly_nothing(layer, x, lend_weights) -> None:
    assert torch.equal(_one(layer)(FrozenLayer(layer, lend_weights), x), layer(x))


def test_a_linear_adapter_adds_alpha_over_dim_times_up_down_x(lend_weights) -> None:
    layer = nn.Linear(5, 7)
    adapter = _random_up(_one(layer, dim=3, alpha=6.0))
    x = torch.randn(2, 4, 5)
    expected = layer(x) + x @ (adapter.lora_up.weight @ adapter.lora_down.weight).T * (6.0 / 3)
    torch.testing.assert_close(adapter(FrozenLayer(layer, lend_weights), x), expected)


def test_a_conv_adapter_equals_one_convolution_with_the_merged_kernel(lend_weights) -> None:
    layer = nn.Conv2d(5, 7, 3, stride=2, padding=1)
    adapter = _random_up(_one(layer, dim=3, alpha=6.0))
    up = adapter.lora_up.weight[:, :, 0, 0]
    merged = torch.einsum("or,rihw->oihw", up, adapter.lora_down.weight) * (6.0 / 3)
    x = torch.randn(2, 5, 8, 8)
    expected = nn.functional.conv2d(x, layer.weight + merged, layer.bias, stride=2, padding=1)
    torch.testing.assert_close(adapter(FrozenLayer(layer, lend_weights), x), expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Linear(5, 7), (2, 4, 5)), (nn.Conv2d(5, 7, 3, stride=2, padding=1), (2, 5, 8, 8))],
    ids=["linear", "conv"],
)
def test_gradients_equal_those_of_peft(layer, shape, lend_weights) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    adapter = _random_up(_one(layer, dim=3, alpha=6.0))
    x, towards = torch.randn(shape), torch.randn(layer(torch.zeros(shape)).shape)
    (adapter(FrozenLayer(layer, lend_weights), x) * towards).sum().backward()
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
    alone = _build({"b": layer}, spec, 9)["b"]
    among = _build({"a": nn.Linear(8, 8), "b": layer, "c": layer}, spec, 9)
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
    _build(layers, NetworkSpec(), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_the_state_dict_has_the_keys_and_shapes_of_the_file() -> None:
    layers = {"lora_unet_a": nn.Linear(5, 7), "lora_unet_b": nn.Conv2d(4, 6, 3)}
    tensors = _build(layers, NetworkSpec(2, 1.5), 0).state_dict()
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
    network = _build({"a": nn.Linear(5, 7)}, NetworkSpec(2, 1.0), 0)
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    assert names == {"a.lora_down.weight", "a.lora_up.weight"}


def test_adapters_are_float32_whatever_the_layer_is(lend_weights) -> None:
    layer = nn.Linear(5, 7).half()
    adapter = _one(layer)
    assert adapter.lora_down.weight.dtype == torch.float32
    frozen = FrozenLayer(layer, lend_weights)
    assert adapter(frozen, torch.randn(2, 5).bfloat16()).dtype == torch.bfloat16


def test_a_model_without_layers_to_train_is_refused() -> None:
    with pytest.raises(AtelierError, match="No layer of this model"):
        build_network({}, NetworkSpec(), 0)


def _blocks() -> dict[str, TargetLayer]:
    return {
        name: TargetLayer(nn.Linear(8, 8), name, block)
        for name, block in (("a", "down.0"), ("b", "down.0"), ("c", "middle"), ("d", "up.1"))
    }


def test_every_block_has_its_own_rank_and_none_where_it_is_off() -> None:
    spec = NetworkSpec(4, 2.0, block_dims=(6, 0, 3))
    network = build_network(_blocks(), spec, 0)
    ranks = {name: len(adapter.lora_down.weight) for name, adapter in network.items()}
    assert ranks == {"a": 6, "b": 6, "d": 3}
    assert {adapter.scale for adapter in network.values()} == {0.5}


def test_a_wrong_number_of_blocks_is_refused_with_their_names() -> None:
    spec = NetworkSpec(block_dims=(4, 4))
    with pytest.raises(AtelierError, match="2 numbers, .* 3 blocks: down.0, middle, up.1"):
        build_network(_blocks(), spec, 0)


@pytest.mark.parametrize(
    ("choices", "line"),
    [
        ({"network_dim": 4}, "LoRA: 4 layers, 256 parameters, rank 4"),
        ({"block_dims": (8, 0, 16)}, "LoRA: 3 layers, 512 parameters, rank 8 to 16"),
        ({"algorithm": Algorithm.FULL}, "Full difference: 4 layers, 256 parameters"),
        ({"algorithm": Algorithm.OFT, "network_dim": 4}, "OFT: 4 layers, 128 parameters, block si"),
        ({"algorithm": Algorithm.DORA, "network_dim": 4}, "DoRA: 4 layers, 288 parameters, rank 4"),
    ],
)
def test_what_will_be_trained_is_said_in_a_line(choices: dict, line: str) -> None:
    spec = NetworkSpec(**choices)
    assert describe_network(_blocks(), spec).startswith(line)
    network = build_network(_blocks(), spec, 0)
    assert f" {sum(p.numel() for p in network.parameters())} parameters" in line


@pytest.mark.parametrize(
    ("number", "text"),
    [(950, "950"), (3_210, "3.2 k"), (12_800_000, "12.8 M"), (1_100_000_000, "1.1 G")],
)
def test_large_numbers_are_shortened(number: int, text: str) -> None:
    assert short_number(number) == text


def test_describing_a_network_takes_none_of_its_memory() -> None:
    """A full difference of a big model would fill the machine before anyone is told so."""
    with torch.device("meta"):
        layers = {"a": TargetLayer(nn.Linear(10**6, 10**6))}
    line = describe_network(layers, NetworkSpec(algorithm=Algorithm.FULL))
    assert line == "Full difference: 1 layers, 1000.0 G parameters"


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_network_continues_from_its_own_file(algorithm: Algorithm) -> None:
    spec = NetworkSpec(algorithm=algorithm)
    layers = {"a": nn.Linear(32, 48), "b": nn.Conv2d(8, 8, 3)}
    trained = _build(layers, spec, 0)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    file = ExistingLora({k: v.half() for k, v in trained.state_dict().items()}, "old")
    starts = {name: TargetLayer(layers[name], start=s) for name, s in file.layers().items()}
    again = build_network(starts, NetworkSpec(algorithm=algorithm, existing=file), 1).state_dict()
    assert again.keys() == trained.state_dict().keys()
    for key, value in again.items():
        torch.testing.assert_close(value, file.tensors[key].float(), rtol=0, atol=0)


@pytest.mark.parametrize("algorithm", [a for a in Algorithm if a is not Algorithm.LORA])
def test_a_lora_does_not_continue_as_something_else(algorithm: Algorithm) -> None:
    layer = nn.Linear(32, 48)
    file = ExistingLora(_build({"a": layer}, NetworkSpec(4, 4.0), 0).state_dict(), "old")
    layers = {"a": TargetLayer(layer, start=file.layers()["a"])}
    with pytest.raises(AtelierError, match=f'"old": .* not what algorithm {algorithm.value} trai'):
        build_network(layers, NetworkSpec(algorithm=algorithm, existing=file), 0)


def test_a_lora_for_other_widths_is_refused() -> None:
    file = ExistingLora(_build({"a": nn.Linear(4, 4)}, NetworkSpec(2, 2.0), 0).state_dict(), "old")
    layers = {"a": TargetLayer(nn.Linear(4, 6), start=file.layers()["a"])}
    with pytest.raises(AtelierError, match="for another model cannot be continued"):
        build_network(layers, NetworkSpec(existing=file), 0)


def test_a_difference_for_a_layer_of_other_sides_is_refused() -> None:
    """As many numbers, but not the same layer."""
    file = ExistingLora({"a.diff": torch.ones(4, 6)}, "old")
    layers = {"a": TargetLayer(nn.Linear(4, 6), start=file.layers()["a"])}
    with pytest.raises(AtelierError, match='"old": for layer a it holds diff, which is not'):
        build_network(layers, NetworkSpec(algorithm=Algorithm.FULL, existing=file), 0)


def test_a_1x1_convolution_continues_from_a_matrix() -> None:
    layer = nn.Conv2d(8, 6, 1)
    file = ExistingLora(
        {"a.lora_down.weight": torch.ones(2, 8), "a.lora_up.weight": torch.ones(6, 2)}, "old"
    )
    layers = {"a": TargetLayer(layer, start=file.layers()["a"])}
    adapter = build_network(layers, NetworkSpec(existing=file), 0)["a"]
    assert adapter.delta_weight().shape == (6, 8, 1, 1)
    assert (adapter.delta_weight() == 2).all()
