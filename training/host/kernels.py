"""What the host's models call that has no backward, or spoils it, while something is trained.

Newer hosts compute rotary embeddings and modulated norms in kernels of ``comfy_kitchen``, which
have no backward. Their own trainer announces itself by ``model_management.in_training``, upon which
most models take PyTorch's operations; some (Cosmos Predict2, Ernie) do not ask. So while something
is trained, the package's definitions of the same kernels in PyTorch take their place.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType

import comfy
import comfy.ldm.common_dit
import comfy.model_management as mm
import comfy.ops  # which loads comfy.quant_ops, where the host has it
from torch import Tensor, nn

DEFINITIONS = ("rope", "adaln")
"""Modules of ``comfy_kitchen.backends.eager`` whose functions are differentiable, and have the
names and arguments of the package's own."""

LTX_VIDEO = "comfy.ldm.lightricks.model"


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Inside, what a model calls has a backward; hosts without such kernels are left alone."""
    with ExitStack() as undo:
        if hasattr(mm, "in_training"):
            undo.callback(setattr, mm, "in_training", mm.in_training)
            mm.in_training = True
        quantised = getattr(comfy, "quant_ops", None)
        if (kitchen := getattr(quantised, "ck", None)) is not None:
            undo.callback(setattr, quantised, "ck", kitchen)
            quantised.ck = _in_pytorch(kitchen)
        yield


@contextmanager
def nothing_fetched_ahead() -> Iterator[None]:
    """Inside, the host brings a layer's weights when they are asked for, and not a block before.

    Newer hosts with CUDA copy the weights of the next block into memory and pinned buffers that
    stay with its modules. Training lends small weights (norms) in another type, which must not get
    there: sampling would take their bytes for the old type later.
    """
    try:
        prefetch = importlib.import_module("comfy.model_prefetch")
    except ModuleNotFoundError:  # an older host
        yield
        return
    usual = prefetch.make_prefetch_queue
    prefetch.make_prefetch_queue = lambda *_, **__: None  # as where there is nothing to fetch
    try:
        yield
    finally:
        prefetch.make_prefetch_queue = usual


def _in_pytorch(kitchen: ModuleType) -> ModuleType:
    """The same module, its kernels replaced by their definitions where it has those."""
    plain = ModuleType(kitchen.__name__)  # a module, since torch.compile looks through it
    vars(plain).update(vars(kitchen))
    for name in DEFINITIONS:
        try:
            module = importlib.import_module(f"{kitchen.__name__}.backends.eager.{name}")
        except ModuleNotFoundError:  # a version before these kernels
            continue
        functions = {n: f for n, f in vars(module).items() if inspect.isfunction(f)}
        vars(plain).update({n: f for n, f in functions.items() if hasattr(kitchen, n)})
    return plain


@contextmanager
def stream_kept(model: nn.Module) -> Iterator[None]:
    """Inside, LTX-Video does not overwrite what backward needs; other models are left alone.

    Its blocks add to their stream in place, of which a norm and the attention to the text before it
    have kept the numbers: these get copies. That takes no more memory, since nothing else holds the
    original then. (The norms of other families are modules, see :mod:`training.base_model`.)
    """
    with ExitStack() as undo:
        if type(model).__module__ == LTX_VIDEO:
            usual = comfy.ldm.common_dit.rms_norm
            undo.callback(setattr, comfy.ldm.common_dit, "rms_norm", usual)
            comfy.ldm.common_dit.rms_norm = lambda x, *args, **kw: usual(x.clone(), *args, **kw)
            for path, module in model.named_modules():
                if path.endswith(".attn2"):
                    undo.callback(module.register_forward_pre_hook(_copied).remove)
        yield


def _copied(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].clone(), *args[1:])
