"""Captions through the CLIP of the graph, each once, kept on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..cache import TensorCache, digest_of
from ..errors import AtelierError, require
from ..runs.examples import Conditioning
from ..tensor_tree import NotATree, put_together, take_apart
from .digests import clip_digest, tokens_digest
from .tokens import tokenize

Tick = Callable[[], None]
"""Called after every item; may raise to end the work."""

VERSION = 1
"""Part of every key: raise it when the same caption would give other numbers."""

EMBEDDING = "embedding:"
"""How a caption names a file of vectors, which may change under its name."""

log = logging.getLogger("lora_atelier")


def encode_captions(clip: Any, captions: Iterable[str], tick: Tick) -> dict[str, Conditioning]:
    """Each distinct caption once, as CLIPTextEncode would give it with its brackets escaped.

    Returns:
        caption -> [embedding [1, T, D], extras], on the CPU, in tensors that autograd accepts.
    """
    encoded = {}
    for caption in captions:
        if caption not in encoded:
            # A caption is text, not a prompt: "saber (fate)" keeps its brackets and its weight.
            tokens = tokenize(clip, caption)
            conditioning = clip.encode_from_tokens_scheduled(tokens)
            require(
                len(conditioning) == 1,
                "clip: it changes over the sampling steps (hooks with a schedule), which training "
                "cannot follow. Wire the CLIP without the hooks.",
            )
            encoded[caption] = plain(conditioning[0])
            tick()
    return encoded


class CachedText(Mapping[str, Conditioning]):
    """Captions as the text encoder gave them, read from disk when they are asked for."""

    def __init__(
        self, cache: TensorCache, keys: Mapping[str, str], in_memory: Mapping[str, Conditioning]
    ) -> None:
        self._cache = cache
        self._keys = {caption: bytes.fromhex(key) for caption, key in keys.items()}
        self._in_memory = dict(in_memory)

    def __getitem__(self, caption: str) -> Conditioning:
        if caption in self._in_memory:
            return self._in_memory[caption]
        conditioning = _read(self._cache, self._keys[caption].hex())
        if conditioning is None:
            raise gone(self._cache)
        return conditioning

    def __contains__(self, caption: object) -> bool:
        return caption in self._keys or caption in self._in_memory

    def __iter__(self) -> Iterator[str]:
        yield from self._keys
        yield from self._in_memory

    def __len__(self) -> int:
        return len(self._keys) + len(self._in_memory)


def cached_captions(
    clip: Any, captions: Iterable[str], cache: TensorCache, tick: Tick
) -> CachedText:
    """Encode what the cache does not hold; the text encoder is not loaded when it holds all.

    What a file cannot hold (hooks that other nodes hang on a conditioning) stays in memory.

    Args:
        tick: called once a distinct caption.
    """
    encoder = clip_digest(clip)
    keys: dict[str, str] = {}
    in_memory: dict[str, Conditioning] = {}
    for caption in dict.fromkeys(captions):
        key = None if encoder is None else _key(clip, encoder, caption)
        if key is not None and _read(cache, key) is not None:
            keys[caption] = key
        else:
            conditioning = encode_captions(clip, [caption], lambda: None)[caption]
            if key is not None and _write(cache, key, conditioning):
                keys[caption] = key
            else:
                in_memory[caption] = conditioning
        tick()
    if in_memory:
        log.warning(
            "clip: %d texts are held in memory and will be encoded again in the next run: other "
            "nodes hung code or hooks on the text encoder, which no file can hold.",
            len(in_memory),
        )
    return CachedText(cache, keys, in_memory)


def gone(cache: TensorCache) -> AtelierError:
    """What to say of an entry that was there when the run began."""
    return AtelierError(
        f'An entry of the cache "{cache.folder}" is gone or broken. It was deleted while a run '
        "used it: queue again, and it is made anew."
    )


def _key(clip: Any, encoder: str, caption: str) -> str:
    vectors = tokens_digest(tokenize(clip, caption)) if EMBEDDING in caption else ""
    return digest_of(VERSION, "text", encoder, caption, vectors)


def _write(cache: TensorCache, key: str, conditioning: Conditioning) -> bool:
    """False when a file cannot hold it."""
    try:
        tensors, form = take_apart(conditioning)
    except NotATree:
        return False
    cache.write(key, tensors, {"form": form})
    return True


def _read(cache: TensorCache, key: str) -> Conditioning | None:
    entry = cache.read(key)
    return None if entry is None else put_together(entry[0], entry[1]["form"])


def plain(value: Any) -> Any:
    """Copies made outside inference mode, which autograd may save."""
    with torch.inference_mode(False):
        if isinstance(value, Tensor):
            return value.detach().to("cpu", copy=True)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(plain(item) for item in value)
        return value
