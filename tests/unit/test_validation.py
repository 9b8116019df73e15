"""The held-out loss on a small, real model: what it is, when it is measured, and that measuring it
changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from in_memory import latent_of
from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.samples import ImageDataset, Role, Sample
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.build import Algorithm, NetworkSpec
from lora_atelier.training.objective.batch_losses import batch_losses
from lora_atelier.training.objective.objective import ObjectiveSpec, PriorSpec
from lora_atelier.training.optimizers.lr_scheduler import LRSchedulerSpec, LRSchedulerType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec, OptimizerType
from lora_atelier.training.random_streams import generator
from lora_atelier.training.runs.adapter_precision import AdapterPrecision
from lora_atelier.training.runs.batches import Draw
from lora_atelier.training.runs.examples import HELD_OUT, EncodedDataset, View
from lora_atelier.training.runs.guard import OnDivergence
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingRun, TrainingSpec, TrainingState, start
from lora_atelier.training.runs.state_file import load_state, save_state
from lora_atelier.training.runs.validation import BANDS, HeldOut, ValidationPoint, validate

Make = Callable[..., Any]
CONSTANT = LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.0)
FAST = {"optimizer": OptimizerSpec(unet_lr=1e-2), "lr_scheduler": CONSTANT}


def holding_out(run: TrainingRun, *which: int) -> TrainingRun:
    """The run, in which some pictures are held out."""
    samples = [
        replace(s, role=Role.VALIDATION) if i in which else s
        for i, s in enumerate(run.dataset.samples)
    ]
    return replace(run, data=replace(run.data, dataset=run.dataset.changed(samples)))


def measured(state: TrainingState) -> ValidationPoint:
    """The point of the weights that a state gives to be used, in a run that measured nothing."""
    run = replace(state.run)
    network = run.new_network()
    network.load_state_dict(state.network)
    network.eval()
    with run.model.training(network, torch.float32) as predict:
        return validate(run, state.step, predict, lambda: None)


def loss_by_hand(run: TrainingRun, weights: dict[str, Tensor], picture: int, band: int) -> float:
    """In plain formulas: DDPM noise at the middle of a quarter of the table, LoRA, min-SNR 5."""
    net, name = run.model.net, run.dataset.samples[picture].name
    sigma = run.model.schedule.sigmas[[125, 375, 625, 875][band]]
    noise = torch.randn(4, 2, 2, generator=generator(run.spec.seed, "validation", name, band))
    noise, latent = noise.flatten(), latent_of(run.data, picture).flatten()
    scaled = (latent + sigma * noise) / math.sqrt(1 + sigma.item() ** 2)
    x = torch.cat([scaled, sigma.log().view(1) / 4, run.data.conditioning[f"caption {picture}"]])

    def layer(name: str, x: Tensor) -> Tensor:
        frozen = getattr(net, name)
        y = frozen.weight.clone() @ x + frozen.bias.clone()
        if weights:
            down, up = (weights[f"lora_unet_{name}.lora_{p}.weight"] for p in ("down", "up"))
            y = y + up @ (down @ x)  # alpha = rank
        return y

    hidden = layer("inside", x)
    hidden = (hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt()
    answer = layer("outside", hidden * torch.sigmoid(hidden))
    snr = sigma.item() ** -2
    return (answer - noise).square().mean().item() * min(snr, 5.0) / snr


def test_a_point_equals_one_written_out_by_hand(make_run: Make, make_listener: Make) -> None:
    run = holding_out(make_run(seed=7, validate_every_n_steps=2, **FAST), 1, 4)
    state = train(start(run), 2, make_listener())
    first, last = state.validations

    def bands(weights: dict[str, Tensor]) -> list[float]:
        return [sum(loss_by_hand(run, weights, i, b) for i in (1, 4)) / 2 for b in range(BANDS)]

    base, trained = bands({}), bands(dict(state.network))
    assert last.bands == pytest.approx(trained, rel=1e-5)
    assert last.loss == pytest.approx(sum(trained) / 4, rel=1e-5)
    assert last.base_bands == first.base_bands == first.bands == pytest.approx(base, rel=1e-5)
    assert last.base_loss == first.loss == pytest.approx(sum(base) / 4, rel=1e-5)
    assert abs(last.loss / last.base_loss - 1) > 1e-3  # so there was something to tell apart


def test_the_noise_is_the_same_every_time(make_run: Make, make_listener: Make) -> None:
    state = train(start(holding_out(make_run(**FAST), 0, 3)), 3, make_listener())
    assert measured(state) == measured(state) == state.validations[-1]


def test_neither_batch_size_nor_other_pictures_matter(make_run: Make, make_listener: Make) -> None:
    """A picture's noise hangs on its name, so the mean over two is that of each alone."""
    run = holding_out(make_run(**FAST), 0, 3, 4)
    state = train(start(run), 3, make_listener())

    def point(size: int, *which: int) -> ValidationPoint:
        other = holding_out(make_run(train_batch_size=size, **FAST), *which)
        return measured(replace(state, run=other))

    one = point(1, 0, 3, 4)
    for size in (2, 5, 12):
        assert point(size, 0, 3, 4).bands == pytest.approx(one.bands, rel=1e-6)
    alone = [point(1, which).bands for which in (0, 3, 4)]
    assert one.bands == pytest.approx([sum(b) / 3 for b in zip(*alone, strict=True)], rel=1e-6)


def test_it_is_the_expected_training_loss(make_run: Make) -> None:
    """But for the error of the midpoint rule, which comes from the kink of min-SNR: one picture
    under 400 names, so under as many noises, beside 1600 draws of training."""
    run = make_run(repeats=(1,), train_batch_size=256)
    sample = run.dataset.samples[0]
    held = [replace(sample, name=f"v{i}", role=Role.VALIDATION) for i in range(400)]
    dataset = ImageDataset((sample, *held))
    (image,) = run.data.images.values()
    images = {View(i, HELD_OUT): image for i in range(401)}
    run = replace(run, data=EncodedDataset(dataset, images, run.data.conditioning))
    draws = [Draw(0, epoch=i, position=0) for i in range(1600)]
    with run.model.training({}, torch.float32) as predict, torch.no_grad():
        drawn = batch_losses(run, draws, predict)
        point = validate(run, 0, predict, lambda: None)
    assert float(drawn.std()) / math.sqrt(len(draws)) < 0.012 * point.loss
    assert point.loss == pytest.approx(float(drawn.mean()), rel=0.06)


def test_weights_and_masks_of_pictures_count_and_prior_preservation_does_not(
    make_run: Make,
) -> None:
    def loss(run: TrainingRun) -> float:
        return measured(start(run)).loss

    plain = holding_out(make_run(), 2)
    prior = PriorSpec(prior_preservation=1.0, class_prompt="caption 4")
    preserving = holding_out(make_run(objective=ObjectiveSpec(prior=prior)), 2)
    assert loss(preserving) == loss(plain)
    samples = list(plain.dataset.samples)
    samples[2] = replace(samples[2], loss_weight=2.0)
    heavy = replace(plain.data, dataset=plain.dataset.changed(samples))
    assert loss(replace(plain, data=heavy)) == pytest.approx(2 * loss(plain))
    view = View(2, HELD_OUT)
    nowhere = replace(plain.data.images[view], mask=torch.zeros(2, 2))
    masked = replace(plain.data, images={**plain.data.images, view: nowhere})
    assert loss(replace(plain, data=masked)) == 0


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropouts": {
        "network": NetworkSpec(8, 8.0, network_dropout=0.3, rank_dropout=0.3, module_dropout=0.3)
    },
    "module dropout of LoHa": {"network": NetworkSpec(4, 4.0, Algorithm.LOHA, module_dropout=0.5)},
    "moving average": {"optimizer": OptimizerSpec(unet_lr=1e-2, ema_decay=0.9)},
    "schedule-free": {"optimizer": OptimizerSpec(OptimizerType.ADAMW_SCHEDULE_FREE, unet_lr=1e-2)},
    "8 bits": {"optimizer": OptimizerSpec(OptimizerType.ADAMW_8BIT, unet_lr=1e-2)},
    **{
        kind.value: {"adapter_precision": kind, "network": NetworkSpec(8, 8.0, network_dropout=0.2)}
        for kind in (AdapterPrecision.BF16_STOCHASTIC, AdapterPrecision.BF16_KAHAN)
    },
    "moving average in bf16": {
        "adapter_precision": AdapterPrecision.BF16_KAHAN,
        "optimizer": OptimizerSpec(unet_lr=1e-2, ema_decay=0.9),
    },
    "DoRA": {"network": NetworkSpec(4, 4.0, Algorithm.DORA)},
}


def equal(one: Any, other: Any) -> bool:
    """Bit for bit, tensors inside mappings and lists too."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("kind", RUNS)
def test_a_validated_run_is_the_run_that_was_not(
    kind: str, make_run: Make, make_listener: Make
) -> None:
    """Weights, those that are trained on, the optimizer's state and the history; and each point is
    that of the weights which the state gives to be used."""
    choices = {**FAST, "gradient_accumulation_steps": 2, **RUNS[kind]}
    often, never = (
        holding_out(make_run(validate_every_n_steps=every, **choices), 1, 2) for every in (1, -1)
    )
    torch.manual_seed(5)
    stream = torch.get_rng_state()
    one, other = (train(start(run), 5, make_listener()) for run in (often, never))
    assert torch.equal(torch.get_rng_state(), stream)
    for part in ("network", "training_weights", "optimizer", "history"):
        assert equal(getattr(one, part), getattr(other, part)), part
    assert [p.step for p in one.validations] == [0, 1, 2, 3, 4, 5] and other.validations == ()
    assert one.validations[-1] == measured(one)
    assert one.validations[-1].bands != one.validations[-2].bands


@pytest.mark.parametrize(
    ("every", "horizon", "expected"),
    [
        (3, 7, [0, 3, 6, 7]),
        (7, 7, [0, 7]),
        (100, 7, [0, 7]),
        (-1, 7, []),
        (0, 7, [0, 7]),
        (0, 25, [0, 10, 20, 25]),
    ],
)
def test_it_is_measured_at_the_start_every_so_many_steps_and_at_the_end(
    every: int, horizon: int, expected: list[int], make_run: Make, make_listener: Make
) -> None:
    run = holding_out(make_run(validate_every_n_steps=every, max_train_steps=horizon), 1)
    listener = make_listener()
    state = train(start(run), horizon, listener)
    assert [point.step for point in state.validations] == expected
    assert tuple(listener.validations) == state.validations


@pytest.mark.parametrize(("horizon", "steps"), [(1, 10), (200, 10), (1000, 50), (3000, 150)])
def test_automatic_is_about_twenty_times_a_run(horizon: int, steps: int) -> None:
    assert TrainingSpec(max_train_steps=horizon).steps_between_validations == steps


def test_less_than_off_is_refused() -> None:
    with pytest.raises(AtelierError, match="validate_every_n_steps is -2"):
        TrainingSpec(validate_every_n_steps=-2)


def test_a_run_that_holds_nothing_out_measures_nothing(make_run: Make, make_listener: Make) -> None:
    listener = make_listener()
    state = train(start(make_run(validate_every_n_steps=1)), 2, listener)
    assert state.validations == () and listener.micro_steps == 2


def test_the_end_that_a_person_asked_for_is_measured(make_run: Make, make_listener: Make) -> None:
    run = holding_out(make_run(validate_every_n_steps=4), 1)
    state = train(start(run), 6, make_listener(finish=2))
    assert [point.step for point in state.validations] == [0, 2]


def test_the_state_after_a_step_holds_the_point_that_was_due(
    make_run: Make, make_listener: Make
) -> None:
    """So a checkpoint knows its own loss."""
    listener = make_listener(finish=-1)
    kept: list[TrainingState] = []
    listener.on_step = lambda record, last_step, freeze: kept.append(freeze())
    train(start(holding_out(make_run(validate_every_n_steps=2), 1)), 4, listener)
    assert [[p.step for p in state.validations] for state in kept] == [
        [0],
        [0, 2],
        [0, 2],
        [0, 2, 4],
    ]


def test_a_run_in_pieces_measures_the_same(
    make_run: Make, make_listener: Make, tmp_path: Path
) -> None:
    """Through a file too; the base model, which is the same all the time, is measured once a
    process."""
    run = holding_out(make_run(validate_every_n_steps=2, train_batch_size=4, **FAST), 1, 2)
    whole = train(start(run), 6, make_listener())
    first, second, third = make_listener(), make_listener(), make_listener()
    state = train(start(replace(run)), 3, first)
    save_state(tmp_path / "state.safetensors", state)
    state = train(state, 1, second)
    assert [p.step for p in state.validations] == [0, 2, 3, 4]
    further = train(state, 2, make_listener())  # step 4 is not measured again
    assert [p.step for p in further.validations] == [0, 2, 3, 4, 6]
    assert first.micro_steps == 3 + (1 + 3) * 2  # 2 pictures × 4 bands in batches of 4
    assert second.micro_steps == 1 + 1 * 2
    loaded = load_state(tmp_path / "state.safetensors", replace(run))
    assert loaded.validations == state.validations[:3]
    resumed = train(loaded, 3, third)
    assert third.micro_steps == 3 + (1 + 2) * 2
    assert [p.step for p in resumed.validations] == [0, 2, 3, 4, 6]
    assert tuple(p for p in resumed.validations if p.step % 2 == 0) == whole.validations
    assert equal(dict(resumed.network), dict(whole.network))


@pytest.mark.parametrize("kind", ["plain", "dropouts", "moving average", "schedule-free"])
@pytest.mark.parametrize("micro_step", [1, 3, 11, 12])
def test_cancel_while_it_is_measured_keeps_the_last_whole_step(
    micro_step: int, kind: str, make_run: Make, make_listener: Make
) -> None:
    """8 passes at step 0 (half of them for the base), 2 steps, and then again 4."""
    choices = {**FAST, "train_batch_size": 2, **RUNS[kind]}
    run = holding_out(make_run(validate_every_n_steps=2, **choices), 1, 3)
    listener = make_listener(micro_step=micro_step, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        train(start(run), 4, listener)
    (kept,) = listener.interrupted
    assert listener.micro_steps == micro_step
    assert kept.step == (0 if micro_step <= 8 else 2)
    assert [p.step for p in kept.validations] == ([] if micro_step <= 8 else [0])
    whole = train(start(run), 4, make_listener())
    again = train(kept, 4 - kept.step, make_listener())
    for part in ("network", "training_weights", "optimizer", "history", "validations"):
        assert equal(getattr(again, part), getattr(whole, part)), part


def test_pictures_of_one_size_are_looked_at_together() -> None:
    """Three sizes, of which one is held out twice; others than validation pictures are not."""
    fit = FitOptions((64, 128), bucket_reso_steps=8, enable_bucket=True, flip_aug=True)
    sizes = [(64, 64), (128, 64), (64, 64), (64, 128), (64, 64)]
    roles = [Role.VALIDATION, Role.VALIDATION, Role.VALIDATION, Role.VALIDATION, Role.TRAIN]
    dataset = ImageDataset(
        tuple(
            Sample(ImageFile(f"{i}", size), f"{i}", role=role, fit=fit)
            for i, (size, role) in enumerate(zip(sizes, roles, strict=True))
        )
    )
    batches = HeldOut(dataset, train_batch_size=3).batches
    assert [[look.sample for look in batch] for batch in batches] == [
        *([0, 0, 0], [0, 2, 2], [2, 2]),
        *([1, 1, 1], [1]),
        *([3, 3, 3], [3]),
    ]
    looks = {look for batch in batches for look in batch}
    assert looks == {(sample, band) for sample in range(4) for band in range(4)}


def test_a_run_that_is_rolled_back_keeps_the_point_of_where_it_goes_on(
    make_run: Make, make_model: Make, make_listener: Make
) -> None:
    """Steps 55 to 59 break (that of 55 is the 62nd pass: 2 at step 0 and one every 10 steps are not
    training), and the run goes back to step 50, which was measured already."""
    passes: list[int] = []

    def answer(prediction: Tensor) -> Tensor:
        passes.append(1)
        return prediction * math.nan if 62 <= len(passes) < 67 else prediction

    choices = {
        "max_train_steps": 60,
        "train_batch_size": 4,
        "on_divergence": OnDivergence.ROLL_BACK,
    }
    run = holding_out(make_run(model=make_model(answer), validate_every_n_steps=10, **choices), 1)
    listener = make_listener(finish=-1)
    state = train(start(run), 60, listener)
    assert [p.step for p in state.validations] == [0, 10, 20, 30, 40, 50, 60]
    assert [p.step for p in listener.validations] == [0, 10, 20, 30, 40, 50, 50, 60]
    assert listener.validations[5] == listener.validations[6]
