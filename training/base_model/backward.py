"""What keeps autograd from going back through a base model, said in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import AtelierError

# Torch has no kinds of errors for these; the words are those of its versions since 2.0.
OVERWRITTEN = "modified by an inplace operation"
WITHOUT_BACKWARD = re.compile(
    "no autograd formula was registered|derivative for .* not implemented"
)


@contextmanager
def backward_told() -> Iterator[None]:
    """Around ``backward``: errors that lie in the base model become sentences.

    Raises:
        AtelierError: the model overwrites what backward needs, or computes something without one.
    """
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if OVERWRITTEN in said:
            raise AtelierError(
                "model: it, or a patch on it, overwrites in place what its gradient needs. Remove "
                "the patches, or train another base model."
            ) from error
        if WITHOUT_BACKWARD.search(said):
            raise AtelierError(
                "model: it, or a patch on it, computes with a kernel that has no backward "
                f"({said.splitlines()[0]}). Remove patches that bring faster kernels, or train "
                "another base model."
            ) from error
        raise
