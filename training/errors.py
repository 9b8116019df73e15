"""The one exception that is meant to be read by the person at the graph."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from types import ModuleType

REQUIRED = {
    "accelerate": "accelerate",
    "bitsandbytes": "bitsandbytes",
    "imagehash": "ImageHash",
    "markdown_it": "markdown-it-py",
    "matplotlib": "matplotlib",
}
"""Module -> what pip calls it, of requirements.txt."""


class AtelierError(ValueError):
    """Something a person can mend: names the widget or file, the value, and what to do."""


class FileChanged(AtelierError):
    """A file is not as it was when its folder was read; queueing again reads it anew."""


def require(condition: bool, message: str) -> None:
    """Raise :class:`AtelierError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise AtelierError(message)


def require_number(name: str, value: float, low: float, high: float, advice: str) -> None:
    """Refuse a widget value that is not a finite number in ``[low, high]``.

    Raises:
        AtelierError: naming the widget, the value, the range and what people usually choose.
    """
    inside = math.isfinite(value) and low <= value <= high
    require(inside, f"{name} is {value}: it must be a number from {low:g} to {high:g}. {advice}")


def needed_package(module: str, purpose: str, package: str = "") -> ModuleType:
    """Import a package where it is used: at start-up it would cost time, and some are optional.

    Args:
        package: what pip calls it, when that is not the module's name.

    Raises:
        AtelierError: it is not installed (or broken), or wants a package of requirements.txt that
            is not; says for what, and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        absent = (error.name or "").partition(".")[0]
        package = REQUIRED.get(absent) or package or module.partition(".")[0]
        raise AtelierError(
            f"{purpose} needs the package {package} ({error}). Install it with the Python that "
            f"runs ComfyUI: python -m pip install {package}"
        ) from error


def missing_packages() -> list[str]:
    """What pip calls those packages of requirements.txt that are not installed."""
    wanted = [m for m in REQUIRED if (m, sys.platform) != ("bitsandbytes", "darwin")]
    return [REQUIRED[module] for module in wanted if importlib.util.find_spec(module) is None]
