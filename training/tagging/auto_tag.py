"""A dataset whose captions a tagger has filled, and what it found, in numbers and words."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..dataset.samples import ImageDataset, shorten
from .scores import Scores, look_at
from .tag_options import TagOptions
from .tag_table import RATING, TagTable, read_tag_table
from .tagger import TaggerFiles

MOST_TAGS = 12


@dataclass(frozen=True)
class TagReport:
    """Counts are of the tags that the tagger gave, not of those that stood there already."""

    tagger: str
    pictures: int
    """That were tagged."""
    of: int
    """Pictures of the dataset."""
    counts: Counter[str]
    """Tag as it is written -> pictures, the most frequent first."""
    kinds: dict[str, int]
    """Tag -> category."""
    untagged: tuple[str, ...]
    """Names of pictures of which nothing was above the thresholds."""
    scores: Scores

    @property
    def table(self) -> str:
        """CSV: ``tag,count`` and a row a tag."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("tag", "count"), *self.counts.items()])
        return text.getvalue()

    def text(self) -> str:
        """A few lines for the node."""
        tags = sum(self.counts.values()) / max(1, self.pictures)
        pictures = f"{self.pictures} of {self.of} pictures"
        lines = [
            f"{pictures} tagged by {self.tagger} ({_where(self.scores)})",
            f"{len(self.counts)} different tags, {tags:.1f} a picture",
        ]
        if self.counts:
            first = [f"{tag} ({count})" for tag, count in self.counts.most_common()]
            lines.append(f"most frequent: {shorten(first, MOST_TAGS)}")
        if self.untagged:
            lines.append(
                f"nothing above the thresholds in {len(self.untagged)}: {shorten([*self.untagged])}"
            )
        lines += [f"left as it is: {problem.reason}" for problem in self.scores.unusable[:3]]
        return "\n".join([*lines, *self.scores.notes])


def auto_tag(
    dataset: ImageDataset,
    files: TaggerFiles,
    options: TagOptions,
    cache_folder: Path,
    tick: Callable[[], None] = lambda: None,
    check: Callable[[], None] = lambda: None,
) -> tuple[ImageDataset, TagReport]:
    """Tag the pictures of every role.

    Args:
        cache_folder: what the tagger says of a picture is kept there.
        tick: called once for each picture; may raise to cancel.
        check: called more often; may raise likewise.

    Raises:
        AtelierError: the tagger or a picture cannot be used.
    """
    table = read_tag_table(files.table)
    wanted = [i for i, sample in enumerate(dataset.samples) if options.concerns(sample)]
    for _ in range(len(dataset.samples) - len(wanted)):
        tick()
    scores = look_at(dataset.samples, wanted, files, table, cache_folder, tick, check)
    tags = {i: options.tags(found, table) for i, found in sorted(scores.found.items())}
    samples = list(dataset.samples)
    for i, given in tags.items():
        samples[i] = replace(samples[i], captions=options.captions(samples[i], given))
    return dataset.changed(samples), _report(dataset, files, options, table, tags, scores)


def _report(
    dataset: ImageDataset,
    files: TaggerFiles,
    options: TagOptions,
    table: TagTable,
    tags: dict[int, list[str]],
    scores: Scores,
) -> TagReport:
    counts = Counter(tag for given in tags.values() for tag in dict.fromkeys(given))
    pairs = zip(table.names, table.categories, strict=True)
    kinds = {options.written(name): kind for name, kind in pairs}
    nothing = (i for i, given in tags.items() if all(kinds[tag] == RATING for tag in given))
    return TagReport(
        files.name,
        len(tags),
        len(dataset.samples),
        Counter(dict(sorted(counts.items(), key=lambda tag: (-tag[1], tag[0])))),
        kinds,
        tuple(dataset.samples[i].name for i in nothing),
        scores,
    )


def _where(scores: Scores) -> str:
    new = len(scores.found) - scores.remembered
    said = [f"{new} on {scores.device}"] if scores.device else []
    said += [f"{scores.remembered} remembered"] if scores.remembered else []
    return ", ".join(said) or "none to look at"
