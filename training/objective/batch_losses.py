"""The loss of a micro-batch: each picture under its own noise and caption, and what is preserved.

Prior preservation without regularisation pictures looks at each training picture a second time,
under a prompt for its class in general, and asks for the answer that the base model gives there:

    loss = |answer − noise|² + prior_preservation · |answer(class_prompt) − base(class_prompt)|²

Source of the idea: Ruiz et al. 2022, arXiv:2208.12242 (with generated pictures); the base's own
prediction as the target as in kohya-ss/sd-scripts, train_network.py ``diff_output_preservation``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..base_model.training_context import adapters_off
from ..dataset.samples import Role
from ..random_streams import generator
from ..runs.batches import Draw
from ..runs.examples import Conditioning, Example, stacked_masks
from .noise import Noise, draw_noise
from .objective import NoisedBatch, ObjectiveSpec, PriorTarget, add_noise, sample_losses
from .timesteps import draw_sigma

if TYPE_CHECKING:
    from ..runs.run import Predict, TrainingRun

Term = Callable[["TrainingRun", list[Draw], "Predict"], Tensor]
"""``term(run, batch, predict) -> [B]``: a part of each picture's loss."""


def loss_terms(objective: ObjectiveSpec) -> tuple[Term, ...]:
    """The terms whose sum is the loss; each has a backward pass of its own, to spare memory."""
    if objective.prior.prior_preservation > 0:
        return (batch_losses, prior_losses)
    return (batch_losses,)


def batch_losses(run: TrainingRun, batch: list[Draw], predict: Predict) -> Tensor:
    """[B] weighted loss of each picture of a micro-batch, each under its own caption."""
    examples = [run.example(draw) for draw in batch]
    noised = _noised(run, batch, examples)
    if run.spec.objective.prior.prior_target is PriorTarget.BASE_MODEL:
        noised = _aimed_at_base(noised, examples, predict)
    return losses_of(run, examples, noised, predict)


def losses_of(
    run: TrainingRun, examples: list[Example], noised: NoisedBatch, predict: Predict
) -> Tensor:
    """[B] weighted loss of each picture under its own caption and the noise it was given."""
    objective = run.spec.objective
    conditioning = [example.conditioning for example in examples]
    prediction = _predict(predict, noised, conditioning, examples)
    masks = stacked_masks([e.image for e in examples]) if objective.masked_loss else None
    factors = [
        e.loss_weight * (objective.prior.prior_loss_weight if _is_prior(e) else 1) for e in examples
    ]
    return sample_losses(prediction, noised, masks) * torch.tensor(
        factors, device=prediction.device
    )


def prior_losses(run: TrainingRun, batch: list[Draw], predict: Predict) -> Tensor:
    """[B] how far each training picture under the class prompt is from the base model's answer.

    Noise and noise level are those of :func:`batch_losses`. Masks do not count: what is hidden in a
    picture is to be preserved too. 0 for regularisation pictures.
    """
    prior = run.spec.objective.prior
    losses = torch.zeros(len(batch), device=run.model.device)
    chosen = [i for i, draw in enumerate(batch) if not _is_prior(run.example(draw))]
    if not chosen:
        return losses.requires_grad_()  # backward finds nothing, but may be called
    examples = [run.example(batch[i]) for i in chosen]
    noised = _noised(run, [batch[i] for i in chosen], examples)
    conditioning = [run.data.conditioning[prior.class_prompt]] * len(examples)
    noised = replace(noised, target=_base_answer(predict, noised, conditioning, examples))
    prediction = _predict(predict, noised, conditioning, examples)
    factors = [prior.prior_preservation * e.loss_weight for e in examples]
    own = sample_losses(prediction, noised) * torch.tensor(factors, device=prediction.device)
    return losses.index_put((torch.tensor(chosen, device=losses.device),), own)


def _noised(run: TrainingRun, batch: list[Draw], examples: list[Example]) -> NoisedBatch:
    """Each picture's noise depends on its place in the run alone: noise level first, then noise."""
    objective, schedule = run.spec.objective, run.model.schedule
    sigmas, noise = [], []
    for draw, example in zip(batch, examples, strict=True):
        latent = example.image.latent
        rng = generator(run.spec.seed, "noise", draw.epoch, draw.position)
        sigmas.append(draw_sigma(schedule, objective.timesteps, latent.shape, rng))
        noise.append(draw_noise(latent, objective.noise, rng))
    return with_noise(run, examples, sigmas, noise)


def with_noise(
    run: TrainingRun, examples: list[Example], sigmas: list[Tensor], noise: list[Noise]
) -> NoisedBatch:
    """A micro-batch on the model's device; one noise level and one noise a picture."""
    device = run.model.device
    return add_noise(
        torch.stack([example.image.latent for example in examples]).to(device),
        Noise(*(torch.stack(parts).to(device) for parts in zip(*noise, strict=True))),
        torch.stack(sigmas).to(device),
        run.model.schedule,
        run.spec.objective,
    )


def _aimed_at_base(noised: NoisedBatch, examples: list[Example], predict: Predict) -> NoisedBatch:
    """The batch, where the base model's answer is the target of regularisation pictures."""
    chosen = [i for i, example in enumerate(examples) if _is_prior(example)]
    if not chosen:
        return noised
    few = replace(noised, noisy_latents=noised.noisy_latents[chosen], sigmas=noised.sigmas[chosen])
    pictures = [examples[i] for i in chosen]
    answer = _base_answer(predict, few, [e.conditioning for e in pictures], pictures)
    places = torch.tensor(chosen, device=noised.target.device)
    return replace(noised, target=noised.target.index_copy(0, places, answer))


def _base_answer(
    predict: Predict, noised: NoisedBatch, conditioning: list[Conditioning], examples: list[Example]
) -> Tensor:
    with torch.no_grad(), adapters_off():
        return _predict(predict, noised, conditioning, examples).float()


def _predict(
    predict: Predict, noised: NoisedBatch, conditioning: list[Conditioning], examples: list[Example]
) -> Tensor:
    placements = [example.placement for example in examples]
    return predict(noised.noisy_latents, noised.sigmas, conditioning, placements)


def _is_prior(example: Example) -> bool:
    return example.role is Role.REGULARISATION
