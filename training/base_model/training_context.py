"""Everything that training does to the base model, and its undoing, in one context manager.

Inside the context the frozen layers run through :mod:`training.base_model.frozen` with the
adapters' side paths added to their outputs, and the remaining small parameters (norms, biases,
scales) are replaced by plain copies that autograd accepts. Blocks may be computed twice to save
memory (:mod:`training.base_model.checkpointing`). On the way out, however it is left, every module
is as it was: the same Parameter objects, the same ``forward``, no hook, no gradient. Backward
belongs inside the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor, nn

from .blocks import blocks_run
from .checkpointing import checkpointing
from .compiled import blocks_compiled, left_alone
from .forwards import forward_replaced
from .frozen import FrozenLayer, Weights, is_frozen_layer

_OFF: ContextVar[bool] = ContextVar("adapters_off", default=False)
"""Whether the adapters are switched off in this thread for the moment."""


@contextmanager
def training_context(
    model: nn.Module,
    adapters: Mapping[str, nn.Module],
    weights: Weights,
    storage_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    device: torch.device,
    gradient_checkpointing: bool = False,
    compile_blocks: bool = False,
) -> Iterator[None]:
    """Attach ``adapters`` to ``model`` and make it differentiable.

    Args:
        model: the frozen diffusion model.
        adapters: path of a Linear or Conv layer inside ``model`` -> its side path.
        weights: lends the frozen layers' weights, see :data:`training.base_model.frozen.Weights`.
        storage_dtype: parameters of this type are cast to ``compute_dtype``; parameters of any
            other type were meant to differ and stay.
        compute_dtype: the type that activations have inside the model.
        device: where the model computes; small parameters that the host keeps elsewhere are
            brought there once instead of at every call.
        gradient_checkpointing: compute what is inside a block again in backward.
        compile_blocks: with ``torch.compile`` (:mod:`training.base_model.compiled`).

    Raises:
        KeyError: an adapter's path is not a frozen layer of ``model``.
    """
    frozen = {path: m for path, m in model.named_modules() if is_frozen_layer(m)}
    if missing := adapters.keys() - frozen.keys():
        raise KeyError(f"no such Linear or Conv layer in the model: {sorted(missing)}")
    with ExitStack() as undo:
        for path, layer in frozen.items():
            forward = _forward_through(layer, adapters.get(path), weights)
            if compile_blocks:
                forward = left_alone(forward)
            undo.enter_context(forward_replaced(layer, forward))
        for module in model.modules():
            if not is_frozen_layer(module) and not isinstance(module, nn.Embedding):
                undo.enter_context(_plain_tensors(module, storage_dtype, compute_dtype, device))
            if _is_norm(module):
                undo.callback(module.register_forward_pre_hook(_copy_of_input).remove)
        if compile_blocks:
            undo.enter_context(blocks_compiled(model))
        if gradient_checkpointing:  # around them: what is computed again runs compiled, too
            undo.enter_context(blocks_run(model, checkpointing(device)))
        yield


@contextmanager
def adapters_off() -> Iterator[None]:
    """Inside, every model in a training context answers as its base does."""
    token = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(token)


def _is_norm(module: nn.Module) -> bool:
    """A norm over the last axis, by its class's name: every family brings its own."""
    return type(module).__name__.endswith(("LayerNorm", "RMSNorm"))


def _copy_of_input(module: nn.Module, args: tuple) -> tuple:
    """A norm keeps its input for backward, but ComfyUI's blocks go on to add to that very tensor in
    place (``x += attention(norm(x))``): let it keep a copy, which takes no more memory, since
    nothing else holds the original then.
    """
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)


def _adapted(adapter: nn.Module, frozen: FrozenLayer, x: Tensor) -> Tensor:
    return frozen(x) if _OFF.get() else adapter(frozen, x)


def _forward_through(
    layer: nn.Module, adapter: nn.Module | None, weights: Weights
) -> Callable[[Tensor], Tensor]:
    frozen = FrozenLayer(layer, weights)
    return frozen if adapter is None else partial(_adapted, adapter, frozen)


@contextmanager
def _plain_tensors(
    module: nn.Module,
    storage_dtype: torch.dtype,
    compute_dtype: torch.dtype,
    device: torch.device,
):
    """Lend a module copies of its own parameters and buffers that autograd may save.

    ComfyUI's tensors were made in inference mode, and autograd refuses to save those. They are
    copied even when they do not look like it: after a move to a GPU, which assigns ``.data``, such
    a tensor no longer calls itself an inference tensor and is still refused. All are small; Linear,
    Conv and Embedding weights are never touched.
    """
    parameters, buffers = dict(module._parameters), dict(module._buffers)

    def plain(tensor: Tensor) -> Tensor:
        dtype = compute_dtype if tensor.dtype == storage_dtype else tensor.dtype
        return tensor.data.to(device, dtype, copy=True)

    for name, parameter in parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(plain(parameter), requires_grad=False)
    for name, buffer in buffers.items():
        if buffer is not None:
            module._buffers[name] = buffer.clone()  # in its own type and place, as the host uses it
    try:
        yield
    finally:
        module._parameters.update(parameters)
        module._buffers.update(buffers)
