"""A state file is whole or absent, says what it is, and refuses what it is not."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lora_atelier.training.base_model.precision import MixedPrecision
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import Ingredients, StepRecord, TrainingState, start
from lora_atelier.training.runs.state_file import load_state, read_header, read_network, save_state
from lora_atelier.training.runs.validation import ValidationPoint

Make = Callable[..., Any]


@pytest.fixture
def state(make_run: Make, make_listener: Make) -> TrainingState:
    run = replace(make_run(), identity="ab" * 32, ingredients=Ingredients("m", "c", "v", "d"))
    return train(start(run), 3, make_listener())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "step00000003.safetensors"


def test_the_header_says_what_it_is(state: TrainingState, path: Path) -> None:
    save_state(
        path, replace(state, validations=(ValidationPoint(3, 0.5, 0.6, (), ()),)), is_end=True
    )
    header = read_header(path)
    assert (header.step, header.identity, header.horizon) == (3, "ab" * 32, 6)
    assert header.training_spec() == state.run.spec
    assert header.made_from() == state.run.ingredients
    assert (header.dataset_name, header.samples) == ("shapes", 5)
    assert header.is_end
    assert header.validation_loss == 0.5


def test_everything_comes_back(state: TrainingState, path: Path) -> None:
    odd = StepRecord(4, 0, math.nan, 1e-300, math.inf, skipped=True)
    points = (
        ValidationPoint(0, 0.1, 0.1, (0.1, 0.2), (0.3,)),
        ValidationPoint(3, 0.05, 0.1, (), ()),
    )
    state = replace(state, history=(*state.history, odd), validations=points)
    save_state(path, state)
    back = load_state(path, state.run)
    assert back.history[:3] == state.history[:3]
    assert repr(back.history[3]) == repr(odd)
    assert back.validations == points
    assert {k: v.tolist() for k, v in read_network(path).items()} == {
        k: v.tolist() for k, v in state.network.items()
    }


def test_a_state_at_step_0_has_no_optimizer(make_run: Make, path: Path) -> None:
    save_state(path, start(make_run()))
    back = load_state(path, make_run())
    assert (back.step, back.optimizer, back.history) == (0, None, ())


def test_what_auto_came_to_holds_on_another_machine(
    make_run: Make, make_listener: Make, path: Path
) -> None:
    run = make_run(mixed_precision=MixedPrecision.AUTO)
    began = replace(run, resolved_precision=MixedPrecision.BF16)  # on a CPU that is fast with it
    assert (run.compute_dtype, began.compute_dtype) == (torch.float32, torch.bfloat16)
    state = train(start(began), 1, make_listener())
    save_state(path, state)
    assert read_header(path).mixed_precision == "bf16"
    assert read_header(path).training_spec() == run.spec  # still auto: another run would ask anew
    back = load_state(path, run)
    assert back.run.compute_dtype is torch.bfloat16
    on, off = (train(s, 1, make_listener()) for s in (back, replace(back, run=run)))
    assert on.history[-1].loss == train(state, 1, make_listener()).history[-1].loss
    assert on.history[-1].loss != off.history[-1].loss


def test_a_run_that_has_not_begun_asks_anew(make_run: Make, path: Path) -> None:
    save_state(path, start(make_run(mixed_precision=MixedPrecision.AUTO)))
    assert read_header(path).mixed_precision == "auto"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_refused(
    state: TrainingState, path: Path, share: float
) -> None:
    save_state(path, state)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(AtelierError, match="no whole state file"):
        load_state(path, state.run)


def test_a_lora_is_no_state(state: TrainingState, path: Path) -> None:
    path.parent.mkdir()
    save_file(dict(state.network), path)
    with pytest.raises(AtelierError, match="no whole state file"):
        read_header(path)


def test_a_state_of_a_newer_version_is_refused(state: TrainingState, path: Path) -> None:
    path.parent.mkdir()
    save_state(path, state)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    header = json.loads(metadata["lora_atelier_state"]) | {"version": 99}
    save_file(tensors, path, metadata | {"lora_atelier_state": json.dumps(header)})
    with pytest.raises(AtelierError, match="newer version"):
        load_state(path, state.run)


def test_what_is_not_finite_is_not_saved(state: TrainingState, path: Path) -> None:
    save_state(path, state)
    before = path.read_bytes()
    network = dict(state.network)
    name = next(iter(network))
    network[name] = torch.full_like(network[name], math.nan)
    with pytest.raises(AtelierError, match="not finite"):
        save_state(path, replace(state, network=network))
    assert path.read_bytes() == before


@contextmanager
def small_files_only() -> Iterator[None]:
    """The system's limit on the size of a file stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_file(state: TrainingState, path: Path) -> None:
    save_state(path, state)
    before = path.read_bytes()
    assert len(before) > 4096
    with small_files_only(), pytest.raises(AtelierError, match="could not be written"):
        save_state(path, replace(state, step=4))
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
