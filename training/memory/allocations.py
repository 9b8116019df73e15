"""The bytes of all tensors that come into being while one watches.

Every new storage is followed until it is freed, whoever holds it: a variable, a module, or autograd
for the backward pass. So what a training step needs can be counted on any device, and also of
tensors without numbers (device ``meta``), whose storages have a size but no memory.
The idea of following storages by weak references is that of ``torch.distributed._tools``.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Allocations(TorchDispatchMode):
    """Inside the context, ``live`` and ``peak`` are the bytes of storages that were made in it.

    What a kernel allocates and frees within one operation (the workspace of a convolution) is not
    seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        """Bytes of the storages that exist now."""
        self.peak = 0
        """The most there have been at once."""
        self._counts = True
        self._followed: dict[int, weakref.ref[Any]] = {}

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """What is made in here belongs to somebody else."""
        before, self._counts = self._counts, False
        try:
            yield
        finally:
            self._counts = before

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._counts:
            unknown = [s for s in storages_in(result) if id(s) not in self._followed]
            if unknown:  # of those, views of what was there before are not new
                given = {id(storage) for storage in storages_in((args, kwargs))}
                for storage in unknown:
                    if id(storage) not in given:
                        self._follow(storage)
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._followed or size == 0:
            return
        self.live += size
        self.peak = max(self.peak, self.live)

        def freed(_: Any) -> None:
            del self._followed[key]
            self.live -= size

        self._followed[key] = weakref.ref(storage, freed)


def storages_in(tree: Any) -> list[torch.UntypedStorage]:
    """Those of every tensor in nested lists and dicts; some may be there more than once."""
    if isinstance(tree, Tensor):
        return [tree.untyped_storage()]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return []
    return [storage for branch in tree for storage in storages_in(branch)]
