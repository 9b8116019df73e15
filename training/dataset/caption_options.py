"""What training does to a caption each time it is drawn, as kohya-ss/sd-scripts does it.

Wildcards are filled in first. Then, when tags are shuffled or dropped, the caption is split at
``caption_separator``: what stands before ``keep_tokens_separator`` (and after a second one) or, if
there is none, the first ``keep_tokens`` tags stay where they are; the rest is shuffled, then each
of it dropped with ``caption_tag_dropout_rate``; all of it is joined with ", ". Source:
``library/train_util.py`` ``BaseDataset.process_caption`` (sd-scripts, commit 48d368fa), which draws
anew each time; here a bounded number of results per picture is drawn from, so that each text is
encoded only once.

Two differences are meant. Where no tag is shuffled or dropped, sd-scripts leaves ``|||`` in the
text, and a third one always; here it never reaches the text encoder. And nothing between two
separators is no tag, where sd-scripts takes it for one unless the caption has ``|||``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ..errors import require, require_number
from ..random_streams import generator
from .tags import split_tags

WILDCARD = re.compile(r"\{([^}]+)\}")
ESCAPED_OPEN, ESCAPED_CLOSE = "\ufdd0", "\ufdd1"
"""Stand for ``{{`` and ``}}`` while wildcards are filled in; no text has these characters, which
Unicode keeps for a program's own use."""


@dataclass(frozen=True)
class CaptionOptions:
    """Chosen in Edit Captions; by default a caption trains as it stands."""

    shuffle_caption: bool = False
    """Shuffle the tags, all but the kept ones."""
    keep_tokens: int = 0
    """How many tags at the front stay there; not asked where ``keep_tokens_separator`` stands."""
    keep_tokens_separator: str = "|||"
    """What stands before it stays in front, what follows a second one at the end; "" = off."""
    caption_tag_dropout_rate: float = 0.0
    """Probability with which a tag that is not kept is left out."""
    caption_dropout_rate: float = 0.0
    """Probability with which a picture is seen without any caption."""
    caption_dropout_every_n_epochs: int = 0
    """In every n-th epoch all pictures are seen without caption; 0 = never."""
    enable_wildcard: bool = False
    """``{a|b}`` means a or b; ``{{`` and ``}}`` are plain braces."""
    caption_variants: int = 8
    """Texts that are drawn of each picture, and encoded, when something about them is random."""
    caption_separator: str = ","
    """What lies between two tags."""

    def __post_init__(self) -> None:
        require_number("keep_tokens", self.keep_tokens, 0, 1000, "1 keeps a trigger word in front.")
        for name in ("caption_tag_dropout_rate", "caption_dropout_rate"):
            require_number(name, getattr(self, name), 0, 1, "0 = off, 0.05 to 0.1 is usual.")
        every = self.caption_dropout_every_n_epochs
        require_number("caption_dropout_every_n_epochs", every, 0, 1e6, "0 = off.")
        require_number("caption_variants", self.caption_variants, 1, 1000, "8 is usual.")
        require(self.caption_separator != "", 'caption_separator is empty. "," is usual.')
        mark = self.keep_tokens_separator
        require(
            mark == "" or (mark.strip() != "" and mark not in self.caption_separator),
            f'keep_tokens_separator is "{mark}" and caption_separator "{self.caption_separator}": '
            "the first would be found between any two tags. Use ||| and a comma.",
        )

    @property
    def splits(self) -> bool:
        """Tags are looked at one by one."""
        return self.shuffle_caption or self.caption_tag_dropout_rate > 0

    def varies(self, caption: str) -> bool:
        """The caption may give different texts."""
        if self.enable_wildcard and "{" in caption:
            return True
        if not self.splits:
            return False
        flexible = len(_kept_and_flexible(caption, self)[1])
        return flexible > (0 if self.caption_tag_dropout_rate > 0 else 1)


def caption_variants(
    captions: tuple[str, ...], options: CaptionOptions, key: str
) -> tuple[str, ...]:
    """The texts that training draws from, each equally often.

    Every alternative caption has the same number of variants; equal ones are kept, since they
    carry the probabilities. Whole captions are dropped elsewhere, where one is drawn.

    Args:
        captions: the alternatives.
        key: the name of the sample.
    """
    count = count_variants(captions, options)
    return tuple(caption_variant(captions, options, key, k) for k in range(count))


def count_variants(captions: tuple[str, ...], options: CaptionOptions) -> int:
    """``caption_variants``, rounded up to a multiple of the alternatives; only as many as those
    where nothing else varies."""
    if not any(options.varies(caption) for caption in captions):
        return len(captions)
    return -(-options.caption_variants // len(captions)) * len(captions)


def caption_variant(
    captions: tuple[str, ...], options: CaptionOptions, key: str, number: int
) -> str:
    """One of :func:`caption_variants`; a function of the arguments alone.

    Args:
        number: from 0; the alternatives take turns.
    """
    caption = captions[number % len(captions)]
    if not (options.splits or options.enable_wildcard):
        return _unmarked(caption, options)
    rng = generator(0, "caption variant", key, number)
    if options.enable_wildcard:
        caption = fill_wildcards(caption, rng)
    return _arranged(caption, options, rng) if options.splits else _unmarked(caption, options)


def fill_wildcards(caption: str, rng: torch.Generator) -> str:
    """``{a|b}`` -> a or b with equal probability; ``{{`` and ``}}`` -> plain braces."""
    text = caption.replace("{{", ESCAPED_OPEN).replace("}}", ESCAPED_CLOSE)

    def choose(match: re.Match[str]) -> str:
        choices = match[1].split("|")
        return choices[int(torch.randint(len(choices), (1,), generator=rng))]

    text = WILDCARD.sub(choose, text)
    return text.replace(ESCAPED_OPEN, "{").replace(ESCAPED_CLOSE, "}")


def _arranged(caption: str, options: CaptionOptions, rng: torch.Generator) -> str:
    """The tags, shuffled and thinned out."""
    front, flexible, end = _kept_and_flexible(caption, options)
    if options.shuffle_caption:
        flexible = [flexible[i] for i in torch.randperm(len(flexible), generator=rng).tolist()]
    if options.caption_tag_dropout_rate > 0:
        chances = torch.rand(len(flexible), generator=rng).tolist()
        rate = options.caption_tag_dropout_rate
        flexible = [t for t, chance in zip(flexible, chances, strict=True) if chance >= rate]
    return ", ".join(front + flexible + end)


def _kept_and_flexible(
    caption: str, options: CaptionOptions
) -> tuple[list[str], list[str], list[str]]:
    """(tags that stay in front, tags in between, tags that stay at the end)."""
    mark, separator = options.keep_tokens_separator, options.caption_separator
    if mark and mark in caption:
        front, flexible, *end = caption.split(mark, 2)
        rest = separator.join(end).replace(mark, separator)
        return (
            split_tags(front, separator),
            split_tags(flexible, separator),
            split_tags(rest, separator),
        )
    tags = split_tags(caption, separator)
    return tags[: options.keep_tokens], tags[options.keep_tokens :], []


def _unmarked(caption: str, options: CaptionOptions) -> str:
    """The caption with a separator in place of each ``keep_tokens_separator``."""
    mark, separator = options.keep_tokens_separator, options.caption_separator
    if not mark or mark not in caption:
        return caption
    parts = (_bare(part, separator) for part in caption.split(mark))
    return f"{separator.strip()} ".join(part for part in parts if part)


def _bare(text: str, separator: str) -> str:
    """Without white space and separators at its ends."""
    text, separator = text.strip(), separator.strip()
    while separator and text.startswith(separator):
        text = text.removeprefix(separator).lstrip()
    while separator and text.endswith(separator):
        text = text.removesuffix(separator).rstrip()
    return text
