"""What the captions of a dataset have in common, and where they have gaps."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .samples import Role, Sample
from .tags import split_tags

LONGEST_TAG = 3.5
"""Words; captions whose parts between commas are longer on average are prose."""

NEARLY_ALL = 0.8
"""A tag in at least this share of the captions, but not in all, was probably meant for all."""

ENOUGH = 5
"""Captions; with fewer, a tag that is missing once says nothing."""

SMALL_WORDS = frozenset(
    "a an and are as at be but by can for from has have he her his in into is it its no not of on "
    "one or over she some that the their them there they this to two under up used very was were "
    "which while with".split()
)

Places = tuple[int, ...]
"""Indices into the dataset's samples."""


@dataclass(frozen=True)
class CaptionCounts:
    """Tags and captions are counted over the training pictures, gaps over all."""

    captioned: int
    """Training pictures that have a caption."""
    empty: Places
    """Samples without any caption."""
    partly_empty: Places
    """Samples of which one of several captions is empty."""
    shared: tuple[tuple[str, int], ...]
    """Captions that stand at more than one picture, and at how many; the most frequent first."""
    prose: bool
    """Sentences rather than tags."""
    counts: Counter[str]
    """Tag, or word when they are prose -> training pictures that have it."""
    forgotten: tuple[tuple[str, Places], ...]
    """Tags that nearly all training pictures have, and the samples that lack them."""

    @property
    def in_all(self) -> list[str]:
        """Tags that every captioned training picture has; none if there is only one."""
        if self.captioned < 2:
            return []
        return [tag for tag, count in self.counts.items() if count == self.captioned]

    @property
    def once(self) -> list[str]:
        """Tags of a single picture."""
        return [tag for tag, count in self.counts.items() if count == 1]


def count_captions(samples: Sequence[Sample]) -> CaptionCounts:
    """Look through the captions of a dataset, as they stand."""
    training = [
        i for i, s in enumerate(samples) if s.role is Role.TRAIN and any(map(str.strip, s.captions))
    ]
    prose = _is_prose([samples[i] for i in training])
    items = {i: _words(samples[i]) if prose else _tags(samples[i]) for i in training}
    counts = Counter(item for found in items.values() for item in found)
    texts = Counter(
        text.strip()
        for i in training
        for text in dict.fromkeys(samples[i].captions)
        if text.strip()
    )
    return CaptionCounts(
        len(training),
        tuple(i for i, s in enumerate(samples) if not any(map(str.strip, s.captions))),
        tuple(
            i
            for i, s in enumerate(samples)
            if any(map(str.strip, s.captions)) and not all(map(str.strip, s.captions))
        ),
        tuple((text, count) for text, count in texts.most_common() if count > 1),
        prose,
        Counter(dict(counts.most_common())),
        _forgotten(items, counts),
    )


def plain_captions(sample: Sample) -> list[str]:
    """The captions of a sample with a separator in place of each ``keep_tokens_separator``."""
    options = sample.caption_options
    mark, separator = options.keep_tokens_separator, options.caption_separator
    return [text.replace(mark, separator) if mark else text for text in sample.captions]


def all_captions(sample: Sample) -> str:
    """Every caption of a sample, a line each."""
    return "\n".join(plain_captions(sample))


def _forgotten(
    items: dict[int, dict[str, None]], counts: Counter[str]
) -> tuple[tuple[str, Places], ...]:
    if len(items) < ENOUGH:
        return ()
    nearly = [t for t, n in counts.most_common() if NEARLY_ALL * len(items) <= n < len(items)]
    return tuple((tag, tuple(i for i, has in items.items() if tag not in has)) for tag in nearly)


def _is_prose(samples: Sequence[Sample]) -> bool:
    tags = [tag for sample in samples for tag in _tags(sample)]
    words = sum(len(tag.split()) for tag in tags)
    return words > LONGEST_TAG * len(tags)


def _tags(sample: Sample) -> dict[str, None]:
    """The distinct tags of a sample in their order, lower case."""
    separator = sample.caption_options.caption_separator
    lines = all_captions(sample).splitlines()
    tags = (tag for line in lines for tag in split_tags(line, separator))
    return dict.fromkeys(" ".join(tag.lower().split()) for tag in tags)


def _words(sample: Sample) -> dict[str, None]:
    """The distinct words of a sample without those that every sentence has, lower case."""
    words = re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", all_captions(sample).lower())
    return dict.fromkeys(word for word in words if word not in SMALL_WORDS)
