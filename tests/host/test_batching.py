"""A batch is its pictures, each under its own caption and none disturbed by the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import pytest
import torch
from torch import Tensor

from in_memory import PLACEMENT
from lora_atelier.training.objective.batch_losses import batch_losses
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.runs.batches import Draw
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingState, start
from tiny_training import (
    CAPTIONS,
    LATENT,
    Parts,
    Recorder,
    encode,
    load_parts,
    make_run,
    normal,
    predicting,
    quick_spec,
    worked_network,
)

LONG = "a very small and very old wooden house with a green door " * 8
"""More than 75 tokens: the host encodes it in two chunks, as 154 vectors."""
LONGEST = LONG * 4
"""Six chunks: more than the host will stretch a short caption to, so it gets a batch of its own."""


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def encoded(parts: Parts) -> dict[str, Any]:
    return encode(parts.clip, (*CAPTIONS, LONG, LONGEST))


def losses_together_and_alone(parts: Parts, conditioning: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """[B] losses of one batch, and of the same pictures in batches of one, with adapters on."""
    run = make_run(parts.model, conditioning)
    network = worked_network(run.model, run.spec.network)
    draws = [Draw(image, epoch=0, position=image) for image in range(len(conditioning))]
    with predicting(run.model, network) as predict:
        together = batch_losses(run, draws, predict)
        alone = torch.cat([batch_losses(run, [draw], predict) for draw in draws])
    return together.detach(), alone.detach()


def test_four_captions_in_one_batch_give_the_losses_of_four_batches(
    parts: Parts, encoded: dict[str, Any]
) -> None:
    together, alone = losses_together_and_alone(parts, {c: encoded[c] for c in CAPTIONS})
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "captions",
    [(CAPTIONS[0], LONG, CAPTIONS[1], LONG + "!"), (CAPTIONS[0], LONG, LONGEST, CAPTIONS[1])],
    ids=["77-and-154-tokens", "77-154-and-462-tokens"],
)
def test_captions_of_unequal_length_do_not_disturb_each_other(
    parts: Parts, encoded: dict[str, Any], captions: tuple[str, ...]
) -> None:
    conditioning = {c: encoded.get(c) or encode(parts.clip, [c])[c] for c in captions}
    lengths = {embedding.shape[1] for embedding, _ in conditioning.values()}
    assert lengths == ({77, 154, 462} if LONGEST in captions else {77, 154})
    together, alone = losses_together_and_alone(parts, conditioning)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=0)


def test_the_caption_of_a_picture_matters(parts: Parts, encoded: dict[str, Any]) -> None:
    """The tests above would be blind if captions did nothing."""
    captions = list(CAPTIONS)
    _, right = losses_together_and_alone(parts, {c: encoded[c] for c in captions})
    swapped = {c: encoded[captions[i - 1]] for i, c in enumerate(captions)}
    _, wrong = losses_together_and_alone(parts, swapped)
    assert ((right - wrong).abs() > 1e-3 * right).all()


def first_step(parts: Parts, encoded: dict[str, Any], **batching: int) -> TrainingState:
    # The least gradients are rounding noise, which AdamW's first step scales up to its rate.
    spec = quick_spec(optimizer=OptimizerSpec(unet_lr=1e-4), **batching)
    run = make_run(parts.model, {c: encoded[c] for c in CAPTIONS}, spec)
    return train(start(run), 1, Recorder())


def test_four_accumulated_batches_of_one_train_as_one_batch_of_four(
    parts: Parts, encoded: dict[str, Any]
) -> None:
    whole = first_step(parts, encoded, train_batch_size=4)
    parted = first_step(parts, encoded, gradient_accumulation_steps=4)
    assert whole.history[0].loss == pytest.approx(parted.history[0].loss, rel=1e-5)
    for name, weight in whole.network.items():
        torch.testing.assert_close(parted.network[name], weight, rtol=0, atol=1e-6)
    # AdamW's first step only follows the signs; its running mean tells the gradient itself.
    for index, moments in whole.optimizer["optimizer"]["state"].items():
        gradient, other = (
            m["exp_avg"] for m in (moments, parted.optimizer["optimizer"]["state"][index])
        )
        assert (gradient - other).norm() <= 1e-5 * gradient.norm()


def test_a_step_moves_the_weights(parts: Parts, encoded: dict[str, Any]) -> None:
    """The equality above would be empty if one step changed nothing."""
    run = make_run(parts.model, {c: encoded[c] for c in CAPTIONS})
    before = start(run)
    after = train(before, 1, Recorder())
    ups = [name for name in before.network if name.endswith("lora_up.weight")]
    assert len(ups) == 48
    assert all((after.network[name] - before.network[name]).abs().max() > 1e-4 for name in ups)


@pytest.mark.parametrize("caption", [CAPTIONS[0], LONG], ids=["short", "long"])
def test_the_prediction_is_that_of_the_hosts_own_sampler(
    parts: Parts, encoded: dict[str, Any], caption: str
) -> None:
    run = make_run(parts.model, {c: encoded[c] for c in (CAPTIONS[1], caption)})
    x = normal(5, 2, *LATENT) * 3
    sigmas = torch.tensor([0.7, 2.5])
    with torch.inference_mode():
        expected = [
            host_denoised(parts.model, x[i : i + 1], sigmas[i : i + 1], conditioning)
            for i, conditioning in enumerate(run.data.conditioning.values())
        ]
    untouched = worked_network(run.model, run.spec.network)
    for adapter in untouched.values():
        adapter.lora_up.weight.data.zero_()
    with predicting(run.model, untouched) as predict:
        epsilon = predict(x, sigmas, list(run.data.conditioning.values()), [PLACEMENT] * 2)
    denoised = x - sigmas.view(2, 1, 1, 1) * epsilon.detach()
    torch.testing.assert_close(denoised, torch.cat(expected), rtol=1e-5, atol=1e-5)


def host_denoised(model: Any, x: Tensor, sigma: Tensor, conditioning: Any) -> Tensor:
    """What the host's sampler makes of one latent, by the steps of its CFGGuider."""
    options = {"transformer_options": {}}
    conds = {"positive": comfy.sampler_helpers.convert_cond([conditioning])}
    inner, conds, _ = comfy.sampler_helpers.prepare_sampling(model, x.shape, conds, options)
    model.pre_run()
    conds = comfy.samplers.process_conds(inner, x, conds, x.device, latent_image=x)
    (denoised,) = comfy.samplers.calc_cond_batch(inner, [conds["positive"]], x, sigma, options)
    model.cleanup()
    return denoised
