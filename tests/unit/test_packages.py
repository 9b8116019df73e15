"""Packages that are not installed: what a person is told of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from lora_atelier.training.errors import REQUIRED, AtelierError, missing_packages, needed_package

ROOT = Path(__file__).resolve().parents[2]


def test_the_required_packages_are_those_of_the_requirements() -> None:
    text = (ROOT / "requirements.txt").read_text("utf-8")
    assert set(re.findall(r"^([\w-]+)", text, re.MULTILINE)) == set(REQUIRED.values())


def test_a_required_package_that_is_not_installed_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert missing_packages() == []
    monkeypatch.setitem(sys.modules, "imagehash", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert missing_packages() == ["ImageHash", "matplotlib"]


def test_the_package_to_install_is_the_one_that_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the one that imports it: transformers is there, and its schedules want accelerate."""
    (tmp_path / "wants_accelerate.py").write_text("import accelerate.utils", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "accelerate"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(AtelierError, match="pip install accelerate$"):
        needed_package("wants_accelerate", "The schedule")


def test_an_optional_package_is_named_as_pip_calls_it() -> None:
    with pytest.raises(AtelierError, match="X needs the package no-such .*pip install no-such$"):
        needed_package("no_such", "X", "no-such")
