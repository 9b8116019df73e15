"""Pytest plugin: treat the repository root as a plain folder.

The root has an __init__.py, because that is how ComfyUI loads a pack. Pytest would take the root
for a package of tests and execute that file, which only works inside ComfyUI.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None
