"""What all tests share.

`lora_atelier` is the name of the pack in tests: `from lora_atelier.training import ...`. Its root
__init__.py, which imports ComfyUI, is not executed by that; unit tests need torch only.
"""

from __future__ import annotations

import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from comfy_modules import make_importable
from host import HostServer
from tiny import tiny_sd15

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
TINY_SD15 = "tiny_sd15.safetensors"
LONGEST = (
    "tests/e2e/test_evaluate.py",
    "tests/e2e/test_style_from_base.py",
    "tests/host/test_every_widget.py",
    "tests/e2e/test_cancel.py",
)


# A busy machine is no failure.
settings.register_profile(
    "untimed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")


def _name_the_pack() -> None:
    """Let `lora_atelier.x` mean `<root>/x`, without running the root's __init__.py."""
    pack = types.ModuleType("lora_atelier")
    pack.__path__ = [str(ROOT)]
    sys.modules["lora_atelier"] = pack
    # `python -m pytest` puts the root on the path, where nodes/ would shadow ComfyUI's nodes.py.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]


_name_the_pack()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder, skip what this machine cannot run, and begin with the longest files: begun
    last, they would keep one of two processes busy while the other has nothing left to do."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if folder in ("host", "e2e"):
            item.add_marker(folder)
        if item.get_closest_marker("gpu") and not _cuda():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def comfy() -> Path:
    """Make ComfyUI's modules importable in this process; the value is ComfyUI's folder.

    Tests under tests/host need not ask for it: there they can be imported from the first line on.
    """
    return make_importable()


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """The file of a tiny SD1.5 model, see `tiny`."""
    return tiny_sd15()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[HostServer]:
    """One ComfyUI server with the pack, for all tests of the session that do not harm it.

    A test that kills or restarts its server uses `own_server`.
    """
    with _new_server(tmp_path_factory.mktemp("server"), tiny_checkpoint) as running:
        yield running


@pytest.fixture(scope="session")
def new_server(tiny_checkpoint: Path) -> Callable[[Path], HostServer]:
    """Makes a server that is not started yet, in a folder of its own."""
    return lambda base: _new_server(base, tiny_checkpoint)


@pytest.fixture
def own_server(tmp_path: Path, tiny_checkpoint: Path) -> Iterator[HostServer]:
    """A server of the test's own, not started yet: it may be killed and started again."""
    server = _new_server(tmp_path, tiny_checkpoint)
    yield server
    server.stop()


def _new_server(base: Path, checkpoint: Path) -> HostServer:
    server = HostServer(base)
    server.put_model(checkpoint, TINY_SD15)
    packs = base / "custom_nodes"
    packs.mkdir(parents=True, exist_ok=True)
    shutil.copy(TESTS / "faulty_pack.py", packs)
    return server
