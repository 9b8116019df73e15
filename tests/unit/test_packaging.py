"""The files that the registry and ComfyUI-Manager read agree with each other."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest

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


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git, whose patterns they are")
def test_the_archive_has_what_the_pack_reads_and_its_readme_links_to() -> None:
    needed = ["nodes/__init__.py", "web/docs/AtelierTrainLoRA/en.md", "locales/zh/main.json"]
    needed += [
        "workflows/style_lora.json",
        "launch.py",
        "docs/guide.en.md",
        "docs/images/graph.png",
    ]
    assert all((ROOT / path).exists() for path in needed)
    git = ["git", "-c", f"core.excludesFile={ROOT / '.comfyignore'}", "check-ignore", "--no-index"]
    done = subprocess.run(
        [*git, *needed, "tests/conftest.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["tests/conftest.py"]
