"""Changes to the captions of a dataset, for good, before training draws from them.

In this order: find and replace; remove tags; remove tags that the trigger word absorbs; add tags;
deduplicate; sort; prefix and suffix; trigger word in front. A caption to which none of it applies
keeps every character. Each caption is edited where it stands, so it can never come to another
picture.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from ..errors import require, require_number
from ..runs.examples import captions
from .caption_options import CaptionOptions
from .edit_report import ChangedCaption, EditReport
from .find_replace import replacement
from .samples import ImageDataset, Role, Sample
from .tag_layout import TagLayout, tag_key
from .tags import split_tags

Change = Callable[[TagLayout, str], str]
"""(how a caption is cut, the caption) -> the caption as it is then."""

MOST_ABSORB_ABOVE = 0.99
"""No tag is in more than all captions."""


class SortTags(str, Enum):
    """The order of the tags; equal ones keep theirs. Frequencies are those in training captions."""

    AS_WRITTEN = "as_written"
    MOST_FREQUENT_FIRST = "most_frequent_first"
    RAREST_FIRST = "rarest_first"
    ALPHABETICAL = "alphabetical"


@dataclass(frozen=True)
class CaptionEdits:
    """Chosen in Edit Captions; by default nothing changes."""

    class_tokens: str = ""
    """Trigger word, or several with commas: tags that stand first in every caption."""
    caption_prefix: str = ""
    """Put before the caption, with a space between, as sd-scripts does."""
    caption_suffix: str = ""
    """Put behind it, likewise; no space comes before a comma or full stop."""
    add_tags: str = ""
    """Comma list; a caption that has one of them does not get it twice."""
    remove_tags: str = ""
    """Comma list; whole tags, in any case, ``*`` stands for any characters."""
    find: str = ""
    """Text to replace, wherever it stands in a caption."""
    replace_with: str = ""
    use_regex: bool = False
    """``find`` is a regular expression, and ``replace_with`` may name its groups."""
    deduplicate: bool = False
    """Keep only the first of equal tags."""
    sort_tags: SortTags = SortTags.AS_WRITTEN
    absorb_above: float = 0.0
    """Tags in more than this share of the training captions, and in two of them at least, are
    removed, since the trigger word takes over what they say; 0 = none."""

    def __post_init__(self) -> None:
        require_absorber(self.class_tokens, self.absorb_above)
        replacement(self.find, self.replace_with, self.use_regex)

    @property
    def trigger(self) -> list[str]:
        """The tags of ``class_tokens``."""
        return split_tags(self.class_tokens)


def require_absorber(class_tokens: str, absorb_above: float) -> None:
    """Judge two widgets together.

    Raises:
        AtelierError: out of range, or there is no trigger word to absorb anything.
    """
    require_number("absorb_above", absorb_above, 0, MOST_ABSORB_ABOVE, "0 = off, 0.9 is usual.")
    require(
        absorb_above == 0 or len(split_tags(class_tokens)) > 0,
        f"absorb_above is {absorb_above:g}, but class_tokens is empty: tags can only be left to a "
        "trigger word that takes over their meaning. Give one, or set absorb_above to 0.",
    )


def edit_captions(
    dataset: ImageDataset, edits: CaptionEdits, options: CaptionOptions | None = None
) -> ImageDataset:
    """The dataset with edited captions; samples keep their order and everything else.

    Args:
        options: put on every sample; None leaves each its own.

    Raises:
        AtelierError: a caption is too long for the regular expression, or that takes too long.
    """
    return edit_and_report(dataset, edits, options)[0]


def edit_and_report(
    dataset: ImageDataset, edits: CaptionEdits, options: CaptionOptions | None = None
) -> tuple[ImageDataset, EditReport]:
    """:func:`edit_captions`, and what it did."""
    work = _Work(dataset, options)
    found = _find_and_replace(work, edits)
    removed = _unwanted(work, edits.remove_tags)
    work.drop(removed)
    absorbed = _absorbed(work, edits)
    work.drop(absorbed, work.triggered)
    _add_and_arrange(work, edits)
    edited = dataset.changed(work.edited(edits.class_tokens.strip()))
    report = EditReport(
        captions=sum(len(sample.captions) for sample in dataset.samples),
        changes=tuple(_changes(dataset, edited)),
        removed=tuple(removed.most_common()),
        absorbed=tuple(sorted(absorbed.items(), key=lambda item: -item[1])),
        distinct_texts=len(captions(edited)),
        options=tuple(dict.fromkeys(work.options)),
        notes=tuple(_notes(work, edits, found, bool(removed), bool(absorbed))),
    )
    return edited, report


class _Work:
    """The captions of a dataset while they are edited."""

    def __init__(self, dataset: ImageDataset, options: CaptionOptions | None) -> None:
        self.samples = dataset.samples
        self.options = [options or sample.caption_options for sample in self.samples]
        self.layouts = [TagLayout.of(each) for each in self.options]
        self.texts = [sample.captions for sample in self.samples]
        trains = any(sample.role is Role.TRAIN for sample in self.samples)
        self.counted = [s.role is Role.TRAIN or not trains for s in self.samples]
        """Whose tags are counted: training pictures; all pictures where there are none."""
        self.triggered = [s.role is not Role.REGULARISATION or not trains for s in self.samples]
        """Who gets the trigger word: pictures of the class in general must go without it."""

    def each(self, change: Change, where: Sequence[bool] | None = None) -> None:
        """Change every caption (of the samples that ``where`` names)."""
        for i, layout in enumerate(self.layouts):
            if where is None or where[i]:
                self.texts[i] = tuple(change(layout, text) for text in self.texts[i])

    def drop(self, unwanted: Collection[str], where: Sequence[bool] | None = None) -> None:
        """Remove the tags of these keys."""
        if unwanted:
            self.each(lambda layout, text: layout.without(text, unwanted), where)

    def keys(self, where: Sequence[bool] | None = None) -> Iterator[list[str]]:
        """The distinct keys of the tags of each caption that has any."""
        for i, layout in enumerate(self.layouts):
            for text in self.texts[i] if where is None or where[i] else ():
                keys = list(dict.fromkeys(map(tag_key, layout.tags(text))))
                if keys:
                    yield keys

    def edited(self, class_tokens: str) -> Iterator[Sample]:
        """The samples with the captions as they are now.

        Args:
            class_tokens: what those who get the trigger word got; "" = nothing.
        """
        for sample, texts, options, triggered in zip(
            self.samples, self.texts, self.options, self.triggered, strict=True
        ):
            tokens = class_tokens if class_tokens and triggered else sample.class_tokens
            yield replace(sample, captions=texts, caption_options=options, class_tokens=tokens)


def _find_and_replace(work: _Work, edits: CaptionEdits) -> bool:
    """True when something was found."""
    before = list(work.texts)
    replaced = replacement(edits.find, edits.replace_with, edits.use_regex)

    def change(layout: TagLayout, text: str) -> str:
        new = replaced(text)
        return text if new == text else layout.without_gaps(" ".join(new.splitlines()))

    if edits.find:
        work.each(change)
    return work.texts != before


def _unwanted(work: _Work, remove_tags: str) -> Counter[str]:
    """Keys of tags on the list, and how many captions have them."""
    plain = (re.sub(r"[?\[]", r"[\g<0>]", tag_key(tag)) for tag in split_tags(remove_tags))
    pattern = "|".join(map(fnmatch.translate, plain))  # unlike .*, does not go back and try again
    if not pattern:
        return Counter()
    counts = Counter(key for keys in work.keys() for key in keys)
    unwanted = re.compile(pattern).match
    return Counter({key: n for key, n in counts.items() if unwanted(key)})


def _absorbed(work: _Work, edits: CaptionEdits) -> dict[str, float]:
    """Keys of tags that nearly all training captions have -> their share."""
    if edits.absorb_above == 0:
        return {}
    counts, captioned = _frequencies(work)
    trigger = set(map(tag_key, edits.trigger))
    shares = {key: n / captioned for key, n in counts.items() if n > 1 and key not in trigger}
    return {key: share for key, share in shares.items() if share > edits.absorb_above}


def _frequencies(work: _Work) -> tuple[Counter[str], int]:
    """How many training captions have each tag, and how many have any."""
    counts, captioned = Counter[str](), 0
    for keys in work.keys(work.counted):
        counts.update(keys)
        captioned += 1
    return counts, captioned


def _add_and_arrange(work: _Work, edits: CaptionEdits) -> None:
    added = split_tags(edits.add_tags)
    if added:
        work.each(lambda layout, text: layout.with_added(text, added))
    if edits.deduplicate:
        work.each(TagLayout.deduplicated)
    if edits.sort_tags is not SortTags.AS_WRITTEN:
        order = _order(work, edits.sort_tags)
        work.each(lambda layout, text: layout.ordered(text, order))
    if edits.caption_prefix.strip() or edits.caption_suffix.strip():
        work.each(lambda layout, text: _framed(text, edits))
    if edits.trigger:
        work.each(lambda layout, text: layout.with_first(text, edits.trigger), work.triggered)


def _order(work: _Work, sort_tags: SortTags) -> Callable[[str], int | str]:
    if sort_tags is SortTags.ALPHABETICAL:
        return str
    counts, _ = _frequencies(work)
    sign = -1 if sort_tags is SortTags.MOST_FREQUENT_FIRST else 1
    return lambda key: sign * counts[key]


def _framed(text: str, edits: CaptionEdits) -> str:
    prefix, suffix = edits.caption_prefix.strip(), edits.caption_suffix.strip()
    framed = " ".join(part for part in (prefix, text.strip()) if part)
    space = " " if framed and suffix and suffix[0] not in ",.;:!?" else ""
    return f"{framed}{space}{suffix}"


def _changes(before: ImageDataset, after: ImageDataset) -> Iterator[ChangedCaption]:
    for old, new in zip(before.samples, after.samples, strict=True):
        for was, now in zip(old.captions, new.captions, strict=True):
            if was != now:
                yield ChangedCaption(new.name, was, now)


def _notes(
    work: _Work, edits: CaptionEdits, found: bool, removed: bool, absorbed: bool
) -> Iterator[str]:
    """What may not be as it was meant."""
    if edits.find and not found:
        yield f'find: no caption changed by replacing "{edits.find}"'
    if edits.remove_tags.strip() and not removed:
        yield "remove_tags: no caption has any of them"
    if edits.absorb_above > 0 and not absorbed:
        yield f"absorb_above: no tag is in more than {edits.absorb_above:g} of the captions"
    without = work.triggered.count(False)
    if edits.trigger and without:
        yield f"pictures for regularisation, which stay without the trigger word: {without}"
    if _is_loose(work, len(edits.trigger)):
        yield (
            "The trigger word is shuffled or left out like any other tag: set keep_tokens to "
            f"{len(edits.trigger)}."
        )


def _is_loose(work: _Work, tags: int) -> bool:
    """Whether training may move or drop the first few tags."""
    return any(
        options.splits and options.keep_tokens < tags and not layout.marked(text)
        for options, layout, texts, triggered in zip(
            work.options, work.layouts, work.texts, work.triggered, strict=True
        )
        for text in texts
        if triggered
    )
