"""What a captioner says of the pictures of a dataset; of each it is asked once, ever.

Answers are kept on disk by picture, model, prompt and settings, as the model gave them: how they
are tidied and where they are put can change without asking again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from typing import NamedTuple

from PIL import Image

from ..ahead import made_ahead
from ..cache import TensorCache, digest_of
from ..dataset.digests import ContentDigests
from ..dataset.pictures import open_picture
from ..dataset.samples import ImageDataset, Problem, Sample
from ..errors import AtelierError, require
from .wording import ExistingCaptions, cleaned, merged

VERSION = 1
"""Part of every key: raise it when the same picture would be described otherwise."""

ANSWER = "answer"

Describe = Callable[[Sequence[Image.Image]], list[str]]
"""RGB pictures -> what the model says of each."""

Loaded = Callable[[], AbstractContextManager[Describe]]
"""Loads the model for as long as it is needed."""

Told = Callable[[Sample, str], None]
"""Called for each picture with what was said of it; may raise to cancel."""

log = logging.getLogger("lora_atelier")


class Answers(NamedTuple):
    """Of one dataset."""

    texts: dict[str, str]
    """Name of a sample -> what the model said of it."""
    asked: int
    """How many of them the cache did not hold."""
    broken: dict[str, Problem]
    """Name -> why it was left out."""


class _Job(NamedTuple):
    """Samples that look the same, and where the answer goes."""

    key: str
    samples: list[Sample]


def ask(
    samples: Sequence[Sample],
    identity: str,
    cache: TensorCache,
    digests: ContentDigests,
    loaded: Loaded,
    batch_size: int,
    told: Told,
    check: Callable[[], None] = lambda: None,
) -> Answers:
    """Describe pictures; the model is not loaded when the cache holds all answers.

    Args:
        identity: digest of the model and of all that decides what it says.
        check: called before a file is looked for in the cache, which reads it once; may raise to
            cancel.

    Raises:
        FileChanged: a file is gone.
        AtelierError: a picture that may not be skipped is broken, or the model refuses.
    """
    answers = Answers({}, 0, {})
    jobs: dict[str, _Job] = {}
    try:
        for sample in samples:
            check()
            content = digests.of(sample.image)
            key = digest_of(VERSION, "caption", identity, content, sample.fit.background)
            entry = None if key in jobs else cache.read(key)
            if entry is None:
                jobs.setdefault(key, _Job(key, [])).samples.append(sample)
            else:
                answers.texts[sample.name] = entry[1][ANSWER]
                told(sample, entry[1][ANSWER])
    finally:
        digests.save()
    if jobs:
        batches = _batches(list(jobs.values()), batch_size)
        # Decoded while the model works; two batches at a time are in memory.
        with closing(made_ahead(batches, _opened, threads=1, most=2)) as ready, loaded() as model:
            for batch in ready:
                _answer(batch, model, cache, answers, told)
    return answers._replace(asked=sum(1 for job in jobs.values() if _answered(job, answers)))


def _batches(jobs: list[_Job], size: int) -> list[list[_Job]]:
    return [jobs[first : first + size] for first in range(0, len(jobs), size)]


def _answered(job: _Job, answers: Answers) -> bool:
    return job.samples[0].name in answers.texts


_Opened = list[tuple[_Job, Image.Image | AtelierError]]


def _opened(jobs: list[_Job]) -> Iterator[_Opened]:
    opened: _Opened = []
    for job in jobs:
        try:
            opened.append((job, _flat(job.samples[0])))
        except AtelierError as error:
            opened.append((job, error))
    yield opened


def _flat(sample: Sample) -> Image.Image:
    """RGB, as training sees it: what is transparent shows the background colour."""
    image = open_picture(sample.image)
    if image.mode != "RGBA":
        return image
    ground = Image.new("RGBA", image.size, (*sample.fit.background, 255))
    ground.alpha_composite(image)
    return ground.convert("RGB")


def _answer(
    batch: _Opened, model: Describe, cache: TensorCache, answers: Answers, told: Told
) -> None:
    for job, error in batch:
        if isinstance(error, AtelierError):
            _leave_out(job, error, answers)
    sound = [(job, image) for job, image in batch if isinstance(image, Image.Image)]
    if not sound:
        return
    texts = model([image for _, image in sound])
    for (job, _), text in zip(sound, texts, strict=True):
        cache.write(job.key, {}, {ANSWER: text})
        for sample in job.samples:
            answers.texts[sample.name] = text
            told(sample, text)


def _leave_out(job: _Job, error: AtelierError, answers: Answers) -> None:
    for sample in job.samples:
        if not sample.may_be_skipped:
            raise error
        log.warning("Left out: %s", error)
        path = getattr(sample.image, "path", "")
        reason = str(error).replace(path, sample.name) if path else str(error)
        answers.broken[sample.name] = Problem(sample.name, reason)


@dataclass(frozen=True)
class Captioned:
    """A dataset with new captions, and what became of it."""

    dataset: ImageDataset
    described: int
    """Pictures that the model was asked of, now or in an earlier run."""
    asked: int
    """Those of them that it was asked of now."""
    silent: tuple[str, ...]
    """Names of those of which nothing was left to say."""


def wanted(dataset: ImageDataset, existing: ExistingCaptions) -> tuple[Sample, ...]:
    """The samples that are to be described."""
    if existing is not ExistingCaptions.ONLY_EMPTY:
        return dataset.samples
    return tuple(s for s in dataset.samples if not all(text.strip() for text in s.captions))


def captioned(
    dataset: ImageDataset,
    answers: Answers,
    openings: Sequence[str],
    existing: ExistingCaptions,
) -> Captioned:
    """Put the answers into the captions.

    Raises:
        AtelierError: no picture is left.
    """
    new = {name: cleaned(text, openings) for name, text in answers.texts.items()}
    samples = tuple(
        replace(s, captions=merged(s.captions, new[s.name], existing)) if s.name in new else s
        for s in dataset.samples
        if s.name not in answers.broken
    )
    problems = tuple(answers.broken.values())
    require(
        bool(samples),
        f"dataset: none of its pictures can be used. {problems[0].reason if problems else ''}",
    )
    return Captioned(
        replace(dataset, samples=samples, problems=(*dataset.problems, *problems)),
        len(new),
        answers.asked,
        tuple(name for name, text in new.items() if not text),
    )
