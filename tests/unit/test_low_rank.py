"""The Linear layer and its side path in one: numbers and gradients of the layers written apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lora_atelier.training.base_model.frozen import FrozenLayer
from lora_atelier.training.base_model.low_rank import low_rank_linear

SCALE = 0.75


class Lender:
    """Lends a layer's own weight and counts how often."""

    asked = 0

    @contextmanager
    def __call__(self, layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        self.asked += 1
        yield layer.weight, layer.bias


def parts(*rows: int, bias: bool = True, dtype: torch.dtype = torch.float64) -> tuple:
    rng = torch.Generator().manual_seed(4)
    layer = nn.Linear(5, 3, bias=bias).to(dtype).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=rng))
    tensors = [torch.randn(s, generator=rng).to(dtype) for s in ((*rows, 5), (2, 5), (3, 2))]
    return layer, *(tensor.requires_grad_() for tensor in tensors)


@pytest.mark.parametrize("rows", ((), (4,), (2, 3), (2, 1, 3)))
@pytest.mark.parametrize("bias", (True, False))
def test_it_equals_the_layers_written_apart(rows: tuple[int, ...], bias: bool) -> None:
    layer, x, down, up = parts(*rows, bias=bias)
    apart = layer(x) + SCALE * linear(linear(x, down), up)
    together = low_rank_linear(FrozenLayer(layer, Lender()), x, down, up, SCALE)
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    towards = torch.randn(apart.shape, dtype=apart.dtype)
    expected = torch.autograd.grad(apart, (x, down, up), towards)
    found = torch.autograd.grad(together, (x, down, up), towards)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_rows_that_do_not_lie_side_by_side() -> None:
    layer, x, down, up = parts(4, 3)
    turned = x.transpose(0, 1)
    together = low_rank_linear(FrozenLayer(layer, Lender()), turned, down, up, SCALE)
    apart = layer(turned) + SCALE * linear(linear(turned, down), up)
    towards = torch.randn(4, 3, 3, dtype=apart.dtype).transpose(0, 1)
    expected = torch.autograd.grad(apart, (x, down, up), towards)
    torch.testing.assert_close(
        torch.autograd.grad(together, (x, down, up), towards), expected, rtol=1e-12, atol=1e-12
    )


def test_an_input_without_gradient_costs_no_product_with_the_weight() -> None:
    layer, x, down, up = parts(4)
    lender = Lender()
    y = low_rank_linear(FrozenLayer(layer, lender), x.detach(), down, up, SCALE)
    y.square().sum().backward()
    assert lender.asked == 1
    assert x.grad is None
    assert down.grad.abs().sum() > 0 < up.grad.abs().sum()


def test_the_model_may_add_to_the_answer_in_place() -> None:
    layer, x, down, up = parts(2, 3)
    y = low_rank_linear(FrozenLayer(layer, Lender()), x, down, up, SCALE)
    y += 1
    y.sum().backward()
    assert x.grad.shape == x.shape


def test_backward_asks_for_the_weight_again_and_keeps_none() -> None:
    layer, x, down, up = parts(4)
    lender = Lender()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = low_rank_linear(FrozenLayer(layer, lender), x, down, up, SCALE)
    assert [tuple(t.shape) for t in kept] == [(4, 5), (4, 2), (2, 5), (3, 2)]
    layer.weight.data = layer.weight.data * 0  # the host may have exchanged it
    y.sum().backward()
    assert lender.asked == 2
    thin = torch.ones(4, 3, dtype=x.dtype) @ up.detach()
    torch.testing.assert_close(x.grad, SCALE * thin @ down.detach())


def test_narrow_numbers_are_rounded_once() -> None:
    layer, x, down, up = parts(64)
    exact = layer(x) + SCALE * linear(linear(x, down), up)
    narrow, *tensors = (item.to(torch.bfloat16) for item in (layer, x, down, up))
    together = low_rank_linear(FrozenLayer(narrow, Lender()), *tensors, SCALE)
    assert together.dtype == torch.bfloat16
    torch.testing.assert_close(together.double(), exact, rtol=0.05, atol=0.05)
