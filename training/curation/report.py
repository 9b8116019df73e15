"""What became of the pictures, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..dataset.samples import ImageDataset
from .choice import Choice, Curated
from .reasons import GROUPS
from .selection import Decision


def short_text(dataset: ImageDataset, curated: Curated, choice: Choice | None) -> str:
    """Before and after, by reason; for the node.

    Args:
        choice: None where it was not asked.
    """
    before, after = len(dataset.samples), len(curated.dataset.samples)
    lines = [f"{before} pictures → {after} kept, {before - after} dropped"]
    lines += _by_reason(curated.decisions)
    if choice is not None:
        lines += _of_choice(choice, curated)
    return "\n".join(lines)


def report_text(dataset: ImageDataset, curated: Curated, choice: Choice | None) -> str:
    """The same, and a line for each picture that was dropped."""
    dropped = [
        f"- {sample.name}: {decision.reason}"
        for sample, decision in zip(dataset.samples, curated.decisions, strict=True)
        if not decision.keep
    ]
    return "\n".join([short_text(dataset, curated, choice), *(["", *dropped] if dropped else [])])


def _by_reason(decisions: Sequence[Decision]) -> list[str]:
    dropped = (decision.reason for decision in decisions if not decision.keep)
    groups = Counter(GROUPS[reason.cause] for reason in dropped if reason)
    return [", ".join(f"{n} {group}" for group, n in groups.most_common())] if groups else []


def _of_choice(choice: Choice, curated: Curated) -> list[str]:
    lines = [f"{curated.edited} with captions from the gallery"] if curated.edited else []
    if not (choice.keep or choice.drop):
        return [*lines, "No choice is saved: the rule alone decides."]
    if curated.unnamed:
        lines.append(f"{curated.unnamed} not named in choice, so the rule decides about them")
    if curated.strangers:
        lines.append(f"{curated.strangers} named in choice are not in this dataset")
    return lines
