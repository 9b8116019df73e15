"""Several real processes train one run: what they give is what one gives, and they end together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import team_member
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.runs.team import require_enough

PROCESSES = 2
KILLED = 9
Outcome = Callable[[str], list[dict[str, Any]]]
"""Name of a case -> what became of it, by rank."""


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """All cases, in two processes that find each other as under a launcher."""
    folder = tmp_path_factory.mktemp("team")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES, "MASTER_PORT": port}
    shared |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1}
    members = []
    for rank in range(PROCESSES):
        own = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        environment = os.environ | {name: str(value) for name, value in own.items()}
        with (folder / f"log-{rank}").open("wb") as log:
            command = [sys.executable, team_member.__file__, str(folder)]
            members.append(
                subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
    try:
        codes = [member.wait(timeout=600) for member in members]
    finally:
        for member in members:
            member.kill()
    logs = "\n".join((folder / f"log-{rank}").read_text() for rank in range(PROCESSES))
    assert codes == [0, KILLED], logs

    def outcome(case: str) -> list[dict[str, Any]]:
        files = [folder / f"{case}-{rank}.pt" for rank in range(PROCESSES)]
        return [torch.load(file) for file in files if file.exists()]

    return outcome


@pytest.mark.parametrize(
    ("case", "rounding"),
    [("plain", 1e-12), ("accumulated", 1e-12), ("validated", 1e-12), ("preserved", 1e-5)],
)
def test_a_team_trains_what_one_process_trains(team: Outcome, case: str, rounding: float) -> None:
    alone = getattr(team_member, case)()
    begun = team_member.start(team_member.exact_run()).network
    for name, weight in alone["weights"].items():
        assert name.endswith("alpha") or not torch.equal(weight.double(), begun[name])
    for member in team(case):
        assert member["error"] == ""
        for name, weight in alone["weights"].items():
            close = {"rtol": 10 * rounding, "atol": rounding}
            torch.testing.assert_close(member["weights"][name], weight, **close)
        assert member["norms"] == pytest.approx(alone["norms"], rel=10 * rounding)
        assert member["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert len(member["validations"]) == len(alone["validations"])
        for mine, theirs in zip(member["validations"], alone["validations"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-6)


def test_the_case_of_a_short_batch_has_an_empty_share() -> None:
    plan = team_member.exact_run().plan
    assert [len(plan.batch(i)) for i in range(2)] == [4, 1]


def test_processes_drop_out_by_streams_of_their_own_and_stay_alike(team: Outcome) -> None:
    first, second = team("dropped_out")
    alone = team_member.dropped_out()["weights"]
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
    assert any(not torch.allclose(weight, alone[name]) for name, weight in first["weights"].items())
    keys = [member["key"] for member in team("lone_gradients")]
    assert keys == [(0,), (1,)] and team_member.lone_gradients()["key"] == ()


def test_a_parameter_without_a_gradient_gets_that_of_the_others_or_none(team: Outcome) -> None:
    for member in team("lone_gradients"):
        lone, absent, narrow = member["gradients"]
        assert lone.tolist() == [5.0] * 3
        assert absent is None
        assert narrow.dtype == torch.bfloat16 and narrow.tolist() == [2.0 * PROCESSES] * 3
        assert member["loss"] == 0.5 * PROCESSES


def test_fewer_pictures_than_processes_are_refused(team: Outcome) -> None:
    for member in team("refused"):
        assert "train_batch_size is 1, but 2 processes" in member["error"]
        assert "--train_batch_size 2" in member["error"]
    with pytest.raises(AtelierError, match="--train_batch_size 8"):
        require_enough(5, 8)
    require_enough(8, 8)


def test_processes_that_go_on_from_different_steps_are_refused(team: Outcome) -> None:
    for member in team("other_step"):
        assert "different steps (0, 40)" in member["error"]


def test_a_stop_in_one_process_ends_all_of_them_at_the_same_step(team: Outcome) -> None:
    first, second = team("stopped")
    assert first["error"].startswith("TeamEnded")
    assert second["error"] == "KeyboardInterrupt: cancelled"
    assert first["interrupted_at"] == second["interrupted_at"] == [1]


def test_a_failure_between_the_steps_ends_all_of_them(team: Outcome) -> None:
    first, second = team("failed_after_a_step")
    assert first["error"] == "OSError: disk full"
    assert second["error"].startswith("TeamEnded: Another process of this run has stopped")
    assert first["interrupted_at"] == second["interrupted_at"] == [2]


def test_the_wish_of_one_finishes_all(team: Outcome) -> None:
    assert [len(member["losses"]) for member in team("finished")] == [3, 3]


def test_weights_that_drift_apart_are_not_saved(team: Outcome) -> None:
    for member in team("drifted"):
        assert "no longer have the same weights: 1 of 2 differ" in member["error"]
        assert member["interrupted_at"] == []


def test_saving_changes_nothing(team: Outcome) -> None:
    first, plain = team("saved")[0], team("plain")[0]
    for name, weight in plain["weights"].items():
        assert torch.equal(first["weights"][name], weight)


def test_a_killed_process_does_not_leave_the_other_waiting(team: Outcome) -> None:
    (survivor,) = team("killed")
    assert "TeamEnded: Another process of this run has ended without a word" in survivor["error"]
