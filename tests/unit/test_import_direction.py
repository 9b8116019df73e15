"""nodes -> training -> torch, training/host -> comfy, and nothing upward."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMFYUI = {
    "app",
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}
ENGINE = sorted((ROOT / "training").rglob("*.py"))
HOST = ROOT / "training" / "host"


def _imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports; those inside the pack start with `lora_atelier.`."""
    package = ("lora_atelier", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _top(name: str) -> str:
    return name.split(".")[0]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [p for p in ENGINE if not p.is_relative_to(HOST)], ids=_name)
def test_the_engine_knows_neither_comfyui_nor_its_own_adapter(path: Path) -> None:
    names = set(_imports(path))
    assert not {name for name in names if _top(name) in COMFYUI}
    assert not {name for name in names if name.startswith("lora_atelier.training.host")}


@pytest.mark.parametrize("path", ENGINE, ids=_name)
def test_the_engine_never_imports_nodes(path: Path) -> None:
    forbidden = ("nodes", "server", "lora_atelier.nodes")
    names = set(_imports(path))
    assert not {n for n in names for f in forbidden if n == f or n.startswith(f + ".")}


def test_relative_imports_are_resolved() -> None:
    """The walk above would be blind if it could not tell where a relative import leads."""
    node = ROOT / "training" / "runs" / "loop.py"
    assert any(name.startswith("lora_atelier.training.") for name in _imports(node))


IMPORT_ALL = """
import importlib, importlib.abc, pkgutil, sys, types

root, forbidden = sys.argv[1], set(sys.argv[2:])

class Forbid(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in forbidden:
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, Forbid())
pack = sys.modules["lora_atelier"] = types.ModuleType("lora_atelier")
pack.__path__ = [root]
training = importlib.import_module("lora_atelier.training")
count = 0
for module in pkgutil.walk_packages(training.__path__, "lora_atelier.training."):
    if not module.name.startswith("lora_atelier.training.host"):
        importlib.import_module(module.name)
        count += 1
sys.stdout.write(str(count))
"""


def test_the_engine_imports_without_comfyui(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-c", IMPORT_ALL, str(ROOT), *sorted(COMFYUI)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
