"""What training does to a base model, and that it is undone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_atelier.training.base_model.training_context import training_context
from lora_atelier.training.network.build import NetworkSpec, build_network
from lora_atelier.training.network.targets import TargetLayer

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
CPU = torch.device("cpu")
ADAPTED = ("conv", "block.0", "head")


class Base(nn.Module):
    """Every kind of member a diffusion model has: [B, 4, 6, 6] pictures, [B] words -> [B, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.words = nn.Embedding(10, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.SiLU())
        self.gate = nn.Parameter(torch.full((8,), 0.7))
        self.register_buffer("positions", torch.linspace(0, 1, 36).view(36, 1))
        self.register_buffer("table", torch.tensor([3, 1, 2]))
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        x = x + self.words(words).unsqueeze(1) + torch.sin(x * self.positions)
        return self.head(self.block(x) * self.gate).mean(dim=1)


@pytest.fixture(params=[False, True], ids=["plain weights", "weights of inference mode"])
def base(request: pytest.FixtureRequest) -> Base:
    torch.manual_seed(0)
    with torch.inference_mode(request.param):
        return Base().requires_grad_(False)


@pytest.fixture
def adapters(base: Base) -> nn.ModuleDict:
    layers = {path.replace(".", "_"): TargetLayer(base.get_submodule(path)) for path in ADAPTED}
    network = build_network(layers, NetworkSpec(2, 2.0), 0)
    for adapter in network.values():
        nn.init.normal_(adapter.lora_up.weight, std=0.3)
    return network


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, 6, 6), torch.tensor([1, 7])


def _by_path(adapters: nn.ModuleDict) -> dict[str, nn.Module]:
    return {path: adapters[path.replace(".", "_")] for path in ADAPTED}


def _snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that must be as it was, objects by identity and tensors by value too."""
    facts: dict[str, Any] = {}
    for path, module in model.named_modules():
        facts[path, "names"] = sorted(module.__dict__)
        facts[path, "forward"] = id(module.__dict__.get("forward"))
        for store in ("_parameters", "_buffers", "_modules"):
            facts[path, store] = {k: id(v) for k, v in getattr(module, store).items()}
        for name in [n for n in module.__dict__ if n.endswith("_hooks")]:
            facts[path, name] = len(getattr(module, name))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        facts[name] = (tensor.dtype, tensor.requires_grad, tensor.grad, tensor.tolist())
    return facts


def _layer_of(weight: nn.Parameter) -> nn.Module:
    """An ordinary layer without bias around a weight; convolutions keep the picture's size."""
    linear = weight.ndim == 2
    layer = nn.Linear(1, 1, bias=False) if linear else nn.Conv2d(1, 1, 1, bias=False)
    layer.weight = weight
    if not linear:
        layer.padding = (weight.shape[-1] // 2,) * 2
    return layer


def _twin(base: Base, adapters: nn.ModuleDict) -> tuple[Base, nn.ModuleDict]:
    """The same network in ordinary PyTorch: side paths by forward hooks on an ordinary model."""
    twin, others = Base().requires_grad_(False), copy.deepcopy(adapters)
    twin.load_state_dict({k: v.clone() for k, v in base.state_dict().items()})
    for path, adapter in _by_path(others).items():
        side = nn.Sequential(*map(_layer_of, (adapter.lora_down.weight, adapter.lora_up.weight)))
        twin.get_submodule(path).register_forward_hook(
            lambda m, x, y, side=side, scale=adapter.scale: y + side(x[0]) * scale
        )
    return twin, others


def test_values_and_adapter_gradients_equal_ordinary_autograd(base, adapters, batch, lend_weights):
    twin, others = _twin(base, adapters)
    expected = twin(*batch)
    expected.square().sum().backward()
    with training_context(base, _by_path(adapters), lend_weights, F32, F32, CPU):
        y = base(*batch)
        y.square().sum().backward()
    torch.testing.assert_close(y, expected)
    for mine, theirs in zip(adapters.parameters(), others.parameters(), strict=True):
        assert mine.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_it_works_in_a_node_which_runs_in_inference_mode(base, adapters, batch, lend_weights):
    with (
        torch.inference_mode(),
        torch.inference_mode(False),
        training_context(base, _by_path(adapters), lend_weights, F32, F32, CPU),
    ):
        base(*batch).sum().backward()
    assert all(p.grad is not None for p in adapters.parameters())


def test_weights_that_were_moved_outside_inference_mode_train_too(batch, lend_weights) -> None:
    """`Module.to(device)` assigns `.data`: no inference tensor any more, yet autograd refuses."""
    torch.manual_seed(0)
    with torch.inference_mode():
        moved = Base().requires_grad_(False)
    for parameter in moved.parameters():
        parameter.data = parameter.data.clone()
    before = _snapshot(moved)
    network = build_network(
        {"head": TargetLayer(moved.head), "conv": TargetLayer(moved.conv)}, NetworkSpec(2, 2.0), 0
    )
    with training_context(moved, dict(network.items()), lend_weights, F32, F32, CPU):
        moved(*batch).sum().backward()
    assert all(adapter.lora_up.weight.grad.any() for adapter in network.values())
    assert _snapshot(moved) == before


def test_afterwards_the_model_is_as_it_was(base, adapters, batch, lend_weights) -> None:
    before, answer = _snapshot(base), base(*batch)
    with training_context(base, _by_path(adapters), lend_weights, F32, F32, CPU):
        assert _snapshot(base) != before  # so the check can see what is done
        base(*batch).sum().backward()
    assert _snapshot(base) == before
    assert torch.equal(base(*batch), answer)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_after_an_exception_the_model_is_as_it_was(base, adapters, batch, lend_weights, error):
    before = _snapshot(base)
    with (
        pytest.raises(type(error)),
        training_context(base, _by_path(adapters), lend_weights, F32, F32, CPU),
    ):
        base(*batch)
        raise error
    assert _snapshot(base) == before


def test_a_failure_while_it_is_set_up_undoes_what_was_done(base, adapters, lend_weights) -> None:
    before = _snapshot(base)
    with (
        pytest.raises((TypeError, RuntimeError)),
        training_context(base, _by_path(adapters), lend_weights, F32, "no dtype", CPU),
    ):
        pytest.fail("entered")
    assert _snapshot(base) == before


def test_an_adapter_for_no_layer_is_refused_and_nothing_is_touched(base, adapters, lend_weights):
    before = _snapshot(base)
    wrong = {"norm": adapters["head"]}
    with (
        pytest.raises(KeyError, match="norm"),
        training_context(base, wrong, lend_weights, F32, F32, CPU),
    ):
        pytest.fail("entered")
    assert _snapshot(base) == before


@pytest.mark.parametrize("path", ["head", "block"])
def test_a_forward_that_somebody_else_set_is_there_again(
    base, adapters, batch, lend_weights, path: str
) -> None:
    module = base.get_submodule(path)
    original, calls = module.forward, []

    def theirs(x: Tensor) -> Tensor:
        calls.append(x.shape)
        return original(x)

    module.forward = theirs
    before = _snapshot(base)
    with training_context(base, _by_path(adapters), lend_weights, F32, F32, CPU):
        base(*batch).sum().backward()
    assert module.__dict__["forward"] is theirs
    assert _snapshot(base) == before
    calls.clear()
    base(*batch)
    assert len(calls) == 1


def test_nested_use_is_undone_layer_by_layer(base, adapters, batch, lend_weights) -> None:
    before = _snapshot(base)
    with training_context(base, _by_path(adapters), lend_weights, F32, F32, CPU):
        outer, adapted = _snapshot(base), base(*batch)
        with training_context(base, {}, lend_weights, F32, F32, CPU):
            assert not torch.allclose(base(*batch), adapted)
        assert _snapshot(base) == outer
        torch.testing.assert_close(base(*batch), adapted)
    assert _snapshot(base) == before


def test_linear_conv_and_embedding_weights_are_not_copied(base, adapters, lend_weights) -> None:
    """They are the size of the model."""
    weights = {n: p for n, p in base.named_parameters() if n.split(".")[0] in ("conv", "words")}
    weights |= {"block.0.weight": base.block[0].weight, "head.weight": base.head.weight}
    with training_context(base, _by_path(adapters), lend_weights, F32, F32, CPU):
        inside = dict(base.named_parameters())
        assert all(inside[name] is weight for name, weight in weights.items())


def test_the_base_gets_no_gradient(base, adapters, batch, lend_weights) -> None:
    with training_context(base, _by_path(adapters), lend_weights, F32, F32, CPU):
        base(*batch).sum().backward()
        assert all(p.grad is None for p in base.parameters())


def _half(base: Base) -> Base:
    with torch.inference_mode(base.gate.is_inference()):
        base.half()
        base.norm.float()  # kept in float32 on purpose, as some models do
    return base


@pytest.mark.parametrize("compute", [F32, BF16])
def test_parameters_of_the_storage_type_are_cast_and_others_stay(
    base, adapters, lend_weights, compute: torch.dtype
) -> None:
    before = _snapshot(_half(base))
    with training_context(base, _by_path(adapters), lend_weights, F16, compute, CPU):
        assert base.gate.dtype == base.block[1].weight.dtype == compute
        assert base.norm.weight.dtype == F32
        assert base.head.weight.dtype == F16  # lent, cast, one layer at a time
        torch.testing.assert_close(base.gate, torch.full((8,), 0.7, dtype=F16).to(compute))
    assert _snapshot(base) == before


def test_half_precision_weights_train_in_float32(base, adapters, batch, lend_weights) -> None:
    _half(base)
    twin, others = _twin(base, adapters)
    twin(*batch).square().sum().backward()
    with (
        training_context(base, _by_path(adapters), lend_weights, F16, F32, CPU),
        _embedding_in_float32(base),
    ):
        base(*batch).square().sum().backward()
    for mine, theirs in zip(adapters.parameters(), others.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=2e-2, atol=2e-2)


@contextmanager
def _embedding_in_float32(base: Base) -> Iterator[None]:
    """The host casts what an Embedding gives; a plain nn.Embedding does not."""
    hook = base.words.register_forward_hook(lambda module, x, y: y.float())
    yield
    hook.remove()


def test_buffers_keep_their_type(base, adapters, lend_weights) -> None:
    """Positions in bfloat16 would be other positions."""
    with training_context(base, _by_path(adapters), lend_weights, F32, BF16, CPU):
        assert base.positions.dtype == F32
        assert base.table.tolist() == [3, 1, 2]
