"""What editing did to the captions of a dataset, as a few lines of text."""

from __future__ import annotations

from dataclasses import dataclass

from .caption_options import CaptionOptions

MOST_TAGS = 12
MOST_EXAMPLES = 3
LONGEST_CAPTION = 160
"""Characters."""


@dataclass(frozen=True)
class ChangedCaption:
    """One caption that is another now."""

    name: str
    """Of its picture."""
    before: str
    after: str


@dataclass(frozen=True)
class EditReport:
    """Every alternative of a picture counts as a caption."""

    captions: int
    changes: tuple[ChangedCaption, ...]
    removed: tuple[tuple[str, int], ...]
    """(tag, captions that lost it to ``remove_tags``), the most frequent first."""
    absorbed: tuple[tuple[str, float], ...]
    """(tag, share of the training captions that had it), the most frequent first."""
    distinct_texts: int
    """What the text encoder will see, the empty text included."""
    options: tuple[CaptionOptions, ...]
    """Those of the samples, each once."""
    notes: tuple[str, ...] = ()
    """What may not be as it was meant."""

    @property
    def changed(self) -> int:
        """How many captions are others now."""
        return len(self.changes)

    @property
    def emptied(self) -> int:
        """How many had words and have none now."""
        return sum(bool(c.before.strip()) and not c.after.strip() for c in self.changes)

    def text(self) -> str:
        """Some lines for the node: counts, a few examples, what training makes of it."""
        lines = [f"{self.changed} of {_count(self.captions, 'caption')} changed"]
        if self.removed:
            lines.append("removed: " + _first_few([f"{tag} ({n})" for tag, n in self.removed]))
        if self.absorbed:
            shares = [f"{tag} ({_share(share)})" for tag, share in self.absorbed]
            lines.append("left to the trigger word: " + _first_few(shares))
        if self.emptied:
            lines.append(f"{_count(self.emptied, 'caption')} left without any words")
        for change in self.changes[:MOST_EXAMPLES]:
            lines += [f"{change.name}:", f"- {_cut(change.before)}", f"+ {_cut(change.after)}"]
        lines += [f"in training: {in_words(options)}" for options in self.options]
        texts = _count(self.distinct_texts, "distinct text")
        lines.append(f"{texts} to encode, counting the empty one")
        return "\n".join([*lines, *self.notes])


def in_words(options: CaptionOptions) -> str:
    """``tags shuffled, the first 1 kept, 8 texts of each picture``."""
    said = ["tags shuffled"] if options.shuffle_caption else []
    if options.caption_tag_dropout_rate > 0:
        said.append(f"{_share(options.caption_tag_dropout_rate)} of the tags left out")
    if options.splits and options.keep_tokens > 0:
        said.append(f"the first {options.keep_tokens} kept")
    if options.enable_wildcard:
        said.append("wildcards filled in")
    if said:
        said.append(f"{options.caption_variants} texts of each picture")
    if options.caption_dropout_rate > 0:
        said.append(f"{_share(options.caption_dropout_rate)} of the captions left out")
    if options.caption_dropout_every_n_epochs > 0:
        every = options.caption_dropout_every_n_epochs
        said.append(f"no captions in epochs {every}, {2 * every}, …")
    return ", ".join(said) or "captions as they stand"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _share(rate: float) -> str:
    return f"{100 * rate:.3g}%"


def _first_few(words: list[str]) -> str:
    rest = len(words) - MOST_TAGS
    return ", ".join(words[:MOST_TAGS]) + (f" and {rest} more" if rest > 0 else "")


def _cut(text: str) -> str:
    if not text.strip():
        return "(empty)"
    return text if len(text) <= LONGEST_CAPTION else text[:LONGEST_CAPTION] + " …"
