"""Random numbers as a pure function of (seed, purpose, position).

A run owns no random-number state: the noise of the 7th picture of epoch 3 is always the same,
whatever was drawn before it, on every device, at every batch size. That is what makes a resumed
run equal to one that was never stopped, previews harmless, and four accumulated micro-steps of one
picture equal to one step of four.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

Streams = list[tuple[Callable[[], Tensor], Callable[[Tensor], None]]]
"""How to get and how to set the state of each random stream."""


def generator(seed: int, *key: object) -> torch.Generator:
    """A CPU generator for one purpose and position.

    Args:
        seed: the run's seed.
        key: what the numbers are for, e.g. ``("noise", epoch, position)``; compared by ``str``.
    """
    text = "/".join(str(part) for part in (seed, *key))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1)


def global_streams(device: torch.device) -> Streams:
    """torch's own streams that code on ``device`` may draw from: the CPU's, and the device's."""
    streams: Streams = [(torch.get_rng_state, torch.set_rng_state)]
    module = getattr(torch, device.type, None)
    if device.type == "cpu" or not hasattr(module, "set_rng_state"):
        return streams
    if device.type == "mps":  # there is only one, and its functions take no device
        return [*streams, (module.get_rng_state, module.set_rng_state)]
    get, set_ = module.get_rng_state, module.set_rng_state
    return [*streams, (partial(get, device), partial(set_, device=device))]


@contextmanager
def rewound(streams: Streams, states: Iterable[Tensor]) -> Iterator[None]:
    """Inside, the streams go on from these states; afterwards, from where they were."""
    before = [get() for get, _ in streams]
    try:
        for (_, set_), state in zip(streams, states, strict=True):
            set_(state)
        yield
    finally:
        for (_, set_), state in zip(streams, before, strict=True):
            set_(state)


@contextmanager
def global_stream(device: torch.device, seed: int, *key: object) -> Iterator[None]:
    """For code that draws from torch's own streams: they start from the key, and are put back.

    Args:
        device: whose stream is meant besides the CPU's.
        seed, key: as for :func:`generator`.
    """
    number = generator(seed, *key).initial_seed()
    streams = global_streams(device)
    places = [torch.device("cpu"), device][: len(streams)]
    states = [torch.Generator(place).manual_seed(number).get_state() for place in places]
    with rewound(streams, states):
        yield
