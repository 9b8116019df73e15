"""Trees of tensors and plain values survive being taken apart."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lora_atelier.training.tensor_tree import NotATree, put_together, take_apart

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
leaves = plain | st.lists(st.floats(-5, 5), max_size=3).map(torch.tensor)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.dictionaries(st.integers(0, 99), inner, max_size=3)
    ),
    max_leaves=12,
)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    return one == other


@given(trees)
def test_a_tree_comes_back(tree: Any) -> None:
    tensors, form = take_apart(tree)
    assert all(isinstance(tensor, Tensor) for tensor in tensors.values())
    assert equal(put_together(tensors, form), tree)


def test_a_conditioning_comes_back() -> None:
    conditioning = [
        torch.ones(1, 77, 8),
        {"pooled_output": None, "references": [torch.zeros(2), torch.ones(3)], "guidance": 3.5},
    ]
    tensors, form = take_apart(conditioning)
    assert len(tensors) == 3
    assert equal(put_together(tensors, form), conditioning)


class Colour(str, Enum):
    RED = "red"


@pytest.mark.parametrize("value", [object(), Colour.RED, {(1,): 2}, {1, 2}, torch.float16, len])
def test_what_json_would_change_or_not_hold_is_refused(value: Any) -> None:
    with pytest.raises(NotATree, match=type(value).__name__):
        take_apart([torch.ones(1), {"inside": value}])
