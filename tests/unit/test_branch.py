"""Going on with other settings: what is kept, what begins anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_atelier.training.optimizers.lr_scheduler import LRSchedulerSpec, LRSchedulerType
from lora_atelier.training.optimizers.optimizer import OptimizerSpec, OptimizerType
from lora_atelier.training.runs.branch import branch, with_batch_size
from lora_atelier.training.runs.identity import run_identity
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import Ingredients, TrainingState, start
from lora_atelier.training.runs.state_file import load_state, save_state

Make = Callable[..., Any]
CONSTANT = LRSchedulerSpec(LRSchedulerType.CONSTANT, 0.0)
SLOW, FAST = OptimizerSpec(unet_lr=1e-4), OptimizerSpec(unet_lr=1e-3)


@pytest.fixture
def trunk(make_run: Make, make_listener: Make) -> TrainingState:
    run = replace(
        make_run(optimizer=SLOW, lr_scheduler=CONSTANT, max_train_steps=10), identity="ab" * 32
    )
    return train(start(run), 3, make_listener())


def test_without_a_change_it_is_the_same_state(trunk: TrainingState) -> None:
    assert branch(trunk, None, None) is trunk
    assert branch(trunk, SLOW, CONSTANT) is trunk


def test_another_rate_keeps_the_moments(trunk: TrainingState, make_listener: Make) -> None:
    faster = branch(trunk, FAST, None)
    assert faster.optimizer["optimizer"] is trunk.optimizer["optimizer"]
    after = train(faster, 1, make_listener())
    assert after.history[-1].learning_rate == pytest.approx(1e-3)
    assert after.optimizer["optimizer"]["state"][0]["step"] == 4
    # AdamW's step is in proportion to the rate, moments being equal.
    slow = train(trunk, 1, make_listener())
    for name, value in trunk.network.items():
        if name.endswith("lora_up.weight"):
            decay = 1 - 1e-4 * 0.01
            slow_step = slow.network[name] - value * decay
            fast_step = after.network[name] - value * (1 - 1e-3 * 0.01)
            torch.testing.assert_close(fast_step, 10 * slow_step, rtol=1e-3, atol=1e-7)


def test_another_optimizer_begins_without_moments(
    trunk: TrainingState, make_listener: Make
) -> None:
    other = branch(trunk, OptimizerSpec(OptimizerType.SGD, unet_lr=0.1, weight_decay=0), None)
    assert "optimizer" not in other.optimizer
    after = train(other, 2, make_listener())
    assert after.step == 5
    assert after.history[-1].learning_rate == pytest.approx(0.1)


def test_a_new_schedule_goes_on_as_if_it_had_been_there(
    trunk: TrainingState, make_listener: Make, make_run: Make
) -> None:
    cosine = LRSchedulerSpec(LRSchedulerType.COSINE, 0.0)
    after = train(branch(trunk, None, cosine), 7, make_listener())
    run = make_run(optimizer=SLOW, lr_scheduler=cosine, max_train_steps=10)
    alone = train(start(run), 10, make_listener())
    rates = [record.learning_rate for record in after.history]
    assert rates[3:] == [record.learning_rate for record in alone.history][3:]


def test_a_branch_survives_a_file_bit_for_bit(
    trunk: TrainingState, make_listener: Make, tmp_path: Path
) -> None:
    forked = branch(trunk, FAST, LRSchedulerSpec(LRSchedulerType.COSINE, 0.0))
    straight = train(forked, 5, make_listener())
    half = train(forked, 2, make_listener())
    save_state(tmp_path / "half.safetensors", half)
    back = train(load_state(tmp_path / "half.safetensors", half.run), 3, make_listener())
    assert all(torch.equal(back.network[k], v) for k, v in straight.network.items())
    assert back.history == straight.history


def test_two_branches_have_two_identities(trunk: TrainingState) -> None:
    names = {s.run.identity for s in (trunk, branch(trunk, FAST, None))}
    assert len(names) == 2


def test_another_batch_size_from_the_start_is_the_run_that_a_graph_would_have(
    make_run: Make,
) -> None:
    known = Ingredients("model", "clip", "vae", "dataset")
    run, larger = make_run(), make_run(train_batch_size=3)
    run = replace(run, ingredients=known, identity=run_identity(known, run.spec))
    changed = with_batch_size(start(run), 3)
    assert changed.run.identity == run_identity(known, larger.spec) != run.identity
    assert [len(changed.run.plan.batch(i)) for i in range(2)] == [3, 2]


def test_another_batch_size_on_the_way_is_a_branch(trunk: TrainingState) -> None:
    assert with_batch_size(trunk, trunk.run.spec.train_batch_size) is trunk
    changed = with_batch_size(trunk, 2)
    assert changed.step == trunk.step and changed.run.spec.train_batch_size == 2
    assert len({trunk.run.identity, changed.run.identity, ""}) == 3
    assert with_batch_size(trunk, 3).run.identity != changed.run.identity
