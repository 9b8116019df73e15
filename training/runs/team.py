"""Several processes that train one run together, step by step.

Each has the whole model and the whole network. A micro-batch B of the run's plan is cut into
shares, one a process; each computes the gradient of its own, and what they sum to is the gradient
that one process alone would have found:

    g = Σ_p g_p,    g_p = ∂/∂w  Σ_{i in B_p} L_i / |pictures of the step|,    B = B_1 ∪ … ∪ B_P

Everything after that is a function of the sum, the seed and the step, so each process takes the
same step, and how many there are does not matter to the result (but for rounding), to the run's
identity, or to who goes on from its checkpoints.

``DistributedDataParallel`` is not used: it counts the gradients of a module whose ``forward`` it
calls itself, but adapters are called from inside the base model, and its processes would wait for
ever for one whose share is empty. Nor is more than one reduction a step needed.

Processes speak by sums alone, in messages of one length: so one that has to leave, whatever the
reason, can say so in place of the answer that the others wait for, and all of them end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import AtelierError, require

T = TypeVar("T")

DIGEST_BITS = 24
"""What a float32 holds exactly; float64 is not there on every device."""
LONGEST_LIST = 16
"""Of numbers that :meth:`Team.sums` takes, at least."""

log = logging.getLogger("lora_atelier")


class TeamEnded(AtelierError):
    """Another process of the run has left it, with a word or without."""


class WeightsDiffer(AtelierError):
    """The processes of a run no longer have the same weights: nobody knows which are right."""


class Team:
    """The processes of a run, as one of them sees them; a single process is a team of one.

    Args:
        accelerator: an ``accelerate.Accelerator``; knows how many there are and reaches them.
        parameters: what is trained, the same in every process and in the same order.
        device: of the parameters.
    """

    def __init__(
        self, accelerator: Any, parameters: Iterable[nn.Parameter], device: torch.device
    ) -> None:
        self._accelerator = accelerator
        self._parameters = list(parameters)
        self._device = device
        self.rank: int = accelerator.process_index
        self.size: int = accelerator.num_processes
        require(
            self.size == 1 or accelerator.distributed_type.value.startswith("MULTI_"),
            f"accelerate is set to {accelerator.distributed_type.value}, which splits the model "
            "among processes. Adapters are small: run accelerate config again, or accelerate "
            "launch with --multi_gpu, so that each process holds all of it.",
        )
        self._is_amid_gradients = False
        """The others wait for numbers of another length than a message has."""
        self._words = max(len(self._parameters) + 1, self.size, LONGEST_LIST)

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    @property
    def key(self) -> tuple[int, ...]:
        """Part of the key of random numbers that are drawn for a share of the pictures."""
        return () if self.is_alone else (self.rank,)

    def share(self, items: list[T]) -> list[T]:
        """What of a list is for this process: its contiguous part; may be empty."""
        first, end = (len(items) * r // self.size for r in (self.rank, self.rank + 1))
        return items[first:end]

    def sums(self, values: Sequence[float]) -> list[float]:
        """Element by element, over all processes; each gets the same.

        Raises:
            TeamEnded: one of them has left.
        """
        if self.is_alone:
            return list(values)
        return self._said(values)[: len(values)]

    def each(self, value: float) -> list[float]:
        """The value of every process, by rank; exact to 24 bits. Raises as :meth:`sums`."""
        return self.sums([value if rank == self.rank else 0.0 for rank in range(self.size)])

    @torch.no_grad()
    def add_up_gradients(self, loss: float) -> float:
        """Give each process the gradients of all; the value is the sum of the losses likewise.

        A parameter without a gradient gets one if another process has one for it, and none if
        nobody has: an optimizer passes over it then, instead of decaying it. Raises as
        :meth:`sums`.
        """
        if self.is_alone:
            return loss
        has_gradient = [float(p.grad is not None) for p in self._parameters]
        loss, *counts = self.sums([loss, *has_gradient])
        by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter, count in zip(self._parameters, counts, strict=True):
            if count > 0:
                by_dtype.setdefault(parameter.dtype, []).append(parameter)
        self._is_amid_gradients = True
        for parameters in by_dtype.values():
            self._add_up(parameters)
        self._is_amid_gradients = False
        return loss

    def agree_to_finish(self, wish: bool, digest: Callable[[], int]) -> bool:
        """After a step: whether anybody wishes the end. Meanwhile :meth:`compare_first` of another
        process may ask for digests. Raises as these two."""
        while not self.is_alone:
            wishes, comparisons = self.sums([float(wish), 0.0])
            if not comparisons:
                return wishes > 0
            self.require_alike(digest)
        return wish

    def compare_first(self, digest: Callable[[], int]) -> None:
        """For one process, between the others' steps: see that all have the same weights."""
        if not self.is_alone:
            self.sums([0.0, 1.0])
            self.require_alike(digest)

    def require_alike(self, digest: Callable[[], int]) -> None:
        """For all at the same point.

        Args:
            digest: gives one of the weights, below 2^24.

        Raises:
            WeightsDiffer: they do.
            TeamEnded: as :meth:`sums`.
        """
        if self.is_alone:
            return
        digests = self.each(digest())
        odd = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
        if odd:
            raise WeightsDiffer(
                f"The processes of this run no longer have the same weights: {', '.join(odd)} of "
                f"{self.size} differ from process 0. Nothing was saved of that. Start again to go "
                "on from the last checkpoint; if it happens anew, look for broken memory, or for "
                "machines with other versions of PyTorch."
            )

    def require_same_step(self, step: int) -> None:
        """For all at the beginning.

        Raises:
            AtelierError: they would go on from different states.
            TeamEnded: as :meth:`sums`.
        """
        steps = [round(value) for value in self.each(step)]
        require(
            len(set(steps)) == 1,
            "The processes of this run found checkpoints of different steps "
            f"({', '.join(map(str, steps))}). On several machines, all need the same output "
            "folder: put it on a shared drive (--output-directory).",
        )

    def leave(self, error: BaseException) -> None:
        """Tell the others, who wait for something else, that this process ends by ``error``."""
        if self.is_alone or isinstance(error, TeamEnded) or self._is_amid_gradients:
            return  # the last: the link breaks when this process ends
        try:
            self._said([], leaves=True)
        except TeamEnded:
            return  # as this very process has just said, or there is nobody left to hear it
        except Exception:
            log.exception("The other processes of the run could not be told that this one ends")

    def _said(self, values: Sequence[float], leaves: bool = False) -> list[float]:
        """One message to all: whether somebody leaves, and numbers."""
        filled = [float(leaves), *values, *[0.0] * (self._words - len(values))]
        message = torch.tensor(filled, dtype=torch.float32, device=self._device)
        left, *sums = self._reduced(message).tolist()
        if left > 0:
            raise TeamEnded(
                "Another process of this run has stopped or failed, so this one ends as well. Its "
                "own message says why."
            )
        return sums

    def _add_up(self, parameters: list[nn.Parameter]) -> None:
        """Sum the gradients of parameters of one type, in one buffer."""
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self._reduced(torch.cat([gradient.reshape(-1) for gradient in own]))
        parts = flat.split([parameter.numel() for parameter in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def _reduced(self, tensor: Tensor) -> Tensor:
        with _in_words():
            return self._accelerator.reduce(tensor, "sum")


def require_enough(train_batch_size: int, processes: int) -> None:
    """Refuse a run in which a process would have nothing to do.

    Raises:
        AtelierError: fewer pictures in a batch than processes.
    """
    require(
        train_batch_size >= processes,
        f"train_batch_size is {train_batch_size}, but {processes} processes are to share each "
        f"batch. Start {train_batch_size} at most (--num_processes), or launch with "
        f"--train_batch_size {processes * math.ceil(train_batch_size / processes)}: another batch "
        "size is another run, which begins anew.",
    )


@contextmanager
def _in_words() -> Iterator[None]:
    """The backends tell of a lost process by a bare RuntimeError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise TeamEnded(
            "Another process of this run has ended without a word: it was killed, or its machine "
            f"cannot be reached. ({error})"
        ) from error
