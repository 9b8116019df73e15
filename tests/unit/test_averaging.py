"""Weights to use that are not those being trained."""

from __future__ import annotations

import pytest
import torch
from schedulefree import AdamWScheduleFree
from torch import nn

from lora_atelier.training.optimizers.averaging import (
    MovingAverage,
    keeps_an_average,
    weights_to_use,
)


def network(value: float = 1.0) -> nn.Linear:
    layer = nn.Linear(3, 2)
    for parameter in layer.parameters():
        parameter.data.fill_(value)
    return layer


def test_the_average_is_that_of_the_formula() -> None:
    """In plain numbers; the decay grows as 2/11, 3/12, 4/13 … up to its limit."""
    layer, expected = network(0.0), 0.0
    average = MovingAverage(layer, decay=0.27)
    for step, value in enumerate([3.0, -1.0, 5.0, 2.0], start=1):
        for parameter in layer.parameters():
            parameter.data.fill_(value)
        average.update(layer, step)
        decay = min(0.27, [2 / 11, 3 / 12, 4 / 13, 5 / 14][step - 1])
        expected = decay * expected + (1 - decay) * value
        for averaged in average.values.values():
            assert averaged.flatten().tolist() == pytest.approx([expected] * averaged.numel())


def test_an_average_is_no_view_of_the_weights() -> None:
    layer = network(1.0)
    average = MovingAverage(layer, decay=0.9)
    layer.weight.data.fill_(7.0)
    assert float(average.values["weight"].max()) == 1.0


def test_it_goes_on_from_what_it_was_given() -> None:
    average = MovingAverage(network(1.0), decay=0.5)
    average.load({"weight": torch.full((2, 3), 4.0), "bias": torch.full((2,), 4.0), "more": None})
    average.update(network(2.0), step=100)
    assert average.values["bias"].tolist() == pytest.approx([3.0, 3.0])


def test_the_average_is_lent_and_the_raw_weights_come_back() -> None:
    layer = network(1.0)
    average = MovingAverage(network(0.25), decay=0.9)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    weight = layer.weight
    with pytest.raises(RuntimeError), weights_to_use(layer, optimizer, average):
        assert layer.weight is weight
        assert layer.weight.unique().tolist() == layer.bias.unique().tolist() == [0.25]
        raise RuntimeError
    assert layer.weight.unique().tolist() == [1.0]
    assert float(average.values["weight"].max()) == 0.25


def test_an_optimizers_own_average_is_lent_and_the_raw_weights_come_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 40)
    optimizer = AdamWScheduleFree(layer.parameters(), lr=0.1)
    optimizer.train()
    for _ in range(5):
        for parameter in layer.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    raw = layer.weight.detach().clone()
    with weights_to_use(layer, optimizer, None):
        used = layer.weight.detach().clone()
        z = optimizer.state[layer.weight]["z"]
        torch.testing.assert_close(used, torch.lerp(raw, z, 1 - 1 / 0.9))  # y = (1-β) z + β x
    assert not torch.equal(used, raw)
    assert torch.equal(layer.weight, raw)
    optimizer.step()  # in training mode again, or it would refuse
    raw = layer.weight.detach().clone()
    optimizer.eval()
    optimizer.train()
    assert not torch.equal(layer.weight, raw)  # its own way there and back rounds


def test_without_any_average_the_weights_are_their_own() -> None:
    layer = network(1.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    assert not keeps_an_average(optimizer)
    with weights_to_use(layer, optimizer, None):
        assert layer.weight.unique().tolist() == [1.0]
