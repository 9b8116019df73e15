"""How long the captions are in tokens, as the text encoders of a CLIP count them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

CLIP_TOKENS = 75
"""Tokens of a CLIP text encoder beside start and end (77): what other programs cut at, unless they
are told to chain several passes as ComfyUI does."""


@dataclass(frozen=True)
class EncoderTokens:
    """One text encoder and all captions."""

    encoder: str
    """The host's name for it: ``l``, ``g``, ``t5xxl``."""
    limit: int | None
    """Tokens that fit into one pass; None = a caption of any length goes through in one."""
    cuts: bool
    """What is over the limit is dropped; otherwise it goes through in further passes."""
    counts: tuple[int, ...]
    """Of each caption, without start, end, padding and the model's own template. Where the encoder
    cuts, of what is left."""
    beyond: tuple[tuple[int, str], ...]
    """(index of the caption, its words after the first ``limit`` tokens), of the longest few."""

    @property
    def over(self) -> list[int]:
        """Indices of the captions that do not fit into one pass."""
        if self.limit is None:
            return []
        return [i for i, count in enumerate(self.counts) if count > self.limit]

    def passes(self, count: int) -> int:
        """How many times the encoder runs for a caption of ``count`` tokens."""
        return 1 if self.limit is None else max(1, -(-count // self.limit))


def distinct_encoders(tokens: Iterable[EncoderTokens]) -> list[EncoderTokens]:
    """Encoders that count and cut alike (CLIP-L and CLIP-G of SDXL) as one: ``g + l``."""
    alike: dict[tuple, list[EncoderTokens]] = {}
    for encoder in tokens:
        alike.setdefault((encoder.limit, encoder.cuts, encoder.counts), []).append(encoder)
    return [
        replace(group[0], encoder=" + ".join(sorted(e.encoder for e in group)))
        for group in alike.values()
    ]
