"""The loss of a micro-batch on a small, real model: draws, regularisation, prior preservation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from in_memory import latent_of
from lora_atelier.training.base_model.training_context import adapters_off
from lora_atelier.training.dataset.fit import Variant
from lora_atelier.training.dataset.samples import Role
from lora_atelier.training.objective.batch_losses import batch_losses, loss_terms, prior_losses
from lora_atelier.training.objective.noise import NoiseSpec
from lora_atelier.training.objective.objective import ObjectiveSpec, PriorSpec, PriorTarget
from lora_atelier.training.objective.timesteps import TimestepSampling, TimestepSpec
from lora_atelier.training.optimizers.lr_scheduler import LRSchedulerSpec, LRSchedulerType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec
from lora_atelier.training.random_streams import generator
from lora_atelier.training.runs.batches import Draw
from lora_atelier.training.runs.examples import View
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingRun, start

Make = Callable[..., Any]
BASE, PICTURES = PriorTarget.BASE_MODEL, PriorTarget.PICTURES
BATCH = [Draw(item, epoch=2, position=10 + item) for item in range(5)]
PROMPT = "caption 4"
"""Stands for the class prompt: any text that was encoded."""


def regularised(run: TrainingRun, *which: int) -> TrainingRun:
    """The run, in which some pictures are there for regularisation."""
    samples = [
        replace(s, role=Role.REGULARISATION) if i in which else s
        for i, s in enumerate(run.dataset.samples)
    ]
    return replace(run, data=replace(run.data, dataset=run.dataset.changed(samples)))


def worked_network(run: TrainingRun, size: float = 0.05) -> torch.nn.ModuleDict:
    """Adapters as after a long training."""
    network = run.new_network()
    rng = torch.Generator().manual_seed(4)
    for name, weight in network.named_parameters():
        if "lora_up" in name:
            weight.data = torch.randn(weight.shape, generator=rng) * size
    return network


def losses(run: TrainingRun, batch: list[Draw] = BATCH, term=batch_losses, **kind: Any) -> Tensor:
    network = worked_network(run, **kind)
    with run.model.training(network, torch.float32) as predict:
        return term(run, batch, predict).detach()


def with_prior(run: TrainingRun, **fields: Any) -> TrainingRun:
    objective = replace(run.spec.objective, prior=PriorSpec(**fields))
    return replace(run, spec=replace(run.spec, objective=objective))


EVERYTHING = ObjectiveSpec(
    noise=NoiseSpec(0.1, 0.1, 3, 0.5, 0.1),
    timesteps=TimestepSpec(TimestepSampling.LOGIT_NORMAL),
    prior=PriorSpec(2.0, BASE, 0.5, PROMPT),
)


@pytest.mark.parametrize("term", [batch_losses, prior_losses])
def test_a_pictures_loss_does_not_depend_on_its_batch(make_run: Make, term: Any) -> None:
    run = regularised(make_run(objective=EVERYTHING), 1)
    together = losses(run, term=term)
    for order in ([3, 0, 4], [2], [1, 4]):
        alone = losses(run, [BATCH[i] for i in order], term)
        torch.testing.assert_close(alone, together[order], rtol=1e-5, atol=1e-6)


def test_another_place_in_the_run_has_other_noise(make_run: Make) -> None:
    run = make_run(objective=EVERYTHING)
    moved = losses(run, [replace(draw, epoch=3) for draw in BATCH])
    assert (moved - losses(run)).abs().min() > 1e-4


# Regularisation pictures.


def test_the_prior_weight_is_a_factor_on_regularisation_pictures_alone(make_run: Make) -> None:
    run = regularised(make_run(), 1, 3)
    ratio = losses(with_prior(run, prior_loss_weight=0.25)) / losses(run)
    assert ratio.tolist() == pytest.approx([1, 0.25, 1, 0.25, 1])


def test_the_prior_weight_multiplies_the_pictures_own(make_run: Make) -> None:
    run = regularised(make_run(), 1)
    samples = [replace(s, loss_weight=3.0) for s in run.dataset.samples]
    heavy = replace(run, data=replace(run.data, dataset=run.dataset.changed(samples)))
    ratio = losses(with_prior(heavy, prior_loss_weight=0.5)) / losses(run)
    assert ratio.tolist() == pytest.approx([3, 1.5, 3, 3, 3])


def test_regularisation_pictures_are_aimed_at_the_base_model_by_choice(make_run: Make) -> None:
    """Their loss is the squared distance between adapted and base answer, the others' stays."""
    run = regularised(make_run(objective=ObjectiveSpec(0)), 0, 3)
    aimed, plain = losses(with_prior(run, prior_target=BASE)), losses(run)
    assert aimed[[1, 2, 4]].tolist() == plain[[1, 2, 4]].tolist()
    network = worked_network(run)
    for i in (0, 3):
        rng = generator(run.spec.seed, "noise", 2, 10 + i)
        sigma = run.model.schedule.sigmas[int(torch.randint(1000, (1,), generator=rng))].view(1)
        noise = torch.randn(4, 2, 2, generator=rng)
        noisy = (latent_of(run.data, i) + sigma * noise).unsqueeze(0)
        caption = [run.data.conditioning[f"caption {i}"]]
        with run.model.training(network, torch.float32) as predict:
            adapted = predict(noisy, sigma, caption, [])
        with run.model.training({}, torch.float32) as predict:
            base = predict(noisy, sigma, caption, [])
        assert aimed[i].item() == pytest.approx((adapted - base).square().mean().item(), rel=1e-4)
        assert aimed[i] != plain[i]


def test_untouched_adapters_are_no_distance_from_the_base_model(make_run: Make) -> None:
    run = with_prior(regularised(make_run(), 0, 3), prior_target=BASE)
    found = losses(run, size=0.0).tolist()
    assert [i for i, loss in enumerate(found) if loss < 1e-12] == [0, 3]


# Prior preservation without pictures.


@pytest.fixture
def preserving(make_run: Make) -> TrainingRun:
    return with_prior(make_run(), prior_preservation=1.0, class_prompt=PROMPT)


def test_with_untouched_adapters_the_prior_term_is_exactly_zero(preserving: TrainingRun) -> None:
    assert losses(preserving, term=prior_losses, size=0.0).tolist() == [0.0] * 5
    assert losses(preserving, term=prior_losses).min() > 1e-4


def test_the_prior_term_by_hand(make_run: Make) -> None:
    """w · |adapted − base|² under the class prompt, at the picture's own noise and weight."""
    objective = ObjectiveSpec(prior=PriorSpec(prior_preservation=0.7, class_prompt=PROMPT))
    run = make_run(objective=objective)
    network, found = worked_network(run), losses(run, term=prior_losses)
    for i in range(5):
        rng = generator(run.spec.seed, "noise", 2, 10 + i)
        sigma = run.model.schedule.sigmas[int(torch.randint(1000, (1,), generator=rng))].view(1)
        noisy = (latent_of(run.data, i) + sigma * torch.randn(4, 2, 2, generator=rng)).unsqueeze(0)
        answers = []
        for adapters in (network, {}):
            with run.model.training(adapters, torch.float32) as predict:
                answers.append(predict(noisy, sigma, [run.data.conditioning[PROMPT]], []))
        distance = (answers[0] - answers[1]).square().mean().item()
        snr = sigma.item() ** -2
        assert found[i].item() == pytest.approx(0.7 * distance * min(snr, 5) / snr, rel=1e-4)


def test_another_class_prompt_is_another_term(preserving: TrainingRun) -> None:
    other = with_prior(preserving, prior_preservation=1.0, class_prompt="caption 0")
    first, second = (losses(run, term=prior_losses) for run in (preserving, other))
    assert (first - second).abs().min() > 1e-6


def test_regularisation_pictures_have_no_prior_term(preserving: TrainingRun) -> None:
    found = losses(regularised(preserving, 0, 2), term=prior_losses)
    assert [i for i, loss in enumerate(found.tolist()) if loss == 0] == [0, 2]


def test_a_batch_of_regularisation_pictures_alone_trains_without_it(
    preserving: TrainingRun, make_listener: Make
) -> None:
    run = regularised(preserving, 0, 1, 2, 3)
    run = replace(run, spec=replace(run.spec, train_batch_size=1))
    assert train(start(run), 6, make_listener()).step == 6


def test_masks_do_not_hide_what_is_to_be_preserved(preserving: TrainingRun) -> None:
    masked = with_mask(preserving, 2)
    pair = (preserving, masked)
    assert torch.equal(*(losses(run, term=prior_losses) for run in pair))
    assert not torch.equal(*(losses(run) for run in pair))


def test_the_prior_term_pulls_a_trained_adapter_back_to_the_base_model(
    preserving: TrainingRun,
) -> None:
    network = worked_network(preserving, size=0.2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    course = []
    with preserving.model.training(network, torch.float32) as predict:
        for _ in range(100):
            optimizer.zero_grad()
            loss = prior_losses(preserving, BATCH, predict).mean()
            loss.backward()
            optimizer.step()
            course.append(loss.item())
    assert course[-1] < 0.1 * course[0]


def drift(run: TrainingRun, listener: Any) -> float:
    """How far training moves the answer to the class prompt."""
    spec = replace(
        run.spec,
        optimizer=OptimizerSpec(unet_lr=1e-2),
        lr_scheduler=LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.0),
        train_batch_size=5,
    )
    run = replace(run, spec=spec)
    state = train(start(run), 40, listener)
    network = run.new_network()
    network.load_state_dict(dict(state.network))
    probe = with_prior(run, prior_preservation=1.0, class_prompt=PROMPT)
    with run.model.training(network, torch.float32) as predict:
        return prior_losses(probe, BATCH, predict).mean().item()


def test_training_with_preservation_leaves_the_class_nearer_to_the_base_model(
    make_run: Make, make_listener: Make
) -> None:
    run = make_run()
    strong = with_prior(run, prior_preservation=10.0, class_prompt=PROMPT)
    assert drift(strong, make_listener()) < 0.5 * drift(run, make_listener())


def test_the_loss_of_a_step_is_the_sum_of_its_terms(
    preserving: TrainingRun, make_listener: Make
) -> None:
    """Untouched adapters: nothing to preserve yet. Then the second step has both terms."""
    listener = make_listener()
    one, two = train(start(preserving), 2, listener).history
    bare = with_prior(preserving)
    assert one.loss == train(start(bare), 1, make_listener()).history[0].loss
    assert listener.micro_steps == 4  # Cancel is looked for before each
    state = train(start(preserving), 1, make_listener())
    network = preserving.new_network()
    network.load_state_dict(dict(state.network))
    batch = preserving.plan.batch(1)
    with preserving.model.training(network, torch.float32) as predict, torch.no_grad():
        parts = [
            term(preserving, batch, predict).mean().item() for term in (batch_losses, prior_losses)
        ]
    assert parts[1] > 0
    assert two.loss == pytest.approx(sum(parts), rel=1e-5)


def test_terms_that_are_off_cost_nothing() -> None:
    assert loss_terms(ObjectiveSpec()) == (batch_losses,)
    assert loss_terms(ObjectiveSpec(prior=PriorSpec(prior_preservation=1))) == (
        batch_losses,
        prior_losses,
    )
    assert PriorSpec(class_prompt="a dog").prompts == ()
    assert PriorSpec(prior_preservation=1, class_prompt="a dog").prompts == ("a dog",)


# Adapters off.


def test_with_the_adapters_off_the_model_answers_as_its_base(make_run: Make) -> None:
    run = make_run()
    question = (torch.randn(2, 4, 2, 2), torch.tensor([0.5, 3.0]), [torch.ones(4)] * 2, [])
    with run.model.training({}, torch.float32) as predict:
        base = predict(*question)
    with run.model.training(worked_network(run), torch.float32) as predict:
        adapted = predict(*question)
        with adapters_off():
            assert torch.equal(predict(*question), base)
        assert torch.equal(predict(*question), adapted)
    assert not torch.allclose(adapted, base)


def test_adapters_come_back_when_the_base_model_fails(make_run: Make) -> None:
    run = make_run()
    with run.model.training(worked_network(run), torch.float32) as predict:
        before = predict(torch.ones(1, 4, 2, 2), torch.ones(1), [torch.ones(4)], [])
        with pytest.raises(KeyboardInterrupt), adapters_off():
            raise KeyboardInterrupt
        after = predict(torch.ones(1, 4, 2, 2), torch.ones(1), [torch.ones(4)], [])
    assert torch.equal(before, after)


# Masks.


def with_mask(run: TrainingRun, sample: int) -> TrainingRun:
    images = dict(run.data.images)
    view = View(sample, Variant(0))
    images[view] = replace(images[view], mask=torch.tensor([[1.0, 0.0], [0.5, 0.0]]))
    return replace(run, data=replace(run.data, images=images))


def test_masks_can_be_switched_off(make_run: Make) -> None:
    run = make_run()
    ignoring = replace(run, spec=replace(run.spec, objective=ObjectiveSpec(masked_loss=False)))
    plain = losses(run)
    assert torch.equal(losses(with_mask(ignoring, 2)), plain)
    changed = losses(with_mask(run, 2)) != plain
    assert changed.tolist() == [False, False, True, False, False]
