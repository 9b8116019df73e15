"""What was measured of each LoRA in each strength, and of what it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .features import Seen, StyleSpace, layout_distances, layout_vectors
from .measures import (
    Estimate,
    Pair,
    copy_distance,
    distances,
    estimate,
    gains,
    kept,
    nearest_pairs,
    room,
    variety,
)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Some pictures in numbers, in their order."""

    seen: Sequence[Seen]
    embeddings: np.ndarray | None = None
    """[N, D] in the eyes of an image encoder, when there is one."""
    painted: Sequence[Seen] = ()
    """Some of them as the VAE paints them. Nothing that the model draws is sharper than that, so
    styles are compared with these where they are given."""

    @property
    def styles(self) -> np.ndarray:
        return np.stack([one.style for one in self.painted or self.seen])

    @property
    def layouts(self) -> np.ndarray:
        return np.stack([one.layout for one in self.seen])

    def __len__(self) -> int:
        return len(self.seen)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One LoRA in one strength, as it was measured."""

    name: str
    lora: int
    """Its place among the LoRAs."""
    step: int
    """Optimizer steps it was trained for; 0 = not known."""
    strength: float
    losses: np.ndarray
    """[pictures, bands]"""
    pictures: Pictures
    run: str = ""
    """What it was trained in; steps of different runs are not compared."""


@dataclass(frozen=True, eq=False)
class Row:
    """A candidate beside the base and the training pictures."""

    candidate: Candidate
    gain: np.ndarray | None
    """[N] of each picture; None where the base draws like the training pictures already."""
    kept: Estimate | None
    diversity: float
    """1 = that of the base."""
    pairs: tuple[Pair, ...]
    """Each picture and its nearest training picture."""

    @property
    def copies(self) -> tuple[Pair, ...]:
        """Pictures that are copies, the nearest first."""
        return tuple(sorted((p for p in self.pairs if p.nearness < 1), key=lambda p: p.nearness))

    @property
    def bands(self) -> np.ndarray:
        """[bands] mean loss from least noise to most."""
        return self.candidate.losses.mean(axis=0)

    @property
    def loss(self) -> float:
        return float(self.candidate.losses.mean())


@dataclass(frozen=True, eq=False)
class Evaluation:
    """All of it."""

    rows: tuple[Row, ...]
    """By LoRA, then by strength."""
    base: Pictures
    base_losses: np.ndarray
    training: Pictures
    training_names: tuple[str, ...]
    are_held_out: bool
    """The loss was measured on pictures that were not trained on."""
    base_kept: float = 1.0
    """What of the prompts is to be told from the base's own pictures with other seeds."""
    training_diversity: float = 1.0
    """Variety of the training pictures, over that of the base's."""

    @property
    def base_bands(self) -> np.ndarray:
        """[bands] mean loss of the base from least noise to most."""
        return self.base_losses.mean(axis=0)

    @property
    def base_loss(self) -> float:
        return float(self.base_losses.mean())

    @property
    def has_encoder(self) -> bool:
        return self.base.embeddings is not None


def compare(
    candidates: Sequence[Candidate],
    base: Pictures,
    base_losses: np.ndarray,
    training: Pictures,
    training_names: Sequence[str],
    prompts: Sequence[int],
    are_held_out: bool,
) -> Evaluation:
    """Every measure of every candidate.

    Args:
        candidates: with as many pictures as ``base``, of the same prompts and seeds.
        prompts: of which prompt each picture is.
    """
    view = _View(base, training)
    rows = []
    for candidate in candidates:
        pictures = candidate.pictures
        style, content = view.style(pictures), view.content(pictures)
        rows.append(
            Row(
                candidate,
                None
                if view.way is None
                else gains(style, view.base_style, view.training_style, view.way),
                kept(content, view.base_content, prompts),
                variety(content) / max(view.base_variety, 1e-9),
                tuple(nearest_pairs(view.to_training(pictures))),
            )
        )
    return Evaluation(
        tuple(rows),
        base,
        base_losses,
        training,
        tuple(training_names),
        are_held_out,
        base_kept=_kept_of_base(view.base_content, prompts),
        training_diversity=view.training_variety / max(view.base_variety, 1e-9),
    )


def loss_change(row: Row, other: np.ndarray) -> Estimate:
    """How much higher the loss is than ``other``'s [pictures, bands], picture by picture."""
    return estimate((row.candidate.losses - other).mean(axis=1))


class _View:
    """How pictures are looked at: by an image encoder if there is one, else by colours, edges,
    texture and layout."""

    def __init__(self, base: Pictures, training: Pictures) -> None:
        self.training = training
        self.space = StyleSpace(training.styles, base.styles)
        self.training_style, self.base_style = self.style(training), self.style(base)
        self.base_content = self.content(base)
        self.way = room(self.base_style, self.training_style)
        self.base_variety = variety(self.base_content)
        training_content = self.content(training)
        self.training_variety = variety(training_content) if len(training) > 1 else 0.0
        self._least = [
            copy_distance(among, of_base)
            for among, of_base in zip(self._apart(training), self._apart(base), strict=True)
        ]

    def style(self, pictures: Pictures) -> np.ndarray:
        if pictures.embeddings is not None:
            return _unit(pictures.embeddings)
        return self.space.vectors(pictures.styles)

    def content(self, pictures: Pictures) -> np.ndarray:
        if pictures.embeddings is not None:
            return _unit(pictures.embeddings)
        return layout_vectors(pictures.layouts)

    def to_training(self, pictures: Pictures) -> list[tuple[np.ndarray, float]]:
        return list(zip(self._apart(pictures), self._least, strict=True))

    def _apart(self, pictures: Pictures) -> list[np.ndarray]:
        """[N, M] from the training pictures, by each measure: a copy is one by all of them."""
        found = [layout_distances(pictures.layouts, self.training.layouts)]
        if pictures.embeddings is not None:
            found.append(distances(_unit(pictures.embeddings), _unit(self.training.embeddings)))
        return found


def _kept_of_base(content: np.ndarray, prompts: Sequence[int]) -> float:
    """As :func:`kept`, of each of the base's pictures against its other ones; 1 where no prompt was
    drawn twice."""
    asked = np.asarray(prompts)
    apart = distances(content, content)
    scores = []
    for i, kind in enumerate(asked):
        own = apart[i, (asked == kind) & (np.arange(len(asked)) != i)]
        others = [apart[i, asked == other].mean() for other in np.unique(asked) if other != kind]
        if own.size and others:
            scores.append(np.mean([(o > own.mean()) + (o == own.mean()) / 2 for o in others]))
    return float(np.mean(scores)) if scores else 1.0


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
