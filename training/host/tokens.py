"""How the text encoders of a CLIP cut captions into tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..dataset.token_counts import EncoderTokens

PROBE = 1000
"""Words of a text that is too long for every encoder that cuts or splits."""

MOST_EXAMPLES = 10
"""Captions of which the words beyond the limit are looked up: that takes a pass for each word."""

Tick = Callable[[], None]


class _Limit(NamedTuple):
    tokens: int | None
    cuts: bool


def token_counts(clip: Any, captions: Sequence[str], tick: Tick) -> tuple[EncoderTokens, ...]:
    """Every caption through the host's own tokenizers, as plain text: brackets are no weights.

    Args:
        tick: called after each caption; may raise to cancel.
    """
    encoders = _Encoders(clip)
    counts = []
    for caption in captions:
        counts.append(encoders.count(caption))
        tick()
    return tuple(
        _of_encoder(encoders, name, limit, captions, [count[name] for count in counts])
        for name, limit in encoders.limits().items()
    )


def tokenize(clip: Any, text: str, **options: Any) -> dict[str, list[list[tuple]]]:
    """``clip.tokenize`` of a text that is no prompt: brackets stay as they are written.

    Escaping them amounts to ``disable_weights=True``, which the tokenizers of Qwen-Image, Z-Image
    and Flux.2 do not take: they hand it on themselves.
    """
    plain = text.replace("\\(", "(").replace("\\)", ")")
    return clip.tokenize(plain.replace("(", "\\(").replace(")", "\\)"), **options)


class _Encoders:
    """The tokenizers of a CLIP; every number leaves out start, end, padding and template."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip
        self.template = {name: sum(passes) for name, passes in self._passes("").items()}

    def count(self, text: str) -> dict[str, int]:
        """Encoder -> tokens of a text."""
        passes = self._passes(text)
        return {name: sum(tokens) - self.template[name] for name, tokens in passes.items()}

    def limits(self) -> dict[str, _Limit]:
        """What each encoder does with a text that is too long, found by giving it two."""
        long, longer = (self._passes("a " * words) for words in (PROBE, 2 * PROBE))
        limits = {}
        for name, tokens in long.items():
            if sum(tokens) == sum(longer[name]):
                limits[name] = _Limit(sum(tokens) - self.template[name], cuts=True)
            elif len(tokens) > 1:
                limits[name] = _Limit(tokens[0], cuts=False)
            else:
                limits[name] = _Limit(None, cuts=False)
        return limits

    def _passes(self, text: str) -> dict[str, list[int]]:
        """Encoder -> tokens in each pass; those that are no words have the word number 0."""
        return {
            name: [sum(token[2] != 0 for token in tokens) for tokens in passes]
            for name, passes in tokenize(self.clip, text, return_word_ids=True).items()
        }


def _of_encoder(
    encoders: _Encoders, name: str, limit: _Limit, captions: Sequence[str], counts: list[int]
) -> EncoderTokens:
    if limit.tokens is None:
        return EncoderTokens(name, None, False, tuple(counts), ())
    if limit.cuts:  # what was cut is not in the counts
        for i, count in enumerate(counts):
            if count >= limit.tokens:
                counts[i] = sum(encoders.count(word)[name] for word in captions[i].split())
    over = [i for i, count in enumerate(counts) if count > limit.tokens]
    longest = sorted(over, key=lambda i: -counts[i])[:MOST_EXAMPLES]
    beyond = tuple((i, _beyond(encoders, name, captions[i], limit.tokens)) for i in longest)
    return EncoderTokens(name, limit.tokens, limit.cuts, tuple(counts), beyond)


def _beyond(encoders: _Encoders, name: str, caption: str, limit: int) -> str:
    """The words from the first that does not fit wholly into ``limit`` tokens.

    No tokenizer joins words over a space, so the counts of the words add up.
    """
    words, total = caption.split(), 0
    for place, word in enumerate(words):
        total += encoders.count(word)[name]
        if total > limit:
            return " ".join(words[place:])
    return ""
