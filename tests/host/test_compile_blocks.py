"""Blocks compiled by PyTorch: the same gradients, and no trouble of the compiler ends a run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from torch._dynamo.utils import counters

from lora_atelier.training.base_model import compiled
from lora_atelier.training.host.diffusion_model import HostDiffusionModel
from lora_atelier.training.host.digests import clip_digest, model_digest
from lora_atelier.training.host.job_session import start_job
from lora_atelier.training.jobs.job_folder import read_job, write_job
from lora_atelier.training.runs.loop import train
from lora_atelier.training.runs.run import Ingredients, TrainingRun, start
from tiny_training import CAPTIONS, Parts, Recorder, encode, load_parts, make_run, quick_spec

pytestmark = pytest.mark.slow
needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
NO_COMPILER = {"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}


@pytest.fixture(scope="module")
def parts(tiny_checkpoint: Path) -> Parts:
    return load_parts(tiny_checkpoint)


@pytest.fixture(scope="module")
def encoded(parts: Parts) -> dict[str, Any]:
    return encode(parts.clip, CAPTIONS)


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet() -> Iterator[None]:
    torch._dynamo.reset()
    compiled.why_not.cache_clear()
    yield
    torch._dynamo.reset()
    compiled.why_not.cache_clear()


def run_of(parts: Parts, encoded: dict[str, Any], **settings: Any) -> TrainingRun:
    spec = quick_spec(**settings)
    run = make_run(parts.model, encoded, spec)
    model = HostDiffusionModel(
        parts.model,
        gradient_checkpointing=spec.gradient_checkpointing,
        compile_blocks=spec.compile_blocks,
    )
    return TrainingRun(spec, run.data, model)


def norms(run: TrainingRun, steps: int = 2) -> list[float]:
    """Of the gradients of each step, and the losses."""
    recorder = Recorder()
    state = train(start(run), steps, recorder)
    return [n for record in state.history for n in (record.loss, record.grad_norm)]


@needs_a_compiler
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_gradients_are_those_without(
    parts: Parts, encoded: dict[str, Any], checkpointing: bool
) -> None:
    changes = {"gradient_checkpointing": checkpointing}
    expected = norms(run_of(parts, encoded, **changes))
    counters.clear()
    run = run_of(parts, encoded, compile_blocks=True, **changes)
    assert run.model.notes() == []
    assert norms(run) == pytest.approx(expected, rel=1e-4)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 16  # one for the rehearsal of why_not, several for each block
    norms(run)
    assert counters["stats"]["unique_graphs"] == graphs  # the next piece of a run has them already


def test_without_a_compiler_the_run_says_so_and_trains(
    parts: Parts, encoded: dict[str, Any]
) -> None:
    expected = norms(run_of(parts, encoded))
    with inductor.patch(NO_COMPILER):
        run = run_of(parts, encoded, compile_blocks=True)
        (note,) = run.model.notes()
        assert "trains without" in note and "no-such-compiler" in note
        assert norms(run) == expected


@needs_a_compiler
def test_what_cannot_be_compiled_runs_as_it_is(
    parts: Parts, encoded: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    expected = norms(run_of(parts, encoded), 1)
    run = run_of(parts, encoded, compile_blocks=True)
    with inductor.patch(NO_COMPILER), caplog.at_level(logging.WARNING, "lora_atelier"):
        assert norms(run, 1) == pytest.approx(expected, rel=1e-4)
    assert "compile_blocks: a piece runs as it is" in caplog.text


def test_outside_the_graph_it_is_said_in_the_log(
    parts: Parts, encoded: dict[str, Any], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """A node shows it, a terminal has only the log."""
    spec = quick_spec(compile_blocks=True)
    base = {"prompt": {}, "model": ["1", 0], "clip": ["1", 1]}
    with inductor.patch(NO_COMPILER):
        run = replace(run_of(parts, encoded, compile_blocks=True), ingredients=made_from(parts))
        folder = write_job(tmp_path / "job", start(run), base)
        with caplog.at_level(logging.WARNING, "lora_atelier"):
            begun = start_job(read_job(folder), parts.model, parts.clip)
    assert begun.run.spec == spec and "it trains without" in caplog.text


def made_from(parts: Parts) -> Ingredients:
    return Ingredients(
        model=model_digest(parts.model) or "", clip=clip_digest(parts.clip) or "", dataset="d"
    )
