"""Blocks that are computed twice: the same gradients, less kept, and no surprise for the caller."""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_atelier.training.base_model.blocks import blocks_run, repeated_blocks, require_blocks
from lora_atelier.training.base_model.checkpointing import checkpointing
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.memory.allocations import Allocations

CPU = torch.device("cpu")
WIDTH = 8


class Block(nn.Module):
    """Writes to its input and reads and writes the options, as ComfyUI's blocks do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.3)
        self.calls = 0

    def forward(self, x: Tensor, options: dict[str, Any], scales: Any = 1.0) -> Tensor:
        self.calls += 1
        scale = scales[0] if isinstance(scales, tuple) else scales
        x *= 1.0 + options["index"]  # nothing saved it
        x += self.dropout(torch.tanh(self.linear(self.norm(x.clone())))) * scale
        options["written"] = options.get("written", 0) + 1
        return x


class Model(nn.Module):
    """Counts its blocks in the options, which are one dict for all of them."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.inside = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(count))

    def forward(self, x: Tensor, scales: Any = 1.0) -> Tensor:
        x, options = self.inside(x), {}
        for i, block in enumerate(self.blocks):
            options["index"] = i
            x = block(x, scales=scales, options=options)
        assert options["written"] == len(self.blocks)  # what a block writes reaches its caller
        return x


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def gradients(model: nn.Module, on: bool, *args: Any) -> list[Tensor | None]:
    """Of every parameter, under the same random numbers."""
    model.zero_grad()
    torch.manual_seed(1)
    x = torch.randn(5, WIDTH)
    if on:
        with blocks_run(model, checkpointing(CPU)):
            model(x, *args).square().sum().backward()
    else:
        model(x, *args).square().sum().backward()
    return [p.grad for p in model.parameters()]


def assert_same(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert any(g is not None for g in expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


def test_gradients_are_the_same_bits(model: Model) -> None:
    """With writing in place, a dict that changes between blocks, and dropout."""
    assert_same(gradients(model, True), gradients(model, False))
    assert all(block.calls == 3 for block in model.blocks)  # once, and then twice


def test_gradients_reach_tensors_inside_tuples(model: Model) -> None:
    scale = torch.ones((), requires_grad=True)
    found = gradients(model, True, (scale * 1,))
    reached, scale.grad = scale.grad, None
    assert_same(found, gradients(model, False, (scale * 1,)))
    assert reached is not None and torch.equal(reached, scale.grad)


def test_only_what_a_block_holds_requires_a_gradient(model: Model) -> None:
    """As in the first block of a frozen model: nothing that comes in has a gradient."""
    model.requires_grad_(False)
    model.blocks[0].linear.requires_grad_(True)
    assert_same(gradients(model, True), gradients(model, False))


def test_dropout_of_a_whole_side_path_is_drawn_alike() -> None:
    class Moody(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.side = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return x if torch.rand(()) < 0.5 else torch.tanh(x + self.side(x))

    torch.manual_seed(0)
    model = nn.Sequential(nn.ModuleList(Moody() for _ in range(8)))
    model.forward = lambda x: nn.Sequential(*model[0])(x)
    assert_same(gradients(model, True), gradients(model, False))


def test_the_random_stream_goes_on_as_if_nothing_were_computed_twice(model: Model) -> None:
    gradients(model, False)
    expected = torch.rand(3)
    gradients(model, True)
    assert torch.equal(torch.rand(3), expected)


def test_backward_may_come_twice(model: Model) -> None:
    x = torch.randn(5, WIDTH)
    with blocks_run(model, checkpointing(CPU)):
        loss = model(x).square().sum()
        loss.backward(retain_graph=True)
        once = [p.grad.clone() for p in model.parameters()]
        loss.backward()
    assert_same([p.grad for p in model.parameters()], [2 * g for g in once])


def test_a_part_of_a_block_may_be_asked_for_first(model: Model) -> None:
    expected = gradients(model, False)
    model.zero_grad()
    torch.manual_seed(1)
    with blocks_run(model, checkpointing(CPU)):
        loss = model(torch.randn(5, WIDTH)).square().sum()
        bias = model.blocks[1].linear.bias
        (part,) = torch.autograd.grad(loss, [bias], retain_graph=True)
        loss.backward()
    assert torch.equal(part, bias.grad)
    assert_same([p.grad for p in model.parameters()], expected)


def test_only_arguments_are_kept_for_backward() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, 16 * WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tanh(self.linear(x)).sin().unflatten(1, (16, -1)).mean(1)

    model = nn.ModuleList(Wide() for _ in range(4))
    x = torch.randn(32, WIDTH)

    def bytes_for_backward() -> int:
        with Allocations() as memory:
            y = x
            for block in model:
                y = block(y)
            return memory.live - y.nbytes

    usual = bytes_for_backward()
    with blocks_run(model, checkpointing(CPU)):
        kept = bytes_for_backward()
    assert kept == 3 * x.nbytes  # the first block's argument was there before
    assert usual > 10 * kept


def test_nothing_is_recorded_where_no_gradient_is_wanted(model: Model) -> None:
    x = torch.randn(5, WIDTH)
    model.eval()
    with torch.no_grad():
        expected = model(x)
        with blocks_run(model, checkpointing(CPU)):
            answer = model(x)
            model.blocks[0](x, {"index": 1})
    assert torch.equal(answer, expected) and not answer.requires_grad
    assert x._version == 2  # no copy was made for the block


def test_context_variables_are_those_of_the_call() -> None:
    """On a GPU backward runs in a thread that knows none of them."""
    sign: ContextVar[float] = ContextVar("sign", default=-1.0)

    class Signed(Block):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.linear(x)) * sign.get() if sign.get() > 0 else x

    model = nn.Sequential(nn.ModuleList([Signed()]))
    model.forward = lambda x: model[0][0](x)
    sign.set(2.0)
    expected = gradients(model, False)
    model.zero_grad()
    torch.manual_seed(1)
    with blocks_run(model, checkpointing(CPU)):
        loss = model(torch.randn(5, WIDTH)).square().sum()
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    assert_same([p.grad for p in model.parameters()], expected)


def test_what_is_overwritten_is_found_out() -> None:
    """torch.utils.checkpoint would go on with wrong gradients."""

    class Careless(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.linear(x))
            z = y * y
            y += 1
            return torch.tanh(z + y)

    model = nn.ModuleList([Careless()])
    with blocks_run(model, checkpointing(CPU)):
        loss = model[0](torch.randn(5, WIDTH)).sum()
        with pytest.raises(AtelierError, match="overwrites in place .* shape \\[5, 8\\]"):
            loss.backward()


def test_an_argument_overwritten_by_the_caller_is_found_out(model: Model) -> None:
    block, x = model.blocks[0], torch.randn(5, WIDTH)
    with blocks_run(model, checkpointing(CPU)):
        loss = block(x, {"index": 0}).sum()
        x += 1
        with pytest.raises(AtelierError, match="overwrites in place"):
            loss.backward()


@pytest.mark.parametrize("more", [1, -1])
def test_a_block_that_computes_something_else_is_found_out(more: int) -> None:
    class Counting(Block):
        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            for _ in range(3 + more * self.calls):
                x = torch.tanh(self.linear(x[: 5 - self.calls]))
            return x

    model = nn.ModuleList([Counting()])
    with blocks_run(model, checkpointing(CPU)):
        loss = model[0](torch.randn(5, WIDTH)).sum()
        with pytest.raises(AtelierError, match="computes something else the second time"):
            loss.backward()


def test_forwards_are_put_back_after_an_exception(model: Model) -> None:
    def theirs(x: Tensor, options: dict[str, Any], scales: Any) -> Tensor:
        raise KeyError("theirs")

    model.blocks[1].forward = theirs
    with pytest.raises(KeyError, match="theirs"), blocks_run(model, checkpointing(CPU)):
        assert "forward" in model.blocks[0].__dict__
        model(torch.randn(5, WIDTH))
    assert model.blocks[1].__dict__["forward"] is theirs
    assert all("forward" not in model.blocks[i].__dict__ for i in (0, 2))


def named(name: str, *children: nn.Module) -> nn.Module:
    """A module whose class has this name."""
    module = type(name, (nn.Module,), {})()
    for i, child in enumerate(children):
        module.add_module(str(i), child)
    return module


def test_the_blocks_of_a_u_net_are_known_by_their_names() -> None:
    linear = nn.Linear(1, 1)
    transformer = named("BasicTransformerBlock", nn.ModuleList([named("Attention", linear)]))
    nested = named("VideoResBlock", named("ResBlock", linear))
    model = nn.Module()
    model.input_blocks = nn.ModuleList(
        [named("Down", linear), named("SpatialTransformer", nn.ModuleList([transformer])), nested]
    )
    assert list(repeated_blocks(model)) == ["input_blocks.1.0.0", "input_blocks.2"]


def test_the_blocks_of_a_transformer_are_the_members_of_its_outermost_lists() -> None:
    def layer() -> nn.Module:
        return named("Layer", nn.ModuleList([named("Part", nn.Linear(1, 1))]))

    model = named("Encoder", named("Stack", nn.ModuleList([layer(), layer()])), nn.Linear(1, 1))
    model.more = nn.ModuleDict({"a": layer()})
    model.levels = nn.ModuleList([nn.ModuleList([layer()])])
    model.norms = nn.ModuleList([nn.LayerNorm(1)])
    model.projections = nn.ModuleList([nn.Linear(1, 1)])
    assert list(repeated_blocks(model)) == ["0.0.0", "0.0.1", "more.a", "levels.0.0"]


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(AtelierError, match="gradient_checkpointing is on, but no repeated blocks"):
        require_blocks(nn.Sequential(nn.Linear(1, 1)), "gradient_checkpointing")
