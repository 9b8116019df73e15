"""The files that the registry and ComfyUI-Manager read agree with each other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
HOST_OWNS = {"torch", "torchvision", "torchaudio", "numpy", "transformers", "safetensors", "pillow"}


def _requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    bare = (line.split(" #")[0].strip() for line in lines if not line.startswith("#"))
    return [line.replace('"', "'") for line in bare if line]


def test_both_lists_of_requirements_are_the_same() -> None:
    # tomllib is not in Python 3.10; a TOML list of strings is a Python list.
    listed = re.search(r"^dependencies = (\[.*?^\])", PYPROJECT, re.DOTALL | re.MULTILINE)
    assert listed is not None
    assert ast.literal_eval(listed.group(1)) == _requirements()


def test_nothing_that_comfyui_owns_is_required() -> None:
    names = {re.split(r"[^A-Za-z0-9_-]", line)[0].lower() for line in _requirements()}
    assert not names & HOST_OWNS


def test_the_web_folder_is_registered_once() -> None:
    assert re.search(r"^web\b", PYPROJECT, re.MULTILINE) is None


def test_the_archive_leaves_development_out() -> None:
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    assert {"tests/", "dev/", "demo/", ".ci/"} <= set(ignored)
