"""Every setting of the network shows in what a run gives; every algorithm learns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.network.build import Algorithm, NetworkSpec
from lora_atelier.training.network.existing_lora import ExistingLora
from lora_atelier.training.optimizers.lr_scheduler import LRSchedulerSpec, LRSchedulerType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec, OptimizerType
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.preflight import preflight
from lora_atelier.training.runs.run import TrainingSpec, TrainingState, start

Make = Callable[..., Any]
QUICK = {
    "optimizer": OptimizerSpec(unet_lr=1e-2),
    "lr_scheduler": LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.0),
    "max_train_steps": 200,
}


def trained(make_run: Make, make_listener: Make, network: NetworkSpec, steps: int) -> TrainingState:
    return train(start(make_run(network=network, **QUICK)), steps, make_listener())


def same(one: TrainingState, other: TrainingState) -> bool:
    return one.network.keys() == other.network.keys() and all(
        torch.equal(one.network[key], other.network[key]) for key in one.network
    )


@pytest.mark.parametrize("algorithm", Algorithm)
def test_every_algorithm_learns(algorithm: Algorithm, make_run: Make, make_listener: Make) -> None:
    state = trained(make_run, make_listener, NetworkSpec(algorithm=algorithm), 200)
    losses = [record.loss for record in state.history]
    assert sum(losses[-50:]) < 0.9 * sum(losses[:50])


@pytest.mark.parametrize("algorithm", Algorithm)
def test_every_algorithm_begins_with_the_loss_of_the_base(
    algorithm: Algorithm, make_run: Make, make_listener: Make
) -> None:
    losses = {
        chosen: trained(make_run, make_listener, NetworkSpec(algorithm=chosen), 1).history[0].loss
        for chosen in (Algorithm.LORA, algorithm)
    }
    assert losses[algorithm] == pytest.approx(losses[Algorithm.LORA], rel=1e-5)


LORA, LOKR = NetworkSpec(), NetworkSpec(algorithm=Algorithm.LOKR, network_dim=1)
CHANGES = {
    "network_dim": (LORA, NetworkSpec(8)),
    "network_alpha": (LORA, NetworkSpec(16, 8.0)),
    "rs_lora": (LORA, NetworkSpec(rs_lora=True)),
    "network_dropout": (LORA, NetworkSpec(network_dropout=0.3)),
    "rank_dropout": (LORA, NetworkSpec(rank_dropout=0.3)),
    "module_dropout": (LORA, NetworkSpec(module_dropout=0.5)),
    "scale_weight_norms": (LORA, NetworkSpec(scale_weight_norms=0.01)),
    "block_dims": (LORA, NetworkSpec(block_dims=(16, 4))),
    "lokr_factor": (LOKR, NetworkSpec(1, 16.0, Algorithm.LOKR, lokr_factor=2)),
    **{kind.value: (LORA, NetworkSpec(algorithm=kind)) for kind in Algorithm if kind != "lora"},
}


@pytest.mark.parametrize(("plain", "changed"), CHANGES.values(), ids=CHANGES)
def test_every_setting_changes_the_file(
    plain: NetworkSpec, changed: NetworkSpec, make_run: Make, make_listener: Make
) -> None:
    first, again, other = (
        trained(make_run, make_listener, spec, 6) for spec in (plain, plain, changed)
    )
    assert same(first, again)
    assert not same(first, other)


def test_rank_stabilised_scaling_is_alpha_over_the_root_of_the_rank(
    make_run: Make, make_listener: Make
) -> None:
    """And the file says so in the way that every loader reads: alpha / dim."""
    stabilised = trained(make_run, make_listener, NetworkSpec(16, 2.0, rs_lora=True), 3)
    plain = trained(make_run, make_listener, NetworkSpec(16, 8.0), 3)  # 8 / 16 = 2 / √16
    assert same(stabilised, plain)


def test_dropout_draws_from_the_run_and_not_from_the_machine(
    make_run: Make, make_listener: Make
) -> None:
    spec = NetworkSpec(network_dropout=0.3, module_dropout=0.3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = trained(make_run, make_listener, spec, 3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert same(one, trained(make_run, make_listener, spec, 3))


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_run_goes_on_when_every_adapter_of_a_pass_drops_out(
    algorithm: Algorithm, make_run: Make, make_listener: Make
) -> None:
    spec = NetworkSpec(algorithm=algorithm, module_dropout=0.99)
    state = trained(make_run, make_listener, spec, 3)
    assert state.history[-1].grad_norm == 0.0


@pytest.mark.parametrize("algorithm", [a for a in Algorithm if not a.rotates])
def test_no_update_is_longer_than_the_limit(
    algorithm: Algorithm, make_run: Make, make_listener: Make
) -> None:
    limit = 0.02
    run = make_run(network=NetworkSpec(algorithm=algorithm, scale_weight_norms=limit), **QUICK)
    state = train(start(run), 10, make_listener())
    network = run.new_network()
    network.load_state_dict(state.network)
    lengths = [float(adapter.delta_weight().detach().norm()) for adapter in network.values()]
    assert max(lengths) == pytest.approx(limit, rel=1e-4)


def test_a_limit_on_norms_is_refused_with_an_optimizer_that_averages() -> None:
    spec = TrainingSpec(
        network=NetworkSpec(scale_weight_norms=1.0),
        optimizer=OptimizerSpec(OptimizerType.ADAMW_SCHEDULE_FREE),
    )
    with pytest.raises(AtelierError, match="scale_weight_norms is 1, but AdamWScheduleFree"):
        preflight(spec)


def test_preflight_leaves_what_depends_on_the_model_to_the_model() -> None:
    existing = ExistingLora({}, "old")
    preflight(TrainingSpec(network=NetworkSpec(block_dims=(4, 4, 4))))
    preflight(TrainingSpec(network=NetworkSpec(existing=existing)))
