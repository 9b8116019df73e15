"""What to type to train a job with the ComfyUI that runs here."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import folder_paths
from comfy.cli_args import args

COMFYUI = Path(folder_paths.__file__).parent
"""ComfyUI's own folder, where its main.py lies."""

PORTABLE = "python_embeded"
"""The folder beside ComfyUI's in which its portable version for Windows has its Python."""

PRECISION = (
    *("--force-fp32", "--force-fp16", "--supports-fp8-compute"),
    *("--fp32-unet", "--fp64-unet", "--bf16-unet", "--fp16-unet"),
    *("--fp8_e4m3fn-unet", "--fp8_e5m2-unet", "--fp8_e8m0fnu-unet"),
    *("--fp32-text-enc", "--bf16-text-enc", "--fp16-text-enc"),
    *("--fp8_e4m3fn-text-enc", "--fp8_e5m2-text-enc"),
)
"""ComfyUI's options that decide in which type a model or text encoder is held and computes. With
other ones it is another base model."""


def launch_command(launcher: Path, job: Path) -> str:
    """A line for the terminal, to be entered in ComfyUI's folder.

    Args:
        launcher: the pack's launch.py.
        job: the job's folder.
    """
    # Left to itself, accelerate takes every GPU, which batches of one picture cannot be shared by.
    words = [*_accelerate(Path(sys.executable)), "--num_processes", "1"]
    words += [_from_comfyui(launcher), _from_comfyui(job)]
    if launcher.parents[2] != COMFYUI:  # else the launcher finds it from where it lies itself
        words += ["--comfyui", str(COMFYUI)]
    for option in ("base_directory", "output_directory"):
        if getattr(args, option):
            words += [f"--{option.replace('_', '-')}", os.path.abspath(getattr(args, option))]
    for file in (file for files in args.extra_model_paths_config or [] for file in files):
        words += ["--extra-model-paths-config", os.path.abspath(file)]
    words += precision_options()
    if args.cpu:
        words.append("--cpu")
    return " ".join(quoted(word) for word in words)


def precision_options() -> list[str]:
    """Those of :data:`PRECISION`, and of ``--fast``, that this ComfyUI was started with."""
    words = [option for option in PRECISION if getattr(args, _name(option), False)]
    if "--force-fp16" in words and "--fp16-unet" in words:  # the host sets one with the other
        words.remove("--fp16-unet")
    fast = sorted(feature.value for feature in args.fast)
    return [*words, "--fast", *fast] if fast else words


def quoted(word: str, windows: bool = os.name == "nt") -> str:
    """A word as the platform's shell takes it for one."""
    if not windows:
        return shlex.quote(word)
    return f'"{word}"' if re.search(r"[\s&|<>^()%!;,=']", word) else word


def _accelerate(python: Path) -> list[str]:
    """accelerate's launcher, which no terminal knows where Python lies in a folder of its own."""
    if python.parent == COMFYUI.parent / PORTABLE:
        return [os.path.relpath(python, COMFYUI), "-m", "accelerate.commands.launch"]
    return ["accelerate", "launch"]


def _name(option: str) -> str:
    """Of the attribute that holds it."""
    return option.lstrip("-").replace("-", "_")


def _from_comfyui(path: Path) -> str:
    """Short, and without where ComfyUI lies: the text on a node is saved with the graph."""
    return str(path.relative_to(COMFYUI)) if path.is_relative_to(COMFYUI) else str(path)
