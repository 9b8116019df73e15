"""The commands of this repository, on any system.

    python dev/run.py demo|test|bench|lint|soak [arguments]

Each gets what it needs first (see bootstrap.py). The Makefile only calls this. Arguments go to the
program that does the work; a `-m` for pytest narrows what the command would run anyway.
"""

from __future__ import annotations

import os
import subprocess
import sys

import bootstrap

NOT_SOAK = "not soak"
WAIT_WITHOUT_SPINNING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""Several processes share the cores: threads of torch that wait must not keep the others out."""
NO_TESTS = 5
"""Pytest's exit code when nothing was selected: there may be no soak test."""


def _demo(arguments: list[str]) -> list[str]:
    return [str(bootstrap.ROOT / "dev" / "demo.py"), *arguments]


def _test(arguments: list[str]) -> list[str]:
    # Two files at a time: much of a test's time is spent on waiting for a server. Not reordered,
    # since tests/conftest.py begins with the longest.
    share = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--durations=30"]
    share = [] if arguments else share
    return ["-m", "pytest", *share, *_narrowed(NOT_SOAK, arguments)]


def _soak(arguments: list[str]) -> list[str]:
    return ["-m", "pytest", *_narrowed("soak", arguments)]


def _bench(arguments: list[str]) -> list[str]:
    # Files of another name, so that a run of the tests does not collect them.
    where = ["tests/bench", "-o", "python_files=bench_*.py", "-s"]
    return ["-m", "pytest", *where, *arguments]


def _lint(arguments: list[str]) -> list[str]:
    return ["-m", "ruff", "check", *(arguments or ["."])]


COMMANDS = {"demo": _demo, "test": _test, "bench": _bench, "lint": _lint, "soak": _soak}


def _narrowed(marks: str, arguments: list[str]) -> list[str]:
    """Pytest's arguments with `marks` and the person's own -m joined by `and`."""
    rest = list(arguments)
    if "-m" in rest[:-1]:
        place = rest.index("-m")
        marks = f"({marks}) and ({rest[place + 1]})"
        del rest[place : place + 2]
    return ["-m", marks, *rest]


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        sys.stderr.write(f"usage: python dev/run.py {'|'.join(COMMANDS)} [arguments]\n")
        return 2
    name, rest = arguments[0], arguments[1:]
    code = bootstrap.run(dev=name != "demo")
    if code:
        return code
    command = [str(bootstrap.venv_python()), *COMMANDS[name](rest)]
    environment = dict(os.environ, PYTHONNOUSERSITE="1")
    environment.pop("PYTHONPATH", None)
    if name == "test":
        environment = WAIT_WITHOUT_SPINNING | environment
    try:
        code = subprocess.call(command, cwd=bootstrap.ROOT, env=environment)
        return 0 if name == "soak" and code == NO_TESTS else code
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
