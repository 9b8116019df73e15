"""Every storage is counted from its making to its end, whoever holds it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lora_atelier.training.memory.allocations import Allocations
from lora_atelier.training.memory.rehearsal import SHAPES, rehearsing

DEVICES = ["cpu", "meta"]


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_freed_counts_no_more(device: str) -> None:
    with Allocations() as memory:
        a = torch.empty(100, device=device)
        b = a + 1
        assert (memory.live, memory.peak) == (800, 800)
        del a
        assert (memory.live, memory.peak) == (400, 800)
        del b
    assert (memory.live, memory.peak) == (0, 800)


@pytest.mark.parametrize("device", DEVICES)
def test_views_and_what_was_there_before_cost_nothing(device: str) -> None:
    before = torch.ones(10, 10, device=device)
    with Allocations() as memory:
        views = [before.view(-1), before.t(), before.detach(), before.expand(3, 10, 10), before[1:]]
        views.append(before.add_(1))
        assert memory.live == 0
        views.append(before.clone())
    assert memory.live == 400


def test_a_cast_of_a_hosts_weight_is_new_and_one_that_changes_nothing_is_not() -> None:
    """On tensors of inference mode ``to`` is one operation, of which either may come."""
    with torch.inference_mode():
        weight = torch.ones(100, dtype=torch.float16)
    with Allocations() as memory:
        same = weight.to(torch.float16)
        assert memory.live == 0
        cast = weight.to(torch.float32)
        assert memory.live == 400
    del same, cast


def test_memory_lives_as_long_as_anyone_holds_it() -> None:
    with Allocations() as memory:
        view = torch.empty(100)[:1]
        assert memory.live == 400
        del view
    assert memory.live == 0


@pytest.mark.parametrize("device", DEVICES)
def test_what_autograd_keeps_is_counted_until_backward_is_through(device: str) -> None:
    """GELU keeps its input, the second layer its own; the output of GELU is that input."""
    net = nn.Sequential(nn.Linear(100, 200), nn.GELU(), nn.Linear(200, 100)).to(device)
    x = torch.empty(64, 100, device=device)
    with Allocations() as memory:
        y = net(x)
        assert memory.live == 4 * 64 * (200 + 200 + 100)
        y.backward(torch.empty_like(y))
        gradients = 4 * sum(p.numel() for p in net.parameters())
        assert memory.live == 4 * 64 * 100 + gradients


class Busy(torch.autograd.Function):
    """Takes 4 kB for a moment, in backward."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        torch.empty(1000)
        return grad * 2


def test_backward_of_functions_written_in_python_is_seen() -> None:
    x = torch.ones(1, requires_grad=True)
    with Allocations() as memory:
        Busy.apply(x).backward()
    assert 4000 < memory.peak < 4100


def test_what_is_somebody_elses_does_not_count() -> None:
    with Allocations() as memory:
        with memory.uncounted():
            mine = torch.empty(100)
        yours = torch.empty(10)
    assert memory.live == 40
    del mine
    assert memory.live == 40
    del yours


def attention(device: torch.device, by_rows: bool) -> tuple[int, int]:
    """(bytes kept for backward, peak); `by_rows`: as a Linear gives them, each with all heads."""
    shape = (2, 256, 4, 32) if by_rows else (2, 4, 256, 32)
    inputs = [torch.zeros(shape, device=device).requires_grad_() for _ in range(3)]
    with rehearsing() as memory:
        query, key, value = (x.transpose(1, 2) if by_rows else x for x in inputs)
        y = nn.functional.scaled_dot_product_attention(query, key, value)
        rows = y.transpose(1, 2).reshape(2, 256, 128)
        live = memory.live
        torch.autograd.backward(rows.sum())
    return live, memory.peak


@pytest.mark.parametrize(("by_rows", "outputs"), [(True, 1), (False, 2)])
def test_attention_without_numbers_keeps_what_the_fused_kernel_keeps(
    by_rows: bool, outputs: int
) -> None:
    """The output and a number a query; the other order needs a copy of the output for its rows."""
    real, rehearsed = (attention(d, by_rows) for d in (torch.device("cpu"), SHAPES))
    assert rehearsed[0] == real[0] == 4 * (outputs * 2 * 4 * 256 * 32 + 2 * 4 * 256)
    assert rehearsed[1] == pytest.approx(real[1], rel=0.2)  # kernels differ a little


def test_in_a_rehearsal_results_cannot_be_brought_away_and_stay() -> None:
    with rehearsing():
        x = torch.empty(3, device=SHAPES)
        assert x.to("cpu", torch.float16).device == SHAPES
        assert torch.ones(3).to("cpu").device == torch.device("cpu")
