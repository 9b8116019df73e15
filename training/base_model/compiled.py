"""Blocks of the base model compiled by ``torch.compile``, where that works.

The adapted layers themselves stay as they are: each lends its weight for the moment, which no
graph could hold on to (:mod:`training.base_model.frozen`), and the products in them are one large
kernel anyway. What is compiled lies between them: norms, activations, attention's reshapes and
residual sums become few kernels. How much that gives depends on the device; the first step takes
up to minutes more, at every new size of picture again.

Nothing here can end a run: what the compiler cannot take is computed as without it, and
:func:`why_not` tells beforehand whether there is a compiler at all.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Manner, blocks_run

BACKEND = "inductor"
MOST_GRAPHS = 100_000
"""Each layer of each block is a graph of its own; PyTorch's limit of 8 would leave all but the
first few blocks uncompiled without a word."""

log = logging.getLogger("lora_atelier")


@cache
def why_not(device: torch.device) -> str:
    """Why nothing can be compiled for ``device``, in a line; "" if a small graph and its gradient
    could be.

    A first time takes seconds. Usual reasons: no C++ compiler (CPU), no Triton (GPU on Windows).
    """
    trial = torch.compile(_trial, dynamic=False)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            trial(torch.ones(8, 8, device=device, requires_grad=True)).backward()
    except Exception as error:  # whatever a compiler, a linker or a driver may say
        return first_line(error)
    return ""


@contextmanager
def blocks_compiled(model: nn.Module) -> Iterator[None]:
    """Inside, the repeated blocks of ``model`` run compiled. For layers that must not be looked
    into, see :func:`left_alone`."""
    limits = {"recompile_limit": MOST_GRAPHS, "accumulated_recompile_limit": MOST_GRAPHS}
    # An error inside the compiler means: this piece as without it. It says so in the log.
    with torch._dynamo.config.patch(suppress_errors=True, **limits), blocks_run(model, _manner()):
        yield


def left_alone(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``forward``, into which the compiler does not look."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        return forward(*args, **kwargs)

    return torch.compiler.disable(call)


def first_line(error: BaseException) -> str:
    """What the compiler itself complains of, without its traces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"


def _manner() -> Manner:
    compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
    compile_graph = _Backend()

    def call(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if forward not in compiled:
            compiled[forward] = torch.compile(forward, backend=compile_graph, dynamic=False)
        return compiled[forward](*args, **kwargs)

    return call


class _Backend:
    """PyTorch's own, and the graph as it is where that fails; all of them are equal, so that what
    was compiled for one piece of a run serves the next."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        from torch._dynamo.backends.registry import lookup_backend

        try:
            with _gradient_now():
                return lookup_backend(BACKEND)(graph, inputs)
        except Exception as error:
            log.warning("compile_blocks: a piece runs as it is: %s", first_line(error))
            return graph.forward

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Backend)

    def __hash__(self) -> int:
        return hash(_Backend)


def _gradient_now() -> AbstractContextManager[None]:
    """What backward runs is compiled with the graph, and fails with it, and not in the midst of a
    step. Older PyTorch has no such setting."""
    config = importlib.import_module("torch._functorch.config")
    setting = "force_non_lazy_backward_lowering"
    return config.patch(setting, True) if hasattr(config, setting) else nullcontext()


def _trial(x: Tensor) -> Tensor:
    return torch.nn.functional.silu(x * 2).sum()
