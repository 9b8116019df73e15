"""ComfyUI's own modules inside the test process."""

from __future__ import annotations

import atexit
import sys
import tempfile
from pathlib import Path

from bootstrap import comfyui_path


def make_importable() -> Path:
    """Put ComfyUI first on the path, on the CPU if there is no CUDA; the value is its folder.

    Its folders (models, input, output, ...) lie in a temporary directory for the whole session.
    """
    path = comfyui_path()
    if str(path) in sys.path:
        return path
    sys.path.insert(0, str(path))
    import torch

    # comfy.options.args_parsing is off unless main.py turns it on: pytest's arguments are not read.
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    base = tempfile.TemporaryDirectory(prefix="comfyui-")
    atexit.register(base.cleanup)
    args.base_directory = base.name
    for folder in ("input", "output", "temp", "models/checkpoints", "models/loras"):
        Path(base.name, folder).mkdir(parents=True)
    # First, as in main.py: nodes.py puts comfy/ on the path, where a utils.py hides this package.
    import utils.extra_config  # noqa: F401

    return path
