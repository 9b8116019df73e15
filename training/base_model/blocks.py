"""The repeated blocks of a model, and running all of them in another way.

The blocks of a U-Net are its residual and transformer blocks; those of a diffusion transformer or a
text encoder are the members of its outermost lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn

from ..errors import require
from ..network.targets import UNET_TRANSFORMERS
from .forwards import forward_replaced
from .frozen import is_frozen_layer

UNET_BLOCKS = ("BasicTransformerBlock", "ResBlock", "VideoResBlock", "ResnetBlock2D")

Manner = Callable[..., Any]
"""``manner(forward, *args, **kwargs)``: calls ``forward(*args, **kwargs)`` and gives its answer."""


def repeated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> block, in the model's own order; no block lies inside another."""
    names = {type(module).__name__ for module in model.modules()}
    if names.intersection(UNET_TRANSFORMERS):
        return dict(_outermost(model, "", lambda m, _: type(m).__name__ in UNET_BLOCKS))
    return dict(_outermost(model, "", _is_member))


def require_blocks(model: nn.Module, setting: str) -> None:
    """Refuse a ``setting`` about blocks where it would do nothing.

    Raises:
        AtelierError: no blocks are found in ``model``.
    """
    require(
        len(repeated_blocks(model)) > 0,
        f"{setting} is on, but no repeated blocks are found in this model, so that it would save "
        "nothing. Switch it off.",
    )


@contextmanager
def blocks_run(model: nn.Module, manner: Manner) -> Iterator[None]:
    """Inside, every block of ``model`` is called in this manner."""
    with ExitStack() as undo:
        for block in repeated_blocks(model).values():
            undo.enter_context(forward_replaced(block, partial(manner, block.forward)))
        yield


def _outermost(
    module: nn.Module, path: str, wanted: Callable[[nn.Module, nn.Module], bool]
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if wanted(child, module):
            yield below, child
        else:
            yield from _outermost(child, below, wanted)


def _is_member(module: nn.Module, parent: nn.Module) -> bool:
    """Whether it is a member of a list, with layers of its own."""
    containers = (nn.ModuleList, nn.ModuleDict)
    return (
        isinstance(parent, containers)
        and not isinstance(module, containers)
        and not is_frozen_layer(module)
        and any(is_frozen_layer(layer) for layer in module.modules())
    )
