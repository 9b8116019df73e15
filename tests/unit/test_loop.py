"""The training loop on a small, real model: what a step computes and what it tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from in_memory import latent_of
from lora_atelier.training.dataset.fit import Variant
from lora_atelier.training.network.build import NetworkSpec
from lora_atelier.training.objective.batch_losses import batch_losses
from lora_atelier.training.objective.objective import ObjectiveSpec
from lora_atelier.training.optimizers.lr_scheduler import LRSchedulerSpec, LRSchedulerType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.random_streams import generator
from lora_atelier.training.runs.examples import View
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingRun, TrainingState, start

CONSTANT = LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.0)
Make = Callable[..., Any]


def _loss_by_hand(run: TrainingRun, weights: dict[str, Tensor], image: int, epoch: int, place: int):
    """One picture's loss in plain formulas: DDPM noise, LoRA, eps target, min-SNR 5."""
    net, rng = run.model.net, generator(run.spec.seed, "noise", epoch, place)
    sigma = run.model.schedule.sigmas[int(torch.randint(1000, (1,), generator=rng))]
    latent = latent_of(run.data, image).flatten()
    noise = torch.randn(4, 2, 2, generator=rng).flatten()
    caption = run.data.conditioning[f"caption {image}"]
    scaled = (latent + sigma * noise) / math.sqrt(1 + sigma.item() ** 2)
    x = torch.cat([scaled, sigma.log().view(1) / 4, caption])

    def layer(name: str, x: Tensor) -> Tensor:
        frozen = getattr(net, name)
        down, up = (weights[f"lora_unet_{name}.lora_{part}.weight"] for part in ("down", "up"))
        scale = run.spec.network.network_alpha / run.spec.network.network_dim
        return frozen.weight.clone() @ x + frozen.bias.clone() + scale * (up @ (down @ x))

    hidden = layer("inside", x)
    hidden = (hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt()
    answer = layer("outside", hidden * torch.sigmoid(hidden))
    snr = sigma.item() ** -2
    return (answer - noise).square().mean() * (min(snr, 5.0) / snr)


def _train_by_hand(run: TrainingRun, state: TrainingState, steps: int) -> dict[str, Tensor]:
    """The loop again: mean over the pictures of a step, clipping, AdamW, cosine."""
    spec = run.spec
    weights = {k: nn.Parameter(v.clone()) for k, v in state.network.items() if "weight" in k}
    optimizer = torch.optim.AdamW(weights.values(), lr=1.0, weight_decay=0.01)
    for step in range(steps):
        first = step * spec.gradient_accumulation_steps
        draws = [
            d for i in range(spec.gradient_accumulation_steps) for d in run.plan.batch(first + i)
        ]
        losses = [_loss_by_hand(run, weights, d.item, d.epoch, d.position) for d in draws]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        length = torch.stack([p.grad.square().sum() for p in weights.values()]).sum().sqrt()
        for parameter in weights.values():
            parameter.grad *= min(1.0, spec.optimizer.max_grad_norm / length.item())
        progress = step / spec.max_train_steps
        rate = spec.optimizer.unet_lr * 0.5 * (1 + math.cos(math.pi * progress))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return {key: value.detach() for key, value in weights.items()}


def test_the_loop_equals_one_written_out_by_hand(make_run: Make, make_listener: Make) -> None:
    """Five pictures in batches of 2 (the last one short), two micro-steps a step, over epochs."""
    run = make_run(
        network=NetworkSpec(4, 2.0),
        optimizer=OptimizerSpec(unet_lr=1e-2, max_grad_norm=0.5),
        lr_scheduler=LRSchedulerSpec(LRSchedulerType.COSINE, 0.0),
        train_batch_size=2,
        gradient_accumulation_steps=2,
        seed=7,
    )
    first = start(run)
    expected = _train_by_hand(run, first, 5)
    trained = train(first, 5, make_listener())
    for key, value in expected.items():
        torch.testing.assert_close(trained.network[key], value, rtol=1e-4, atol=1e-5)


def test_each_picture_is_trained_on_its_own_caption(make_run: Make) -> None:
    """Exchanging two captions changes the losses of these two pictures and of no other."""
    run = make_run(objective=ObjectiveSpec(0), train_batch_size=5)
    swapped = dict(run.data.conditioning)
    swapped["caption 1"], swapped["caption 3"] = swapped["caption 3"], swapped["caption 1"]
    other = replace(run, data=replace(run.data, conditioning=swapped))
    batch = run.plan.batch(0)
    with run.model.training({}, torch.float32) as predict:
        before, after = (batch_losses(r, batch, predict) for r in (run, other))
    changed = {d.item for d, a, b in zip(batch, before, after, strict=True) if a != b}
    assert changed == {1, 3}


def test_a_step_of_short_batches_is_the_mean_over_its_pictures(
    make_run: Make, make_listener: Make
) -> None:
    """Three pictures as 2 + 1 give the same step as all three at once."""
    optimizer = OptimizerSpec(unet_lr=1e-2, max_grad_norm=0)
    common = {"repeats": (1, 1, 1), "optimizer": optimizer, "lr_scheduler": CONSTANT}
    split = make_run(**common, train_batch_size=2, gradient_accumulation_steps=2)
    whole = make_run(**common, train_batch_size=3)
    one, other = (train(start(run), 3, make_listener()) for run in (split, whole))
    for key, value in other.network.items():
        torch.testing.assert_close(one.network[key], value, rtol=1e-5, atol=1e-6)
    losses = [[r.loss for r in state.history] for state in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_loss_falls_on_an_easy_problem(make_run: Make, make_listener: Make) -> None:
    run = make_run(
        repeats=(1,),
        network=NetworkSpec(16, 16.0),
        optimizer=OptimizerSpec(unet_lr=1e-2),
        lr_scheduler=CONSTANT,
        train_batch_size=1,
        gradient_accumulation_steps=4,
        max_train_steps=150,
    )
    losses = [record.loss for record in train(start(run), 150, make_listener()).history]
    assert sum(losses[-30:]) < 0.5 * sum(losses[:30])


def test_clipping_shortens_the_gradient_to_its_limit(make_run: Make, make_listener: Make) -> None:
    """The first moment of AdamW after one step is a tenth of the gradient it was given."""

    def moment_length(limit: float) -> tuple[float, float]:
        optimizer = OptimizerSpec(max_grad_norm=limit)
        state = train(start(make_run(optimizer=optimizer)), 1, make_listener())
        moments = [s["exp_avg"] for s in state.optimizer["optimizer"]["state"].values()]
        length = math.sqrt(sum(m.square().sum().item() for m in moments))
        return length * 10, state.history[0].grad_norm

    free, norm = moment_length(0)
    assert free == pytest.approx(norm, rel=1e-4)
    assert norm > 0.05
    clipped, recorded = moment_length(0.01)
    assert clipped == pytest.approx(0.01, rel=1e-3)
    assert recorded == pytest.approx(norm)  # the history shows it before clipping


def test_the_history_tells_step_epoch_loss_and_rate(make_run: Make, make_listener: Make) -> None:
    """Five pictures, batch 2: three steps an epoch."""
    scheduler = LRSchedulerSpec(LRSchedulerType.COSINE, 0.5)
    optimizer = OptimizerSpec(unet_lr=1e-3)
    run = make_run(
        optimizer=optimizer, lr_scheduler=scheduler, train_batch_size=2, max_train_steps=8
    )
    listener = make_listener()
    history = train(start(run), 8, listener).history
    assert [record.step for record in history] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [record.epoch for record in history] == [0, 0, 0, 1, 1, 1, 2, 2]
    falling = [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    rates = [1e-3 * share for share in [0, 0.25, 0.5, 0.75, *falling]]
    assert [record.learning_rate for record in history] == pytest.approx(rates, abs=1e-12)
    assert not any(record.skipped for record in history)
    assert listener.records == [(record, 8) for record in history]


def test_cancel_is_looked_for_before_every_micro_step(make_run: Make, make_listener: Make) -> None:
    listener = make_listener()
    train(start(make_run(gradient_accumulation_steps=3)), 2, listener)
    assert listener.micro_steps == 6


def test_the_first_loss_is_the_base_models_own(make_run: Make, make_listener: Make) -> None:
    run = make_run(train_batch_size=5)
    with run.model.training({}, torch.float32) as predict, torch.no_grad():
        expected = batch_losses(run, run.plan.batch(0), predict).mean().item()
    assert train(start(run), 1, make_listener()).history[0].loss == pytest.approx(expected)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_one_step_that_is_no_number_is_passed_over(
    make_run: Make, make_model: Make, make_listener: Make, broken: float
) -> None:
    calls: list[int] = []

    def answer(prediction: Tensor) -> Tensor:
        calls.append(1)
        return prediction * broken if len(calls) == 3 else prediction

    run = make_run(model=make_model(answer), lr_scheduler=CONSTANT)
    before = train(start(run), 2, make_listener())
    after = train(before, 1, make_listener())
    assert after.history[2].skipped
    assert after.step == 3
    assert all(torch.equal(after.network[key], value) for key, value in before.network.items())
    assert not train(after, 1, make_listener()).history[3].skipped


def test_a_gradient_that_is_no_number_is_passed_over_too(
    make_run: Make, make_model: Make, make_listener: Make
) -> None:
    """√ has an infinite slope at 0: finite values, no finite gradient."""
    model = make_model(lambda prediction: (prediction * 0).sqrt())
    state = train(start(make_run(model=model)), 2, make_listener())
    assert all(record.skipped for record in state.history)
    assert all(math.isfinite(record.loss) for record in state.history)


def test_bfloat16_trains_float32_adapters(make_run: Make, make_listener: Make) -> None:
    state = train(start(make_run(mixed_precision="bf16")), 2, make_listener())
    full = train(start(make_run()), 2, make_listener())
    assert {tensor.dtype for tensor in state.network.values()} == {torch.float32}
    assert state.history[0].loss != full.history[0].loss
    assert state.history[0].loss == pytest.approx(full.history[0].loss, rel=0.05)


def test_a_listener_may_end_the_call_early_as_a_success(
    make_run: Make, make_listener: Make
) -> None:
    listener = make_listener(finish=2)
    early = train(start(make_run()), 6, listener)
    whole = train(start(make_run()), 2, make_listener())
    assert early.step == 2 and listener.interrupted == []
    assert [last for _, last in listener.records] == [6, 6]
    assert all(torch.equal(early.network[key], value) for key, value in whole.network.items())


def test_past_the_horizon_the_last_rate_holds(make_run: Make, make_listener: Make) -> None:
    run = make_run(lr_scheduler=LRSchedulerSpec(LRSchedulerType.COSINE, 0.0), max_train_steps=4)
    rates = [r.learning_rate for r in train(start(run), 7, make_listener()).history]
    assert rates[3] > 0 and rates[4:] == [rates[3]] * 3


def test_a_run_leaves_accelerate_as_it_was(make_run: Make, make_listener: Make) -> None:
    train(start(make_run()), 1, make_listener())
    from accelerate.state import AcceleratorState

    assert AcceleratorState._shared_state == {}


def test_weights_and_masks_belong_to_their_own_picture(make_run: Make) -> None:
    """Doubling one picture's weight and masking half of another changes these two losses only."""
    run = make_run(objective=ObjectiveSpec(0), train_batch_size=5)
    left = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    samples = list(run.dataset.samples)
    samples[1] = replace(samples[1], loss_weight=2.0)
    images = dict(run.data.images)
    view = View(3, Variant(0))
    images[view] = replace(images[view], mask=left)
    dataset = run.dataset.changed(samples)
    other = replace(run, data=replace(run.data, dataset=dataset, images=images))
    batch = run.plan.batch(0)
    with run.model.training({}, torch.float32) as predict:
        before, after = (batch_losses(r, batch, predict) for r in (run, other))
    ratio = {d.item: float(b / a) for d, a, b in zip(batch, before, after, strict=True)}
    assert ratio[1] == pytest.approx(2) and 0 < ratio[3] < 1
    assert [ratio[i] for i in (0, 2, 4)] == [1, 1, 1]
