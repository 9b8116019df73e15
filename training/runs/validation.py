"""The loss on pictures that are held out: the same pictures under the same noise every time.

The noise levels that training draws from are cut into four bands that are drawn equally often, and
each picture is looked at in the middle of each:

    loss = mean over pictures and bands b = 0…3 of  L(picture, Q((b + ½) / 4))

with L the training loss (target, loss type, weighting, masks and kind of noise as chosen for the
run, without prior preservation) and Q the quantile function of :mod:`training.objective.timesteps`.
By the midpoint rule that is about the expected training loss, so both may be drawn on one axis; and
since nothing in it is drawn anew, a change of it is a change of the adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..base_model.training_context import adapters_off
from ..dataset.samples import ImageDataset, Role
from ..objective.batch_losses import losses_of, with_noise
from ..objective.noise import draw_noise
from ..objective.timesteps import sigma_at
from ..random_streams import generator
from .examples import HELD_OUT, placement_of

if TYPE_CHECKING:
    from .run import Predict, TrainingRun
    from .team import Team

BAND_NAMES = ("least noise", "little noise", "much noise", "most noise")
BANDS = len(BAND_NAMES)
AUTO_POINTS = 20
"""How often a run is validated, about, when nothing was chosen."""
AUTO_LEAST_STEPS = 10

Bands = tuple[float, ...]
"""Mean loss of each band, from little noise to much."""


@dataclass(frozen=True)
class ValidationPoint:
    """The held-out loss after a step."""

    step: int
    """0 = before the first."""
    loss: float
    base_loss: float
    """The same without the adapters: the line to stay below."""
    bands: Bands
    base_bands: Bands


class Look(NamedTuple):
    """One picture in the middle of one band."""

    sample: int
    """Index into the dataset's samples."""
    band: int


class HeldOut:
    """What is validated of a dataset, and what need not be measured twice."""

    def __init__(self, dataset: ImageDataset, train_batch_size: int) -> None:
        self.batches = _batches(dataset, train_batch_size)
        """Micro-batches of pictures of one size; none when the dataset holds nothing out."""
        self.base_bands: Bands | None = None
        """Of the base model, once they were measured."""


def steps_between(validate_every_n_steps: int, max_train_steps: int) -> int | None:
    """What the widget's value comes down to; None = never."""
    if validate_every_n_steps < 0:
        return None
    return validate_every_n_steps or max(AUTO_LEAST_STEPS, round(max_train_steps / AUTO_POINTS))


@torch.no_grad()
def validate(
    run: TrainingRun,
    step: int,
    predict: Predict,
    on_micro_step: Callable[[], None],
    team: Team | None = None,
) -> ValidationPoint:
    """Measure the held-out loss with the adapters as they are; torch's own streams stay untouched.

    Args:
        step: the last whole one.
        on_micro_step: called before each forward pass; may raise to end it.
        team: the processes that share the pictures; None = this one alone.
    """
    held_out = run.held_out
    if held_out.base_bands is None:
        with adapters_off():
            held_out.base_bands = _band_losses(run, predict, on_micro_step, team)
    base, bands = held_out.base_bands, _band_losses(run, predict, on_micro_step, team)
    return ValidationPoint(step, sum(bands) / BANDS, sum(base) / BANDS, bands, base)


def _band_losses(
    run: TrainingRun, predict: Predict, on_micro_step: Callable[[], None], team: Team | None
) -> Bands:
    sums, pictures = [0.0] * BANDS, len(run.dataset.with_role(Role.VALIDATION))
    batches = run.held_out.batches
    for batch in batches if team is None else team.share(batches):
        on_micro_step()
        for look, loss in zip(batch, look_losses(run, batch, predict), strict=True):
            sums[look.band] += loss
    if team is not None:
        sums = team.sums(sums)
    return tuple(total / pictures for total in sums)


def look_losses(run: TrainingRun, batch: list[Look], predict: Predict) -> list[float]:
    """The loss of each look of a batch, under the noise that it always has."""
    objective, schedule = run.spec.objective, run.model.schedule
    examples = [run.data.held_out_example(look.sample) for look in batch]
    sigmas, noise = [], []
    for look, example in zip(batch, examples, strict=True):
        latent, middle = example.image.latent, (look.band + 0.5) / BANDS
        name = run.dataset.samples[look.sample].name
        rng = generator(run.spec.seed, "validation", name, look.band)
        sigmas.append(sigma_at(middle, schedule, objective.timesteps, latent.shape))
        noise.append(draw_noise(latent, objective.noise, rng))
    noised = with_noise(run, examples, sigmas, noise)
    return losses_of(run, examples, noised, predict).tolist()


def _batches(dataset: ImageDataset, train_batch_size: int) -> list[list[Look]]:
    by_size: dict[tuple[int, int], list[Look]] = {}
    for index, sample in enumerate(dataset.samples):
        if sample.role is Role.VALIDATION:
            size = placement_of(sample, HELD_OUT).size
            by_size.setdefault(size, []).extend(Look(index, band) for band in range(BANDS))
    return [
        looks[first : first + train_batch_size]
        for looks in by_size.values()
        for first in range(0, len(looks), train_batch_size)
    ]
