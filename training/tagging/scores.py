"""What a tagger says of the pictures of a dataset; each picture is looked at once and remembered.

Kept are the probabilities, not the tags, by the content of the picture and of the model: other
thresholds and lists cost nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..ahead import made_ahead
from ..cache import Entry, TensorCache, digest_of
from ..dataset.digests import ContentDigests
from ..dataset.pictures import ImageFile, open_picture
from ..dataset.samples import Problem, Sample
from ..errors import AtelierError
from .tag_options import LEAST, Found
from .tag_table import TagTable
from .tagger import Tagger, TaggerFiles, tagger_input

VERSION = 1
"""Of what is kept, and of how a picture is prepared."""

OUTPUTS = "outputs"
"""How many numbers the model gave, in an entry's metadata."""

THREADS = max(2, min(8, (os.cpu_count() or 2) - 1))
"""They decode pictures while the model works."""


@dataclass(frozen=True)
class Scores:
    """Of the pictures that were asked for."""

    found: dict[int, Found]
    """Index into the samples -> probabilities."""
    device: str
    """That the model ran on; "" when all was remembered."""
    remembered: int
    """Pictures that had been looked at before."""
    unusable: tuple[Problem, ...]
    """Broken files that their samples allow to leave out."""
    notes: tuple[str, ...]
    """What is not as one would expect, a sentence each."""


def look_at(
    samples: Sequence[Sample],
    wanted: Sequence[int],
    files: TaggerFiles,
    table: TagTable,
    cache_folder: Path,
    tick: Callable[[], None] = lambda: None,
    check: Callable[[], None] = lambda: None,
) -> Scores:
    """Ask a tagger about some of the samples.

    Args:
        wanted: indices into ``samples``.
        tick: called after each picture; may raise to cancel, and what was found so far is kept.
        check: called before a file is looked for in the cache, which reads it once; may raise.

    Raises:
        AtelierError: a picture or the model cannot be used.
    """
    cache, digests = TensorCache(cache_folder / "tags"), ContentDigests(cache_folder)
    run = _Run(samples, files, table, cache, digests, tick)
    try:
        new = []
        for index in wanted:
            check()
            if not run.remember(index):
                new.append(index)
        remembered = len(run.found)
        if new:
            run.ask(new)
    finally:
        digests.save()
    unusable = tuple(run.unusable[index] for index in sorted(run.unusable))
    return Scores(run.found, run.device, remembered, unusable, tuple(run.notes))


class _Run:
    def __init__(
        self,
        samples: Sequence[Sample],
        files: TaggerFiles,
        table: TagTable,
        cache: TensorCache,
        digests: ContentDigests,
        tick: Callable[[], None],
    ) -> None:
        self.samples, self.files, self.table = samples, files, table
        self.cache, self.digests, self.tick = cache, digests, tick
        self.model_digest = digests.of(ImageFile(str(files.model), (0, 0)))
        self.found: dict[int, Found] = {}
        self.unusable: dict[int, Problem] = {}
        self.notes: list[str] = []
        self.device = ""

    def remember(self, index: int) -> bool:
        """Take what is kept of a picture."""
        entry = self.cache.read(self._key(index))
        if entry is None or not _fits(entry, self.table):
            return False
        rows, values = entry[0]["row"].tolist(), entry[0]["probability"].tolist()
        self.found[index] = tuple(zip(rows, values, strict=True))
        self.tick()
        return True

    def ask(self, indices: Sequence[int]) -> None:
        """Decode in threads, ask in batches."""
        with Tagger(self.files, self.table) as tagger:
            self.device, self.notes = tagger.device, tagger.notes
            most = 2 * tagger.batch + THREADS

            def decode(index: int) -> Iterator[tuple[int, np.ndarray | AtelierError]]:
                try:
                    image = open_picture(self.samples[index].image)
                    yield index, tagger_input(image, tagger.size)
                except AtelierError as error:
                    yield index, error

            with closing(made_ahead(indices, decode, THREADS, most)) as decoded:
                batch: dict[int, np.ndarray] = {}
                for index, picture in decoded:
                    if isinstance(picture, AtelierError):
                        self._leave_out(index, picture)
                        continue
                    batch[index] = picture
                    if len(batch) == tagger.batch:
                        self._ask(tagger, batch)
                if batch:
                    self._ask(tagger, batch)

    def _ask(self, tagger: Tagger, batch: dict[int, np.ndarray]) -> None:
        for index, values in zip(batch, tagger.probabilities([*batch.values()]), strict=True):
            rows = np.flatnonzero(values >= min(LEAST, values.max()))  # never none
            tensors = {
                "row": torch.from_numpy(rows.astype(np.int32)),
                "probability": torch.from_numpy(values[rows]),
            }
            self.cache.write(self._key(index), tensors, {OUTPUTS: str(len(values))})
            self.found[index] = tuple(zip(rows.tolist(), values[rows].tolist(), strict=True))
        for _ in batch:
            self.tick()
        batch.clear()

    def _leave_out(self, index: int, error: AtelierError) -> None:
        sample = self.samples[index]
        self.digests.forget(sample.image)
        if not sample.may_be_skipped:
            raise error
        self.unusable[index] = Problem(sample.name, str(error))
        self.tick()

    def _key(self, index: int) -> str:
        picture = self.digests.of(self.samples[index].image)
        return digest_of("tags", VERSION, self.model_digest, picture)


def _fits(entry: Entry, table: TagTable) -> bool:
    """Whether the table has as many rows as the model numbers: another may lie beside it now."""
    return entry[1].get(OUTPUTS) == str(len(table))
