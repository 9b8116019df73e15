"""The pack on a device that is not the CPU, though there is none: everything lies where it should.

The device is made of memory (`second_device.py`) and refuses what a GPU refuses. What a tensor on
the wrong device breaks is broken here, too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

import device.second_device as second_device

pytestmark = [pytest.mark.host, pytest.mark.slow]

COMPILER = shutil.which("c++")
HEADERS = Path(sysconfig.get_paths()["include"], "Python.h").is_file()


@pytest.fixture(scope="module")
def answers(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of `on_second_device.py`, case by case."""
    if COMPILER is None or not HEADERS:
        pytest.skip("no C++ compiler, or no headers of Python")
    if torch.cuda.is_available():
        pytest.skip("ComfyUI would take the real GPU")
    try:
        library = second_device.build(COMPILER, tmp_path_factory.mktemp("second_device"))
    except subprocess.CalledProcessError as error:
        if "COMFYUI_PATH" in os.environ:  # with a torch of its own, whose insides may differ
            pytest.skip(f"cannot be built on torch {torch.__version__}")
        raise AssertionError(error.stderr) from error
    script = Path(__file__).with_name("on_second_device.py")
    done = subprocess.run(
        [sys.executable, str(script), str(library), str(tiny_checkpoint)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_the_device_is_strict(answers: dict[str, Any]) -> None:
    assert answers["refuses_to_mix"]


def test_a_run_has_the_losses_that_it_has_on_the_cpu(answers: dict[str, Any]) -> None:
    found = answers["the_numbers_of_the_cpu"]
    assert found["second"] == pytest.approx(found["cpu"], rel=1e-4)


def test_a_resumed_run_is_the_one_that_was_never_stopped(answers: dict[str, Any]) -> None:
    """Dropout and rounding draw from the device's own stream."""
    assert answers["a_resumed_run"] == []


def test_weights_that_stay_in_ram_are_brought_layer_by_layer(answers: dict[str, Any]) -> None:
    found = answers["half_of_the_weights_elsewhere"]
    assert 0.1 < found["share"] < 0.9
    whole = answers["the_numbers_of_the_cpu"]["cpu"]
    assert found["losses"] == pytest.approx(whole, rel=1e-4)


def test_a_picture_is_drawn_with_the_lora(answers: dict[str, Any]) -> None:
    assert answers["a_picture"] == {"shape": [1, 64, 64, 3], "finite": True}


def test_nothing_is_left_on_the_device(answers: dict[str, Any]) -> None:
    assert answers["left_behind"] == 0
