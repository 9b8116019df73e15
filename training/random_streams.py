"""Random numbers as a pure function of (seed, purpose, position).

A run owns no random-number state: the noise of the 7th picture of epoch 3 is always the same,
whatever was drawn before it, on every device, at every batch size. That is what makes a resumed
run equal to one that was never stopped, previews harmless, and four accumulated micro-steps of one
picture equal to one step of four.
"""

from __future__ import annotations

import hashlib

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
