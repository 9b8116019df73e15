"""Random numbers as a pure function of (seed, purpose, position).

A run owns no random-number state: the noise of the 7th picture of epoch 3 is always the same,
whatever was drawn before it, on every device, at every batch size. That is what makes a resumed
run equal to one that was never stopped, previews harmless, and four accumulated micro-steps of one
picture equal to one step of four.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def generator(seed: int, *key: object) -> torch.Generator:
    """A CPU generator for one purpose and position.

    Args:
        seed: the run's seed.
        key: what the numbers are for, e.g. ``("noise", epoch, position)``; compared by ``str``.
    """
    text = "/".join(str(part) for part in (seed, *key))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


@contextmanager
def global_stream(device: torch.device, seed: int, *key: object) -> Iterator[None]:
    """For code that draws from torch's own streams: they start from the key, and are put back.

    Args:
        device: whose stream is meant besides the CPU's.
        seed, key: as for :func:`generator`.
    """
    number = generator(seed, *key).initial_seed()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(number)  # torch.manual_seed would touch every device
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield
