"""Errors of autograd that lie in the base model are told in words; others are left as they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lora_atelier.training.base_model.backward import backward_told
from lora_atelier.training.errors import AtelierError


@torch.library.custom_op("lora_atelier_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    """A kernel as hosts bring them: computed somewhere, with no formula for its gradient."""
    return 2 * x


@pytest.fixture
def x() -> Tensor:
    return torch.ones(3, requires_grad=True)


def test_what_was_overwritten_is_told(x: Tensor) -> None:
    y = 2 * x
    loss = y.square().sum()
    y.mul_(2)
    words = "^model: it, or a patch on it, overwrites in place what its gradient needs"
    with pytest.raises(AtelierError, match=words), backward_told():
        loss.backward()


def test_a_kernel_without_backward_is_named(x: Tensor) -> None:
    loss = doubled(x).sum()
    words = "^model: it, or a patch on it, .* no backward .*lora_atelier_tests.doubled"
    with pytest.raises(AtelierError, match=words), backward_told():
        loss.backward()


def test_an_operation_of_torch_without_derivative_is_named(x: Tensor) -> None:
    loss = torch.igamma(x, torch.ones(3)).sum()
    with pytest.raises(AtelierError, match="no backward .*igamma"), backward_told():
        loss.backward()


def test_other_errors_are_left_as_they_are(x: Tensor) -> None:
    with pytest.raises(RuntimeError, match="scalar outputs"), backward_told():
        (2 * x).backward()
    with pytest.raises(AtelierError, match="^its own words"), backward_told():
        raise AtelierError("its own words")
