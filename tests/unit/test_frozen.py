"""Frozen layers: ordinary values and input gradients, without keeping the weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora_atelier.training.base_model.frozen import FrozenLayer

# 'same' under an even kernel makes PyTorch itself copy its input, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 3), (2, 4)),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), (2, 3, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 2, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), (1, 2, 5, 6)),
    "conv2d without bias": (lambda: nn.Conv2d(2, 3, 1, bias=False), (1, 2, 3, 4)),
    "conv2d, stride that leaves a rest": (
        lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1),
        (1, 2, 6, 5),
    ),
    "conv2d, two strides": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1)), (1, 2, 6, 5)),
    "conv2d, dilation": (lambda: nn.Conv2d(2, 3, 3, dilation=2, padding=2), (1, 2, 6, 5)),
    "conv2d, groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (1, 4, 4, 5)),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), (1, 4, 4, 5)),
    "conv2d, circular": (
        lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular"),
        (1, 2, 4, 5),
    ),
    "conv2d, same": (lambda: nn.Conv2d(2, 3, 3, padding="same", dilation=2), (1, 2, 6, 5)),
    "conv2d, same, even kernel": (lambda: nn.Conv2d(2, 3, (2, 4), padding="same"), (1, 2, 6, 5)),
    "conv2d, same, circular": (
        lambda: nn.Conv2d(2, 3, (2, 3), padding="same", padding_mode="circular"),
        (1, 2, 6, 5),
    ),
    "conv2d, valid": (lambda: nn.Conv2d(2, 3, 3, padding="valid"), (1, 2, 6, 5)),
    "conv3d": (
        lambda: nn.Conv3d(2, 2, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        (1, 2, 2, 4, 5),
    ),
}
every_layer = pytest.mark.parametrize(("build", "shape"), list(LAYERS.values()), ids=list(LAYERS))


class CountingLender:
    """Lends weights, and knows how often it was asked and whether one is out."""

    def __init__(self) -> None:
        self.asked = 0
        self.out = 0

    @contextmanager
    def __call__(self, layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        self.asked += 1
        self.out += 1
        yield layer.weight.to(like), None if layer.bias is None else layer.bias.to(like)
        self.out -= 1


@pytest.mark.parametrize("needs_gradient", [True, False])
@pytest.mark.parametrize(
    ("build", "shape"),
    [(lambda: nn.Linear(4, 3), (2, 5, 4)), (lambda: nn.Conv1d(2, 3, 1), (2, 2, 7))],
    ids=["linear", "conv1d"],
)
def test_a_model_may_add_to_the_result_in_place(
    build: Callable[[], nn.Module], shape: tuple[int, ...], needs_gradient: bool, lend_weights: Any
) -> None:
    """As Flux does: `img += …`. PyTorch computes a batch of rows as a view of a flat matrix."""
    x = torch.randn(shape, requires_grad=needs_gradient)
    layer = build()
    y = FrozenLayer(layer, lend_weights)(x)
    adapted = torch.randn_like(y, requires_grad=True)
    y += 2 * adapted
    y.sum().backward()
    torch.testing.assert_close(adapted.grad, torch.full_like(adapted, 2.0))
    if needs_gradient:
        plain = x.detach().clone().requires_grad_()
        layer(plain).sum().backward()
        torch.testing.assert_close(x.grad, plain.grad)


@every_layer
def test_values_and_input_gradients_are_those_of_ordinary_autograd(
    build: Callable[[], nn.Module], shape: tuple[int, ...], lend_weights: Any
) -> None:
    layer, x = build(), torch.randn(shape)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = FrozenLayer(layer, lend_weights)(mine), layer(theirs)
    torch.testing.assert_close(y, expected)
    towards = torch.randn_like(expected)
    y.backward(towards)
    expected.backward(towards)
    torch.testing.assert_close(mine.grad, theirs.grad)


@every_layer
def test_input_gradients_agree_with_finite_differences(
    build: Callable[[], nn.Module], shape: tuple[int, ...], lend_weights: Any
) -> None:
    layer = build().double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: FrozenLayer(layer, lend_weights)(x), x)


@every_layer
def test_weights_made_in_inference_mode_can_be_trained_through(
    build: Callable[[], nn.Module], shape: tuple[int, ...], lend_weights: Any
) -> None:
    with torch.inference_mode():  # a node
        layer = build()
        with torch.inference_mode(False):  # the engine
            x = torch.randn(shape, requires_grad=True)
            y = FrozenLayer(layer, lend_weights)(x)
            y.square().sum().backward()
    assert layer.weight.is_inference()
    twin = build()
    with torch.no_grad():
        for mine, other in zip(twin.parameters(), layer.parameters(), strict=True):
            mine.copy_(other)
    other = x.detach().clone().requires_grad_()
    twin(other).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


@every_layer
def test_autograd_keeps_nothing_of_the_weights_shape(
    build: Callable[[], nn.Module], shape: tuple[int, ...], lend_weights: Any
) -> None:
    layer, x, kept = build(), torch.randn(shape, requires_grad=True), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        FrozenLayer(layer, lend_weights)(x)
        assert tuple(layer.weight.shape) not in kept
        layer(x)  # ordinary autograd does, so the check can see it
    assert tuple(layer.weight.shape) in kept + [shape[::-1] for shape in kept]


@pytest.mark.parametrize("build", [lambda: nn.Linear(4, 4), lambda: nn.Conv1d(2, 3, 3)])
def test_the_weight_gets_no_gradient(build: Callable[[], nn.Module], lend_weights: Any) -> None:
    layer = build()
    FrozenLayer(layer, lend_weights)(torch.randn(1, 2, 4, requires_grad=True)).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None


@pytest.mark.parametrize("build", [lambda: nn.Linear(4, 4), lambda: nn.Conv1d(2, 3, 3)])
def test_the_weight_is_asked_for_again_in_backward_and_not_held_between(
    build: Callable[[], nn.Module],
) -> None:
    lender = CountingLender()
    y = FrozenLayer(build(), lender)(torch.randn(1, 2, 4, requires_grad=True))
    assert (lender.asked, lender.out) == (1, 0)
    y.sum().backward()
    assert (lender.asked, lender.out) == (2, 0)


def test_backward_uses_the_weight_as_it_is_then(lend_weights: Any) -> None:
    """The host may have moved or cast it meanwhile: what was lent first is not remembered."""
    layer = nn.Linear(2, 2, bias=False)
    x = torch.ones(1, 2, requires_grad=True)
    y = FrozenLayer(layer, lend_weights)(x)
    layer.weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    y.sum().backward()
    assert x.grad.tolist() == [[4.0, 6.0]]


@every_layer
def test_it_works_under_checkpointing(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    with torch.inference_mode():
        layer = build()
    lender, x = CountingLender(), torch.randn(shape)
    plain, again = x.clone().requires_grad_(), x.clone().requires_grad_()
    FrozenLayer(layer, lender)(plain).square().sum().backward()
    y = checkpoint(lambda x: FrozenLayer(layer, lender)(x).square(), again, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(plain.grad, again.grad)
    assert lender.asked == 2 + 3  # forward, and in backward: once recomputed, once differentiated


def test_an_input_that_needs_no_gradient_makes_no_graph(lend_weights: Any) -> None:
    y = FrozenLayer(nn.Linear(4, 3), lend_weights)(torch.randn(2, 4))
    assert not y.requires_grad


def test_values_have_the_type_of_the_input(lend_weights: Any) -> None:
    layer = nn.Linear(4, 3).half()
    x = torch.randn(2, 4, dtype=torch.bfloat16, requires_grad=True)
    FrozenLayer(layer, lend_weights)(x).sum().backward()
    assert x.grad.dtype == torch.bfloat16
