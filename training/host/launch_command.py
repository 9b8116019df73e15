"""What to type to train a job with the ComfyUI that runs here."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import folder_paths
from comfy.cli_args import args

COMFYUI = Path(folder_paths.__file__).parent
"""ComfyUI's own folder, where its main.py lies."""


def launch_command(launcher: Path, job: Path) -> str:
    """A line for the terminal, to be entered in ComfyUI's folder.

    Args:
        launcher: the pack's launch.py.
        job: the job's folder.
    """
    words = ["accelerate", "launch", _from_comfyui(launcher), _from_comfyui(job)]
    if launcher.parents[2] != COMFYUI:  # else the launcher finds it from where it lies itself
        words += ["--comfyui", str(COMFYUI)]
    for option in ("base_directory", "output_directory"):
        if getattr(args, option):
            words += [f"--{option.replace('_', '-')}", os.path.abspath(getattr(args, option))]
    for file in (file for files in args.extra_model_paths_config or [] for file in files):
        words += ["--extra-model-paths-config", os.path.abspath(file)]
    if args.cpu:
        words.append("--cpu")
    return " ".join(quoted(word) for word in words)


def quoted(word: str, windows: bool = os.name == "nt") -> str:
    """A word as the platform's shell takes it for one."""
    if not windows:
        return shlex.quote(word)
    return f'"{word}"' if re.search(r"[\s&|<>^()%!;,=']", word) else word


def _from_comfyui(path: Path) -> str:
    """Short, and without where ComfyUI lies: the text on a node is saved with the graph."""
    return str(path.relative_to(COMFYUI)) if path.is_relative_to(COMFYUI) else str(path)
