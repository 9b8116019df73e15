"""The demo command, as a person types it, with fewer steps."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from bootstrap import ROOT, venv_python

pytestmark = pytest.mark.slow


def test_the_demo_tells_its_progress_and_where_everything_lies(tmp_path: Path) -> None:
    command = [venv_python(), ROOT / "dev" / "demo.py", "--steps", "4", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = re.findall(r"step (\d)/4  loss (\d\.\d{4})  (\d\d:\d\d) left", done.stdout)
    assert steps[-1][0] == "4" and steps[-1][2] == "00:00"
    places = dict(re.findall(r"^  (LoRA|before/after|loss chart) +(.+)$", done.stdout, re.M))
    with safe_open(places["LoRA"], "np") as lora:
        assert lora.metadata()["ss_steps"] == "4"
        assert lora.metadata()["atelier.dataset_license"] == "MIT"
    with Image.open(places["before/after"]) as pictures:
        assert pictures.width > 2 * pictures.height > 0  # two rows of four
    with Image.open(places["loss chart"]) as chart:
        assert chart.size == (960, 540)
