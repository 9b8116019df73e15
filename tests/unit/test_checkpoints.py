"""What a run leaves on disk: when, what stays, and what is found again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.runs.checkpoints import Checkpoints, CheckpointSpec
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import TrainingRun, TrainingState, start
from lora_atelier.training.runs.validation import ValidationPoint

Make = Callable[..., Any]
NEVER = CheckpointSpec(save_every_n_minutes=0)


@pytest.fixture
def run(make_run: Make) -> TrainingRun:
    return replace(make_run(), identity="ab" * 32)


def at(run: TrainingRun, step: int, loss: float | None = None) -> TrainingState:
    """A state of `run`, as if it had come so far."""
    points = () if loss is None else (ValidationPoint(step, loss, 1.0, (), ()),)
    return replace(start(run), step=step, validations=points)


def steps(folder: Path) -> list[int]:
    return [int(path.stem.removeprefix("step")) for path in sorted(folder.glob("state/*"))]


def test_it_is_due_every_n_steps(run: TrainingRun, tmp_path: Path) -> None:
    files = Checkpoints(run, tmp_path, replace(NEVER, save_every_n_steps=3))
    assert [step for step in range(1, 10) if files.due(step)] == [3, 6, 9]


@pytest.mark.parametrize(("accumulation", "expected"), [(1, [10, 20]), (2, [5, 10, 15, 20])])
def test_it_is_due_when_every_n_epochs_are_complete(
    make_run: Make, tmp_path: Path, accumulation: int, expected: list[int]
) -> None:
    """Five pictures an epoch, so two epochs end with the tenth."""
    run = make_run(gradient_accumulation_steps=accumulation)
    files = Checkpoints(run, tmp_path, replace(NEVER, save_every_n_epochs=2))
    assert [step for step in range(1, 21) if files.due(step)] == expected


def test_it_is_due_so_many_minutes_after_the_last(run: TrainingRun, tmp_path: Path) -> None:
    now = [1000.0]
    files = Checkpoints(run, tmp_path, CheckpointSpec(save_every_n_minutes=2), lambda: now[0])
    assert not files.due(1)
    now[0] += 119
    assert not files.due(2)
    now[0] += 1
    assert files.due(3)
    files.save(at(run, 3))
    assert not files.due(4)


def test_the_last_n_stay_and_the_ends(run: TrainingRun, tmp_path: Path) -> None:
    files = Checkpoints(run, tmp_path, replace(NEVER, save_last_n=2))
    for step in (1, 2, 3, 4, 5):
        files.save(at(run, step), is_end=step == 2)
    assert steps(tmp_path) == [2, 4, 5]


def test_the_best_stays_too(run: TrainingRun, tmp_path: Path) -> None:
    files = Checkpoints(run, tmp_path, NEVER)
    for step, loss in ((1, 0.5), (2, 0.3), (3, 0.4), (4, 0.6)):
        files.save(at(run, step, loss))
    assert steps(tmp_path) == [2, 4]
    files = Checkpoints(run, tmp_path, replace(NEVER, keep_best=False))
    files.save(at(run, 5, 0.7))
    assert steps(tmp_path) == [5]


def test_loras_lie_beside_the_states_and_go_with_them(run: TrainingRun, tmp_path: Path) -> None:
    files = Checkpoints(run, tmp_path, replace(NEVER, save_lora=True))
    files.save(at(run, 1))
    files.save(at(run, 2))
    assert [path.name for path in tmp_path.glob("lora/*")] == [
        f"{tmp_path.name}-step00000002.safetensors"
    ]


def test_the_newest_within_the_run_is_found(
    run: TrainingRun, tmp_path: Path, make_listener: Make
) -> None:
    files = Checkpoints(run, tmp_path, replace(NEVER, save_last_n=9))
    for step in (2, 4, 6):
        files.save(at(run, step))
    assert files.newest(0, 6).step == 6
    assert files.newest(0, 5).step == 4
    assert files.newest(2, 3) is None, "the one to begin with is at hand"


def test_a_damaged_file_is_passed_over(
    run: TrainingRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = Checkpoints(run, tmp_path, replace(NEVER, save_last_n=9))
    files.save(at(run, 2))
    path = files.save(at(run, 4))
    path.write_bytes(path.read_bytes()[:-5])
    assert files.newest(0, 6).step == 2
    assert "passed over" in caplog.text
    files.save(at(run, 5))
    assert steps(tmp_path) == [2, 4, 5], "what cannot be read is not deleted"


@pytest.mark.parametrize(
    ("identity", "horizon", "found"),
    [("ab" * 32, 6, True), ("ab" * 32, 60, True), ("ab" * 32, 5, False), ("cd" * 32, 6, False)],
    ids=["the same", "a longer one", "a shorter one", "another run"],
)
def test_only_states_of_this_run_or_a_shorter_one_are_taken_up(
    run: TrainingRun, tmp_path: Path, identity: str, horizon: int, found: bool
) -> None:
    Checkpoints(run, tmp_path, NEVER).save(at(run, 3))
    spec = replace(run.spec, max_train_steps=horizon)
    other = replace(run, identity=identity, spec=spec)
    assert (Checkpoints(other, tmp_path, NEVER).newest(0, 100) is not None) is found


def test_another_schedule_over_the_same_steps_is_another_run(
    run: TrainingRun, tmp_path: Path
) -> None:
    """Of Train Steps: max_train_steps was raised on Start Training, and amount was not."""
    Checkpoints(run, tmp_path, NEVER).save(at(run, 3))
    other = replace(run, spec=replace(run.spec, max_train_steps=60))
    assert Checkpoints(other, tmp_path, NEVER).newest(0, 3) is None
    assert Checkpoints(other, tmp_path, NEVER).newest(0, 6) is None
    assert Checkpoints(other, tmp_path, NEVER).newest(0, 7).step == 3


def test_a_run_that_cannot_be_told_takes_up_nothing(make_run: Make, tmp_path: Path) -> None:
    run = make_run()
    assert run.identity == ""
    files = Checkpoints(run, tmp_path, NEVER)
    files.save(at(run, 3))
    assert files.newest(0, 6) is None


def test_starting_again_forgets_what_comes_later(run: TrainingRun, tmp_path: Path) -> None:
    files = Checkpoints(run, tmp_path, replace(NEVER, save_last_n=9))
    for step in (2, 4, 6):
        files.save(at(run, step))
    assert files.start_again(after=2) == 2
    assert steps(tmp_path) == [2, 4, 6], "until there is something in their place"
    files.save(at(run, 4))
    assert steps(tmp_path) == [2, 4]


def test_what_was_just_saved_stays_though_later_states_are_there(
    run: TrainingRun, tmp_path: Path
) -> None:
    """The last good state of a run that diverged lies before its last checkpoint."""
    files = Checkpoints(run, tmp_path, NEVER)
    files.save(at(run, 5))
    files.save(at(run, 3))
    assert steps(tmp_path) == [3, 5]
    files.save(at(run, 4), goes_back=True)
    assert steps(tmp_path) == [4]


def test_states_of_a_longer_schedule_do_not_push_out_those_of_this_one(
    run: TrainingRun, tmp_path: Path
) -> None:
    longer = replace(run, spec=replace(run.spec, max_train_steps=60))
    Checkpoints(longer, tmp_path, NEVER).save(at(longer, 30))
    files = Checkpoints(run, tmp_path, NEVER)
    files.save(at(run, 2))
    assert files.newest(0, 6).step == 2
    assert steps(tmp_path) == [2, 30]


def test_a_state_past_its_own_schedule_is_no_beginning_of_a_longer_one(
    run: TrainingRun, tmp_path: Path
) -> None:
    Checkpoints(run, tmp_path, NEVER).save(at(run, 9), is_end=True)
    longer = replace(run, spec=replace(run.spec, max_train_steps=60))
    assert Checkpoints(longer, tmp_path, NEVER).newest(0, 60) is None


def test_a_lora_that_cannot_be_written_does_not_keep_old_states(
    run: TrainingRun, tmp_path: Path
) -> None:
    (tmp_path / "lora").write_text("in the way")
    files = Checkpoints(run, tmp_path, replace(NEVER, save_lora=True))
    for step in (1, 2, 3):
        with pytest.raises(AtelierError):
            files.save(at(run, step))
    assert steps(tmp_path) == [3]


def test_a_loss_of_another_step_does_not_make_a_state_the_best(
    run: TrainingRun, tmp_path: Path
) -> None:
    files = Checkpoints(run, tmp_path, NEVER)
    files.save(at(run, 1, 0.5))
    stale = replace(at(run, 2), validations=(ValidationPoint(1, 0.1, 1.0, (), ()),))
    files.save(stale)
    assert files.is_best(at(run, 3, 0.4)) and not files.is_best(at(run, 3, 0.6))
    files.save(at(run, 3, float("nan")))
    files.save(at(run, 4, 0.6))
    assert steps(tmp_path) == [1, 4]


def test_what_a_killed_process_was_writing_is_removed(run: TrainingRun, tmp_path: Path) -> None:
    old, young = tmp_path / "state" / ".a.partial", tmp_path / "state" / ".b.partial"
    old.parent.mkdir()
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    Checkpoints(run, tmp_path, NEVER)
    assert not old.exists() and young.exists()


def test_an_extended_run_goes_on_at_the_rates_of_the_longer_one(
    make_run: Make, make_listener: Make, tmp_path: Path
) -> None:
    """The cosine of 6 steps ends at 0; taken up in a run of 12, step 7 has the rate of its half."""
    short = replace(make_run(), identity="ab" * 32)
    Checkpoints(short, tmp_path, NEVER).save(train(start(short), 6, make_listener()))
    longer = replace(make_run(max_train_steps=12), identity="ab" * 32)
    state = Checkpoints(longer, tmp_path, NEVER).newest(0, 12)
    extended = train(state, 6, make_listener())
    whole = train(start(longer), 12, make_listener())
    rates = [record.learning_rate for record in extended.history]
    assert rates[6:] == [record.learning_rate for record in whole.history][6:]
    assert rates[5] < rates[6]


def test_a_checkpoint_that_fails_leaves_the_older_ones(run: TrainingRun, tmp_path: Path) -> None:
    files = Checkpoints(run, tmp_path, NEVER)
    files.save(at(run, 1))
    broken = at(run, 2)
    network = {name: torch.full_like(t, torch.inf) for name, t in broken.network.items()}
    with pytest.raises(AtelierError):
        files.save(replace(broken, network=network))
    assert steps(tmp_path) == [1]
