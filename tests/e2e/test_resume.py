"""Kill the server, cancel, extend, branch: the work is there, and the weights are those of a run
that nothing happened to."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from host import HostError, HostServer
from training_graph import (
    DATASET,
    LOADER,
    SAVE,
    TRAIN,
    Prompt,
    Watched,
    few_pictures,
    node,
    training,
)

pytestmark = pytest.mark.slow
STEPS = 40
LONG = 900
"""So many that twenty kills come before the end."""


def resumable(steps: int = STEPS, prefix: str = "atelier/run", **changes: Any) -> Prompt:
    """The training graph with checkpoints every 3 steps; Train LoRA resumes."""
    prompt = training("few", steps, prefix)
    prompt["6"] = node("AtelierCheckpoints", save_every_n_steps=3)
    prompt[TRAIN]["inputs"] |= {"resume": "resume", "checkpoints": ["6", 0], **changes}
    prompt[SAVE]["inputs"]["add_to_models_loras"] = False
    return prompt


def lora(server: HostServer, prefix: str) -> dict[str, np.ndarray]:
    (path,) = (server.base / "output").glob(f"{prefix}*.safetensors")
    return load_file(path)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def states(server: HostServer) -> list[Path]:
    return sorted((server.base / "output/atelier/runs").glob("*/state/*.safetensors"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, server: HostServer) -> dict[str, Any]:
    """What an undisturbed run of `resumable()` gives."""
    few_pictures(server)
    prompt = resumable(prefix="atelier/straight")
    server.queue(prompt).check()
    yield lora(server, "atelier/straight")


def kill_later(server: HostServer, seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, server.kill)
    timer.start()
    return timer


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_any_time_the_same_queue_goes_on(
    own_server: HostServer, straight: dict[str, np.ndarray], seed: int
) -> None:
    _kill_until_done(own_server, straight, random.Random(seed), kills=1)


@pytest.mark.soak
def test_killed_twenty_times_it_still_arrives(server: HostServer, own_server: HostServer) -> None:
    few_pictures(server)
    server.queue(resumable(LONG, prefix="atelier/long"), timeout=1800).check()
    straight = lora(server, "atelier/long")
    _kill_until_done(own_server, straight, random.Random(0), kills=20, steps=LONG)


def _kill_until_done(
    server: HostServer,
    straight: dict[str, np.ndarray],
    rng: random.Random,
    kills: int,
    steps: int = STEPS,
) -> None:
    few_pictures(server)
    killed = resumed = 0
    while killed < kills:
        with server.start():
            timer = None
            seen: list[int] = []

            def on_event(name: str, data: Any, seen: list[int] = seen) -> None:
                nonlocal timer
                if name == "atelier.run" and data["status"] == "running":
                    seen.append(data["step"])
                    if timer is None and data["step"] > 3:  # the first checkpoint is there
                        timer = kill_later(server, rng.uniform(0, 1.5))

            with suppress(HostError, OSError):  # the server died, as it was to
                server.queue(resumable(steps), on_event=on_event)
            timer.join()
            killed += 1
            resumed += seen[0] > 0
        for path in states(server):
            with safe_open(path, framework="numpy") as file:  # whole, whenever the kill came
                assert file.metadata()["lora_atelier_state"]
        assert states(server)
    with server.start():
        watched = Watched(server, resumable(steps))
        assert "resumed at step" in " ".join(watched.messages)
    assert resumed >= kills - 1
    # Killed after it had saved its file, a run saves another one.
    for path in (server.base / "output").glob("atelier/run*.safetensors"):
        assert same(load_file(path), straight)


def test_a_finished_graph_does_nothing_and_after_a_restart_takes_its_result_from_disk(
    own_server: HostServer, straight: dict[str, np.ndarray]
) -> None:
    few_pictures(own_server)
    with own_server.start():
        own_server.queue(resumable()).check()
        again = own_server.queue(resumable()).check()
        assert TRAIN in again.cached
    with own_server.start():
        prompt = resumable(prefix="atelier/again")
        watched = Watched(own_server, prompt)
        assert watched.ran(TRAIN)
        assert f"resumed at step {STEPS}" in " ".join(watched.messages)
    assert same(lora(own_server, "atelier/again"), straight)


def test_cancelled_it_goes_on_and_longer_it_is_extended(
    server: HostServer, straight: dict[str, np.ndarray]
) -> None:
    def cancel(name: str, data: Any) -> None:
        if name == "atelier.run" and data["step"] >= 11:
            server.interrupt()

    prompt = resumable(prefix="atelier/cancelled", seed=77)
    result = server.queue(prompt, on_event=cancel)
    assert result.status == "interrupted"
    watched = Watched(server, prompt)
    watched.result.check()
    (message,) = [m for m in watched.messages if "resumed at step" in m]
    assert int(message.split("resumed at step ")[1].split()[0]) >= 11
    other = Watched(server, resumable(prefix="atelier/fresh", seed=77, resume="start_again"))
    other.result.check()
    assert not any("resumed" in m for m in other.messages)
    assert same(lora(server, "atelier/cancelled"), lora(server, "atelier/fresh"))

    longer = Watched(server, resumable(STEPS + 5, "atelier/longer", seed=77))
    longer.result.check()
    assert f"resumed at step {STEPS}" in " ".join(longer.messages)


def start_and(*pieces: Prompt) -> Prompt:
    """Start Training, and nodes that go on from it."""
    whole = training("few")
    begin = {k: whole[TRAIN]["inputs"][k] for k in whole[TRAIN]["inputs"] if k != "resume"}
    prompt = {key: whole[key] for key in (LOADER, DATASET, "3", "4", "5")}
    prompt["start"] = node("AtelierStartTraining", **begin | {"max_train_steps": 12})
    for piece in pieces:
        prompt |= piece
    return prompt


def piece(name: str, source: str, amount: int, unit: str = "steps", **more: Any) -> Prompt:
    return {
        name: node("AtelierTrainSteps", state=[source, 0], amount=amount, unit=unit, **more),
        f"{name}-save": node(
            "AtelierSaveLoRA",
            lora=[name, 3],
            filename_prefix=f"atelier/{name}",
            save_precision="float",
            add_to_models_loras=False,
        ),
    }


def test_steps_and_branches_through_the_graph(server: HostServer) -> None:
    """6 + 6 steps are 12; two branches at other rates are each what they are alone."""
    few_pictures(server)
    fast = {"fast-lr": node("AtelierOptimizer", unet_lr=5e-3)}
    whole = start_and(
        piece("midway", "start", 6),
        piece("both", "midway", 6),
        piece("twelve", "start", 12, resume="start_again"),
        fast,
        piece("branch", "midway", 3, optimizer=["fast-lr", 0]),
        piece("unhurried", "midway", 3),
        piece("epochs", "start", 3, unit="epochs"),
    )
    server.queue(whole).check()
    assert same(lora(server, "atelier/both"), lora(server, "atelier/twelve"))
    assert same(lora(server, "atelier/both"), lora(server, "atelier/epochs")), "4 pictures × 3"
    assert not same(lora(server, "atelier/branch"), lora(server, "atelier/unhurried"))
    alone = start_and(
        piece("midway", "start", 6),
        fast,
        piece("alone", "midway", 3, optimizer=["fast-lr", 0], resume="start_again"),
    )
    del alone["midway-save"]
    server.free()
    time.sleep(1)
    server.queue(alone).check()
    assert same(lora(server, "atelier/branch"), lora(server, "atelier/alone"))


def test_a_state_is_saved_loaded_and_gone_on_from(server: HostServer) -> None:
    few_pictures(server)
    saving = start_and(
        piece("first", "start", 5, resume="start_again"),
        piece("direct", "first", 4, resume="start_again"),
        {
            "state": node(
                "AtelierSaveState", state=["first", 0], filename_prefix="atelier/saved/five"
            )
        },
    )
    server.queue(saving).check()
    (path,) = (server.base / "output/atelier/saved").glob("five*")
    load = {
        LOADER: saving[LOADER],
        DATASET: saving[DATASET],
        "load": node(
            "AtelierLoadState",
            file=f"saved/{path.name}",
            model=[LOADER, 0],
            clip=[LOADER, 1],
            vae=[LOADER, 2],
            dataset=[DATASET, 0],
        ),
        **piece("loaded", "load", 4, resume="start_again"),
    }
    watched = Watched(server, load)
    assert "state at step 5" in watched.text("load")
    assert "not the one" not in watched.text("load")
    assert same(lora(server, "atelier/loaded"), lora(server, "atelier/direct"))

    (server.base / "input/few/fox.txt").write_text("another caption")
    try:
        watched = Watched(server, load)
        assert "dataset: not the one this state was trained with" in watched.text("load")
    finally:
        few_pictures(server)


@pytest.fixture
def small_disk(own_server: HostServer) -> Iterator[HostServer]:
    """A server whose runs lie on a file system of 3 MB."""
    import subprocess

    folder = own_server.base / "output/atelier/runs"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small file system needs root on Linux")
    try:
        yield own_server
    finally:
        own_server.stop()
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("choice", ["continue", "stop"])
def test_a_full_disk(small_disk: HostServer, choice: str) -> None:
    """A state takes over a megabyte: with room for two or three, five cannot be kept."""
    few_pictures(small_disk)
    prompt = resumable(steps=20)
    prompt["6"]["inputs"] |= {"save_last_n": 99, "on_save_error": choice}
    with small_disk.start():
        watched = Watched(small_disk, prompt)
        said = " ".join(watched.messages)
        kept = states(small_disk)
        assert kept
        for path in kept:
            with safe_open(path, framework="numpy") as file:
                assert file.metadata()["lora_atelier_state"]
        if choice == "continue":
            watched.result.check()
            assert "No checkpoint of step" in said
            assert "could not be written" in said
        else:
            assert "could not be written" in watched.result.message
