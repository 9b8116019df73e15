"""Every algorithm gives in training what ComfyUI makes of its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lora_atelier.training.base_model.frozen import FrozenLayer
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.adapters.base import Adapter
from lora_atelier.training.network.adapters.dora import DoRA, column_norms
from lora_atelier.training.network.adapters.full import FullDiff
from lora_atelier.training.network.adapters.loha import LoHa
from lora_atelier.training.network.adapters.lokr import LoKr, factors
from lora_atelier.training.network.adapters.lora import LoRA
from lora_atelier.training.network.adapters.oft import BOFT, OFT

Make = Callable[[nn.Module], Adapter]


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


ALGORITHMS: dict[str, Make] = {
    "lora": lambda layer: LoRA(layer, 4, 6.0, rng()),
    "dora": lambda layer: DoRA(layer, 4, 6.0, rng()),
    "loha": lambda layer: LoHa(layer, 4, 6.0, rng()),
    "lokr low rank": lambda layer: LoKr(layer, 4, 6.0, rng()),
    "lokr full": lambda layer: LoKr(layer, 400, 6.0, rng()),
    "lokr factor 8": lambda layer: LoKr(layer, 4, 6.0, rng(), factor=8),
    "full": FullDiff,
    "oft": lambda layer: OFT(layer, 16),
    "boft": lambda layer: BOFT(layer, 16),
}
DENSE = [name for name in ALGORITHMS if "oft" not in name]
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(64, 96), (2, 5, 64)),
    "without bias": (lambda: nn.Linear(64, 64, bias=False), (2, 5, 64)),
    "conv": (lambda: nn.Conv2d(16, 32, 3, stride=2, padding=1), (2, 16, 8, 8)),
}


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    make, shape = LAYERS[request.param]
    return make(), torch.randn(shape)


@pytest.fixture(params=ALGORITHMS)
def make(request: pytest.FixtureRequest) -> Make:
    return ALGORITHMS[request.param]


def worked(adapter: Adapter) -> Adapter:
    """As after a long training: no factor is zero."""
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng()) * 0.2)
    return adapter


def loaded_in_comfy(adapter: Adapter, layer: nn.Module, comfy: Path) -> Tensor:
    """The layer's weight after ComfyUI's loader put the adapter's file on it."""
    import comfy.lora

    file = {f"lora_unet_x.{key}": value for key, value in adapter.state_dict().items()}
    patches = comfy.lora.load_lora(file, {"lora_unet_x": "x.weight"})
    weight = layer.weight.detach().clone()
    return comfy.lora.calculate_weight([(1.0, patches["x.weight"], 1.0, None, None)], weight, "x")


def with_weight(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, layer.bias)
    return nn.functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


def test_it_begins_as_the_layer_itself(make: Make, case, lend_weights) -> None:
    layer, x = case
    adapter, frozen = make(layer), FrozenLayer(layer, lend_weights)
    adapter.begin(frozen)
    y = adapter(frozen, x)
    torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=1e-5)


def test_comfyui_makes_the_same_of_its_file(make: Make, case, lend_weights, comfy: Path) -> None:
    layer, x = case
    adapter = worked(make(layer))
    ours = adapter(FrozenLayer(layer, lend_weights), x).detach()
    theirs = with_weight(layer, x, loaded_in_comfy(adapter, layer, comfy)).detach()
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    assert (ours - layer(x)).norm() > 1e-3 * theirs.norm()


def test_after_one_step_of_descent_it_is_no_longer_the_layer(make: Make, case, lend_weights):
    """Not stuck at a point where every gradient is zero."""
    layer, x = case
    adapter, frozen = make(layer), FrozenLayer(layer, lend_weights)
    adapter.begin(frozen)
    before = adapter(frozen, x)
    towards = torch.randn(before.shape, generator=rng())
    (before * towards).sum().backward()
    assert layer.weight.grad is None
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter -= 0.01 * parameter.grad / (parameter.grad.norm() + 1e-12)
    assert (adapter(frozen, x) * towards).sum() < (before * towards).sum()


@pytest.mark.parametrize("name", DENSE)
def test_max_norm_shortens_the_update_to_the_limit_and_no_further(name: str, case) -> None:
    layer, _ = case
    adapter = worked(ALGORITHMS[name](layer))
    update = adapter.delta_weight().detach().clone()
    length = float(update.norm())
    assert not adapter.limit_norm(length * 1.01)
    assert torch.equal(adapter.delta_weight(), update)
    assert adapter.limit_norm(length / 3)
    torch.testing.assert_close(adapter.delta_weight().detach(), update / 3)


def test_a_module_that_drops_out_leaves_the_layer_alone(make: Make, case, lend_weights) -> None:
    layer, x = case
    adapter, frozen = worked(make(layer)), FrozenLayer(layer, lend_weights)
    adapter.module_dropout = 0.25
    torch.manual_seed(3)
    with torch.no_grad():
        dropped = [torch.equal(adapter(frozen, x), frozen(x)) for _ in range(400)]
    assert 60 <= sum(dropped) <= 140  # 100 ± 4.6 deviations


def test_dropped_ranks_differ_between_pictures_and_the_rest_is_scaled_up(case, lend_weights):
    layer, x = case
    x = x[:1].expand(600, *x.shape[1:])
    adapter, frozen = worked(LoRA(layer, 4, 6.0, rng())), FrozenLayer(layer, lend_weights)
    with torch.no_grad():
        whole = (adapter(frozen, x[:1]) - frozen(x[:1]))[0]
        adapter.rank_dropout = 0.5
        torch.manual_seed(4)
        sides = adapter(frozen, x) - frozen(x)
    kinds = {tuple(side.flatten()[:8].tolist()) for side in sides}
    assert 8 <= len(kinds) <= 16  # subsets of four ranks
    assert (sides.mean(0) - whole).norm() < 0.15 * whole.norm()


def test_neuron_dropout_keeps_the_mean(case, lend_weights) -> None:
    layer, x = case
    x = x[:1].expand(600, *x.shape[1:])
    adapter, frozen = worked(LoRA(layer, 4, 6.0, rng())), FrozenLayer(layer, lend_weights)
    with torch.no_grad():
        whole = (adapter(frozen, x[:1]) - frozen(x[:1]))[0]
        adapter.network_dropout = 0.5
        torch.manual_seed(4)
        sides = adapter(frozen, x) - frozen(x)
    assert not torch.equal(sides[0], sides[1])
    assert (sides.mean(0) - whole).norm() < 0.15 * whole.norm()


@pytest.mark.parametrize("block_size", [2, 8, 16, 1000])
def test_rotations_keep_the_length_of_the_outputs(block_size: int) -> None:
    for kind in (OFT, BOFT):
        adapter = worked(kind(nn.Linear(8, 96), block_size))
        y = torch.randn(5, 96)
        torch.testing.assert_close(adapter.rotate(y).norm(dim=1), y.norm(dim=1))


def test_boft_reaches_further_than_its_block() -> None:
    """Every output depends on every other, though a block holds six of 96."""
    adapter = worked(BOFT(nn.Linear(8, 96), 8))
    assert adapter.oft_blocks.shape == (5, 16, 6, 6)
    reach = adapter.rotate(torch.eye(96)) != 0
    assert reach.all()


def test_gradients_of_dora_are_those_of_the_dense_weight_whose_norm_is_held(case, lend_weights):
    """DoRA's paper, section 4.3: the norm counts as a constant."""
    layer, x = case
    adapter = worked(DoRA(layer, 4, 6.0, rng()))
    towards = torch.randn(layer(x).shape, generator=rng())
    x.requires_grad_(True)
    y = adapter(FrozenLayer(layer, lend_weights), x)
    ours = torch.autograd.grad((y * towards).sum(), [x, *adapter.parameters()])
    dense = layer.weight.detach() + adapter.delta_weight()
    columns = dense.transpose(0, 1).flatten(1).norm(dim=1).detach()
    columns = columns.view(1, -1, *[1] * (dense.ndim - 2))
    expected = with_weight(layer, x, adapter.dora_scale * dense / columns)
    theirs = torch.autograd.grad((expected * towards).sum(), [x, *adapter.parameters()])
    for our, their in zip(ours, theirs, strict=True):
        assert (our - their).norm() <= 1e-5 * their.norm()


def test_dora_begins_with_the_length_of_what_leaves_each_input(case, lend_weights) -> None:
    layer, _ = case
    adapter = DoRA(layer, 4, 6.0, rng())
    adapter.begin(FrozenLayer(layer, lend_weights))
    lengths = [layer.weight[:, i].norm().item() for i in range(layer.weight.shape[1])]
    assert adapter.dora_scale.flatten().tolist() == pytest.approx(lengths, rel=1e-5)
    assert adapter.dora_scale.shape == (1, len(lengths), *[1] * (layer.weight.ndim - 2))
    assert torch.equal(adapter.dora_scale, column_norms(layer.weight))


def test_dora_refuses_a_layer_with_one_output_in_words() -> None:
    """Its file would look to ComfyUI like one length an output."""
    with pytest.raises(AtelierError, match="single output"):
        DoRA(nn.Linear(8, 1), 4, 4.0, rng())


def test_boft_refuses_an_odd_width_in_words() -> None:
    with pytest.raises(AtelierError, match="even width; one has 7 outputs"):
        BOFT(nn.Linear(8, 7), 8)


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        (127, -1, (1, 127)),
        (250, -1, (10, 25)),
        (360, 16, (15, 24)),
        (512, 8, (8, 64)),
        (512, -1, (16, 32)),
        (1024, 4, (4, 256)),
        (320, -1, (16, 20)),
    ],
)
def test_factors_of_a_width(size: int, limit: int, expected: tuple[int, int]) -> None:
    assert factors(size, limit) == expected


def test_lokr_has_far_fewer_numbers_than_lora_of_the_same_rank() -> None:
    layer = nn.Linear(1280, 1280)
    count = {k: sum(p.numel() for p in k(layer, 8, 8.0, rng()).parameters()) for k in (LoKr, LoRA)}
    assert count[LoKr] < count[LoRA] / 10
