"""Prompts from lists: every subject in every style in every template, or some of these drawn.

A text is drawn at most once, and the subjects take turns, so that one with a hundred variants is
not painted a hundred times as often as the others. The first n that are drawn are the same however
many are: a set can grow.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..dataset.tags import join_caption
from ..errors import require, require_number
from .phrases import Joined, OneOf, Phrase, Plain
from .prompts import Prompt, PromptSet
from .syntax import parse
from .wildcards import Wildcards, lines_of

MOST_PROMPTS = 100_000
TRIES = 8
"""Draws that may meet a text that is taken, before the next free one is taken instead."""
LONGEST_NAME = 48
"""Characters."""
SUBJECT, STYLE = "\ufdd0", "\ufdd1"
"""Stand for [subject] and [style] in templates; no text has these characters, which Unicode keeps
for a program's own use."""
NO_STYLE = Plain("")


@dataclass(frozen=True)
class MatrixOptions:
    """Chosen in Prompt Matrix. The lists hold one entry a line."""

    subjects: str
    styles: str = ""
    templates: str = "[style], a picture of [subject]"
    class_tokens: str = ""
    """Trigger word; in front of the caption unless the caption template has a place for it."""
    caption_template: str = "[trigger], [subject]"
    prompt_count: int = 0
    """How many are drawn; 0 = all, in the order of the lists."""
    shuffle: bool = False
    """In the order in which they are drawn instead of that of the lists."""
    seed: int = 0

    def __post_init__(self) -> None:
        advice = "0 = every combination."
        require_number("prompt_count", self.prompt_count, 0, MOST_PROMPTS, advice)
        require(len(lines_of(self.subjects)) > 0, "subjects is empty. Write one subject a line.")
        templates = lines_of(self.templates)
        require(len(templates) > 0, f"templates is empty. {MatrixOptions.templates} is usual.")
        for template in templates:
            require(
                "[subject]" in template,
                f'templates: "{template}" has no [subject], where the subject is to stand.',
            )
        for name in ("templates", "caption_template"):
            braces = re.search(r"\{(subject|style|trigger|prompt)\}", getattr(self, name))
            require(
                braces is None,
                f"{name} has {braces and braces[0]}, but braces are for alternatives. Write "
                f"[{braces and braces[1]}].",
            )
        require(
            not lines_of(self.styles) or any("[style]" in template for template in templates),
            "styles is filled in, but no template has [style]. Say in templates where it is to "
            "stand, or empty styles.",
        )

    def caption(self, prompt: str, subject: str, style: str) -> str:
        """The caption of a prompt. Braces are left: Edit Captions may fill them in in training."""
        words = {"trigger": self.class_tokens, "prompt": prompt, "subject": subject, "style": style}
        slots = re.compile(r"\[(trigger|prompt|subject|style)\]")
        text = tidy(slots.sub(lambda slot: words[slot[1]], self.caption_template))
        placed = "[trigger]" in self.caption_template
        return text if placed else join_caption(self.class_tokens, text)


class PromptMatrix:
    """All combinations, counted, and built when asked for.

    Raises:
        AtelierError: a line cannot be read, or there are too many combinations to make them all.
    """

    def __init__(self, options: MatrixOptions, wildcards: Wildcards) -> None:
        self.options = options
        lookup = wildcards.lookup
        self.subjects = [parse(s, lookup, "subjects") for s in lines_of(options.subjects)]
        self.styles = [parse(s, lookup, "styles") for s in lines_of(options.styles)]
        templates = lines_of(options.templates)
        self.ways = _even([self._way(line, wildcards) for line in templates])
        require(
            options.prompt_count > 0 or self.count <= MOST_PROMPTS,
            f"The lists make {self.count_text} prompts, more than {MOST_PROMPTS:,}. Set "
            "prompt_count to draw some of them, or shorten the lists.",
        )

    def _way(self, template: str, wildcards: Wildcards) -> Joined:
        """A template, and the styles if it has a place for one."""
        marked = template.replace("[subject]", SUBJECT).replace("[style]", STYLE)
        styled = STYLE in marked and len(self.styles) > 0
        phrase = parse(marked, wildcards.lookup, "templates")
        return Joined([phrase, _even(self.styles) if styled else NO_STYLE])

    @cached_property
    def count(self) -> int:
        """Of all combinations."""
        return sum(subject.count for subject in self.subjects) * self.ways.count

    @property
    def count_text(self) -> str:
        return f"{self.count:,}" if self.count < 10**15 else "more than 10¹⁵"

    def prompts(self) -> PromptSet:
        """Those that were asked for; a function of options and wildcard files alone."""
        wanted = min(self.options.prompt_count or self.count, self.count)
        if wanted == self.count and not self.options.shuffle:
            places = [
                (number, index)
                for number, subject in enumerate(self.subjects)
                for index in range(subject.count * self.ways.count)
            ]
        else:
            places = self._drawn(wanted)
            places = places if self.options.shuffle else sorted(places)
        return PromptSet(tuple(self._prompt(*place) for place in places))

    def _drawn(self, wanted: int) -> list[tuple[int, int]]:
        """(subject, number of its text), drawn in rounds of all subjects."""
        rng = random.Random(f"prompts/{self.options.seed}")
        decks = [_Deck(Joined([subject, self.ways])) for subject in self.subjects]
        places: list[tuple[int, int]] = []
        waiting: list[int] = []
        while len(places) < wanted:
            if not waiting:
                waiting = [number for number, deck in enumerate(decks) if deck.left]
            number = waiting.pop(int(rng.random() * len(waiting)))
            places.append((number, decks[number].take(rng)))
        return places

    def _prompt(self, number: int, index: int) -> Prompt:
        subject_index, way_index = divmod(index, self.ways.count)
        which, inner = self.ways.option(way_index)
        template, styles = self.ways.options[which].parts
        template_index, style_index = divmod(inner, styles.count)
        subject = tidy(self.subjects[number].text(subject_index))
        style = tidy(styles.text(style_index))
        words = {SUBJECT: subject, STYLE: style}
        filled = re.sub(
            f"[{SUBJECT}{STYLE}]", lambda mark: words[mark[0]], template.text(template_index)
        )
        text = tidy(filled)
        caption = self.options.caption(text, subject, style)
        return Prompt(
            text, caption, file_name(subject), subject, style, self.options.class_tokens.strip()
        )


class _Deck:
    """Texts of a phrase, each taken at most once."""

    def __init__(self, phrase: Phrase) -> None:
        self.phrase, self.left = phrase, phrase.count
        self.after: dict[int, int] = {}
        """Taken number -> where to look on for a free one."""

    def take(self, rng: random.Random) -> int:
        for _ in range(TRIES):
            index = self.phrase.pick(rng)
            if index not in self.after:
                break
        index = self._free(index)
        self.after[index] = (index + 1) % self.phrase.count
        self.left -= 1
        return index

    def _free(self, index: int) -> int:
        passed = []
        while index in self.after:
            passed.append(index)
            index = self.after[index]
        self.after.update(dict.fromkeys(passed, index))  # so that no way is gone twice
        return index


def tidy(text: str) -> str:
    """On one line, without the commas and spaces around what was left empty."""
    return re.sub(r"\s*,(?:\s*,)*", ",", " ".join(text.split())).strip(" ,")


def file_name(subject: str) -> str:
    """The subject made fit for a file name."""
    return re.sub(r"[^\w-]+", "_", subject)[:LONGEST_NAME].strip("_") or "picture"


def _even(phrases: Sequence[Phrase]) -> OneOf:
    return OneOf(phrases, [1.0] * len(phrases))
