"""What a person chose in the gallery, as the text that a graph keeps.

    {"version": 1, "keep": ["0a1b…"], "drop": ["9f8e…"], "captions": {"0a1b…": ["a red fox"]}}

Pictures go by the first 16 hex digits of the SHA-256 of their content (see
:class:`ContentDigests`), so that the choice follows them to another folder or machine, and a
picture that is there twice is judged once. Pictures that it does not name follow the rule.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..dataset.samples import ImageDataset, Problem, Sample
from ..errors import AtelierError, require
from .reasons import Cause, Reason
from .selection import Decision

VERSION = 1
DIGITS = 16
LONGEST = 8 * 2**20
"""Characters; 2,000 pictures with edited captions take about a tenth of it."""
FIELDS = ("version", "keep", "drop", "captions")
KEPT, DROPPED = Reason(Cause.KEPT_BY_HAND), Reason(Cause.DROPPED_BY_HAND)
"""The reasons for what was chosen by hand."""

KEY = re.compile(f"[0-9a-f]{{{DIGITS}}}")
HINT = "Empty the widget choice, or choose anew with mode = wait_for_me."


@dataclass(frozen=True)
class Choice:
    """Kept and dropped pictures and new captions, by :func:`key_of` their content."""

    keep: frozenset[str] = frozenset()
    drop: frozenset[str] = frozenset()
    captions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """At least one each; only of pictures whose captions were edited."""

    def text(self) -> str:
        """As :func:`parse_choice` reads it, sorted, a line a picture; empty if it says nothing."""
        if not (self.keep or self.drop or self.captions):
            return ""
        facts = {
            "version": VERSION,
            "keep": sorted(self.keep),
            "drop": sorted(self.drop),
            "captions": {key: list(self.captions[key]) for key in sorted(self.captions)},
        }
        return json.dumps(facts, ensure_ascii=False, indent=1)


@dataclass(frozen=True)
class Curated:
    """What is left of a dataset, and why."""

    dataset: ImageDataset
    """The kept pictures in their old order, with their new captions."""
    decisions: tuple[Decision, ...]
    """One for each picture there was."""
    unnamed: int
    """Pictures that the choice does not name; they follow the rule."""
    edited: int
    """Kept pictures whose captions the choice replaces."""
    strangers: int
    """Pictures that the choice names and the dataset does not hold."""


def key_of(digest: str) -> str:
    """How a choice names a picture."""
    return digest[:DIGITS]


def parse_choice(text: str) -> Choice:
    """Read what :meth:`Choice.text` or the gallery has written; empty is an empty choice.

    Raises:
        AtelierError: it is something else; names the widget and what is wrong in it.
    """
    require(len(text) <= LONGEST, f"choice has {len(text):,} characters. At most {LONGEST:,} go.")
    if not text.strip():
        return Choice()
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AtelierError(f"choice cannot be read as JSON ({error}). {HINT}") from error
    require(isinstance(facts, dict), f"choice is no JSON object. {HINT}")
    version = facts.get("version")
    require(
        type(version) is int and version == VERSION,
        f"choice has the version {version!r}, and {VERSION} is what this node reads. Update LoRA "
        f"Atelier if a newer one wrote it. {HINT}",
    )
    unknown = sorted(facts.keys() - set(FIELDS))
    require(not unknown, f"choice holds {unknown[:5]}, which mean nothing here. {HINT}")
    keep, drop = _keys(facts, "keep"), _keys(facts, "drop")
    both = sorted(keep & drop)
    require(not both, f"choice both keeps and drops {both[:5]}. Take each out of one list.")
    return Choice(keep, drop, _captions(facts.get("captions", {})))


@dataclass(frozen=True)
class Laid:
    """A choice laid over what the rule decided, one entry a picture."""

    keys: tuple[str | None, ...]
    """What the choice calls it; None for a broken picture."""
    decisions: tuple[Decision, ...]
    samples: tuple[Sample, ...]
    """With the captions of the choice."""


def lay_over(
    dataset: ImageDataset,
    digests: Sequence[str | None],
    decisions: Sequence[Decision],
    choice: Choice,
    problems: Sequence[Problem] = (),
) -> Laid:
    """What becomes of every picture, also if none is left; arguments as of `apply_choice`."""
    broken = {problem.name for problem in problems}
    keys = tuple(
        None if digest is None or sample.name in broken else key_of(digest)
        for sample, digest in zip(dataset.samples, digests, strict=True)
    )
    decided = tuple(_decided(key, old, choice) for key, old in zip(keys, decisions, strict=True))
    samples = tuple(
        _with_captions(sample, choice.captions.get(key or ""))
        for sample, key in zip(dataset.samples, keys, strict=True)
    )
    return Laid(keys, decided, samples)


def apply_choice(
    dataset: ImageDataset,
    digests: Sequence[str | None],
    decisions: Sequence[Decision],
    choice: Choice,
    problems: Sequence[Problem] = (),
) -> Curated:
    """Lay a choice over what the rule decided.

    Args:
        digests: of the content of each picture; None where it cannot be read.
        decisions: of the rule for each picture.
        problems: broken pictures, which the rule drops and no choice brings back.

    Raises:
        AtelierError: nothing would be left.
    """
    laid = lay_over(dataset, digests, decisions, choice, problems)
    kept = [i for i, decision in enumerate(laid.decisions) if decision.keep]
    require(
        len(kept) > 0,
        f"All {len(dataset.samples)} pictures are dropped: {laid.decisions[0].reason}. Keep at "
        "least one: raise keep_best, switch drop_duplicates or drop_outliers off, or empty choice.",
    )
    samples = tuple(laid.samples[i] for i in kept)
    named = choice.keep | choice.drop
    return Curated(
        replace(dataset, samples=samples, problems=(*dataset.problems, *problems)),
        laid.decisions,
        unnamed=sum(key not in named for key in laid.keys),
        edited=sum(laid.keys[i] in choice.captions for i in kept),
        strangers=len((named | choice.captions.keys()) - set(laid.keys)),
    )


def _keys(facts: Mapping[str, Any], name: str) -> frozenset[str]:
    keys = facts.get(name, [])
    require(isinstance(keys, list), f"choice: {name} must be a list. {HINT}")
    wrong = [key for key in keys if not _is_key(key)]
    require(
        not wrong,
        f"choice: {name} holds {str(wrong[:1])[:60]}. A picture goes by the first {DIGITS} digits "
        f"(0-9, a-f) of its content's SHA-256. {HINT}",
    )
    return frozenset(keys)


def _captions(facts: Any) -> dict[str, tuple[str, ...]]:
    require(isinstance(facts, dict), f"choice: captions must be an object. {HINT}")
    for key, texts in facts.items():
        require(
            _is_key(key)
            and isinstance(texts, list)
            and all(isinstance(text, str) for text in texts),
            f'choice: captions holds "{key[:60]}" with {str(texts)[:60]}. The first {DIGITS} '
            f"digits of a picture's SHA-256 and a list of texts are needed. {HINT}",
        )
    return {key: tuple(map(_printable, texts)) or ("",) for key, texts in facts.items()}


def _is_key(key: Any) -> bool:
    return isinstance(key, str) and KEY.fullmatch(key) is not None


def _printable(text: str) -> str:
    """JSON may hold half a sign (\\ud83e), which no file and no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()


def _decided(key: str | None, old: Decision, choice: Choice) -> Decision:
    if key in choice.drop:
        return Decision(False, DROPPED)
    return Decision(True, KEPT) if key in choice.keep else old


def _with_captions(sample: Sample, captions: tuple[str, ...] | None) -> Sample:
    return sample if captions is None else replace(sample, captions=captions)
