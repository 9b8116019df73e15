"""What Curate Dataset does: scores, the rule and the gallery for the last word."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from ...training.cache import TensorCache
from ...training.curation.choice import Choice, Curated, apply_choice, lay_over
from ...training.curation.scores import DatasetScores, Score, score_dataset
from ...training.curation.selection import Decision, SelectionRule, select
from ...training.dataset.digests import ContentDigests
from ...training.dataset.from_images import dataset_from_images
from ...training.dataset.samples import ImageDataset, Sample
from ...training.errors import require
from ...training.host.progress import HostProgress, raise_if_cancelled
from ...training.host.sampling import free_memory
from ...training.host.vision import image_embeddings
from ..gallery.gallery import EVENT, Gallery, GalleryPicture, Status, held_loosely
from ..graph.outputs import cache_folder
from ..live.browsers import Audience, running_node, tell
from ..live.progress import duration, show_text

SECONDS_BETWEEN_NOTICES = 1.0


class Looked(NamedTuple):
    """A dataset, what is known of its pictures, and what the rule makes of it."""

    dataset: ImageDataset
    scores: DatasetScores
    decisions: tuple[Decision, ...]

    def with_choice(self, choice: Choice) -> Curated:
        """Raises AtelierError when nothing would be left."""
        scores = self.scores
        return apply_choice(self.dataset, scores.digests, self.decisions, choice, scores.problems)


def look_over(
    dataset: ImageDataset, rule: SelectionRule, reference: Tensor | None, clip_vision: Any
) -> Looked:
    """Score every picture, with a progress bar and Cancel, and apply the rule.

    Args:
        reference: pictures of the wanted look [B, H, W, 3 or 4] 0..1.
        clip_vision: image encoder of the graph.

    Raises:
        AtelierError: the rule asks for what is not connected.
    """
    require(
        rule.score is not Score.REFERENCE or reference is not None,
        "score is reference_similarity: connect pictures of the wanted look to reference.",
    )
    require(
        rule.score is not Score.CLIP or clip_vision is not None,
        "score is clip_similarity: connect Load CLIP Vision to clip_vision, or choose "
        "reference_similarity, which needs no model.",
    )
    require(
        not rule.drop_outliers or reference is not None or clip_vision is not None,
        "drop_outliers is on, and there is nothing to compare with: connect pictures to reference "
        "or an image encoder to clip_vision, or switch it off.",
    )
    pictures = () if reference is None else dataset_from_images([reference], [""]).samples
    looks = 2 if pictures else 1
    tick = HostProgress(looks * len(dataset.samples) + len(pictures)).tick
    scores = score_dataset(
        dataset,
        ContentDigests(cache_folder()),
        TensorCache(cache_folder() / "analysis"),
        tick,
        [sample.image for sample in pictures],
        None if clip_vision is None else _embedder(clip_vision),
    )
    return Looked(dataset, scores, select(dataset, scores, rule))


def ask(
    looked: Looked, mode: str, saved: Choice, seconds: int, audience: Audience
) -> tuple[Choice, str]:
    """Open the gallery and wait for a person; meanwhile no model is on the device.

    Args:
        saved: laid over what the rule decides, as the person finds it.
        seconds: at most; 0 = as long as it takes.

    Returns:
        The person's choice, or the saved one, and what to say of it.
    """
    gallery = make_gallery(looked, mode, saved)
    if not audience.there():
        return saved, "NOBODY WAS ASKED: the graph was queued without a browser."
    free_memory()
    choice = gallery.wait(seconds, audience.there, _notices())
    if choice is not None:
        return choice, ""
    if audience.there():
        return saved, f"NOBODY CHOSE within {duration(seconds)}."
    return saved, "NOBODY CHOSE: no browser was open any more."


def make_gallery(
    looked: Looked, mode: str, choice: Choice, status: Status = Status.WAITING
) -> Gallery:
    """What the browser shows, with a choice laid over what the rule decides, also if that leaves
    nothing: a person who is asked can bring pictures back."""
    return Gallery(
        looked.dataset.name,
        mode,
        _pictures(looked, choice),
        looked.with_choice if status is Status.WAITING else None,
        partial(tell, EVENT),
        status,
        running_node(),
    )


def _pictures(looked: Looked, choice: Choice) -> list[GalleryPicture]:
    dataset, scores, decisions = looked
    laid = lay_over(dataset, scores.digests, decisions, choice, scores.problems)
    broken = {problem.name for problem in scores.problems}
    return [
        GalleryPicture(
            name=sample.name,
            digest=None if sample.name in broken else scores.digests[i],
            size=sample.image.size,
            captions=laid.samples[i].captions,
            role=sample.role.value,
            keep=laid.decisions[i].keep,
            reason=laid.decisions[i].reason,
            scores={score.value: values[i] for score, values in scores.values.items()},
            group=scores.groups[i],
            outlier=scores.outliers[i],
            find=held_loosely(sample.image),
        )
        for i, sample in enumerate(dataset.samples)
    ]


def _embedder(clip_vision: Any) -> Callable[[Sequence[Sample]], Tensor]:
    return lambda samples: image_embeddings(clip_vision, samples, raise_if_cancelled)


def _notices() -> Callable[[float | None], None]:
    """Looks for Cancel each time, and says once a second that the queue waits."""
    told = float("-inf")

    def notice(left: float | None) -> None:
        nonlocal told
        raise_if_cancelled()
        if time.monotonic() - told >= SECONDS_BETWEEN_NOTICES:
            told = time.monotonic()
            until = "no time limit" if left is None else f"{duration(left)} left"
            show_text(f"WAITING FOR YOU: choose in the gallery, then Continue · {until}")

    return notice
