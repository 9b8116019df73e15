"""What the host computes with while something is trained, and that it is put back."""

from __future__ import annotations

from typing import Any

import comfy.ldm.common_dit
import comfy.model_management as mm
import comfy.quant_ops
import pytest
import torch

from families import FAMILIES
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.kernels import differentiable_kernels
from tiny_training import normal, predicting

has_kitchen = pytest.mark.skipif(
    not hasattr(comfy.quant_ops, "ck"), reason="a host without kernels of its own"
)


def what_is_called() -> list[Any]:
    flags = [getattr(mm, "in_training", None), getattr(comfy.quant_ops, "ck", None)]
    return [*flags, comfy.ldm.common_dit.rms_norm]


def test_all_is_put_back_also_after_an_error() -> None:
    before = what_is_called()
    model = HostDiffusionModel(FAMILIES["ltxv"].patcher())
    with pytest.raises(KeyboardInterrupt), predicting(model):
        assert what_is_called()[-1] is not before[-1]
        assert [getattr(mm, "in_training", True)] == [True]
        raise KeyboardInterrupt
    assert what_is_called() == before
    layers = model.patcher.model.diffusion_model.modules()
    assert not any(layer._forward_pre_hooks for layer in layers)


@has_kitchen
@pytest.mark.parametrize("name", ["apply_rope1", "apply_rope_split_half1"])
def test_a_rotation_has_the_numbers_of_the_kernel_and_a_backward(name: str) -> None:
    angles = normal(1, 1, 1, 6, 16)
    turn = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1)
    turn = turn.unflatten(-1, (2, 2))
    x = normal(2, 1, 2, 6, 32).requires_grad_()
    kernel = getattr(comfy.quant_ops.ck, name)(x.detach(), turn)
    with differentiable_kernels():
        rotated = getattr(comfy.quant_ops.ck, name)(x, turn)
    torch.testing.assert_close(rotated, kernel)
    rotated.square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())  # a rotation keeps the length


def test_no_block_is_fetched_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    prefetch = pytest.importorskip("comfy.model_prefetch", reason="a host that fetches nothing")
    monkeypatch.setattr(mm, "NUM_STREAMS", 2)  # as with CUDA, of which nothing is called here
    asked = [object()], torch.device("cuda"), {"prefetch_dynamic_vbars": True}
    usual = prefetch.make_prefetch_queue
    assert usual(*asked) == [None, *asked[0], None]
    with predicting(HostDiffusionModel(FAMILIES["flux"].patcher())):
        assert prefetch.make_prefetch_queue(*asked) is None
    assert prefetch.make_prefetch_queue is usual
