"""Where the pack writes: below ComfyUI's output folder, and models/loras when asked to."""

from __future__ import annotations

import re
from pathlib import Path

import folder_paths

from ..training.errors import AtelierError


def checkpoint_prefix(name: str, step: int) -> str:
    """``atelier/<name>/lora/<name>-step000200``; ``name`` is made fit for a file name."""
    safe = re.sub(r"[^\w.-]+", "_", name).strip("._") or "run"
    return f"atelier/{safe}/lora/{safe}-step{step:06d}"


def new_file(filename_prefix: str, extension: str, root: Path) -> Path:
    """A path below ``root`` that no file has yet: ``<prefix>_00001_<extension>``.

    Raises:
        AtelierError: the prefix leads out of ``root`` or is empty.
    """
    try:
        folder, name, counter, _, _ = folder_paths.get_save_image_path(filename_prefix, str(root))
    except Exception as error:  # the host raises a bare Exception here
        raise AtelierError(
            f'filename_prefix "{filename_prefix}" leads out of {root}. '
            'Use a plain name such as "atelier/my_style".'
        ) from error
    if not name.strip(". "):  # the host makes "." of an empty prefix: a hidden file
        raise AtelierError("filename_prefix is empty or ends in a slash. Give the file a name.")
    return Path(folder) / f"{name}_{counter:05}_{extension}"


def output_folder() -> Path:
    """ComfyUI's output folder."""
    return Path(folder_paths.get_output_directory())


def cache_folder() -> Path:
    """Latents, encoded captions and folder indices, kept by content; safe to delete."""
    return output_folder() / "atelier" / "cache"


def loras_folder() -> Path:
    """The first of ComfyUI's LoRA folders."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def shown(path: Path) -> str:
    """A path for the text on a node: it is saved with the graph, so it must not tell where
    ComfyUI lies on this machine."""
    roots = {
        "input": Path(folder_paths.get_input_directory()),
        "output": output_folder(),
        "models/loras": loras_folder(),
    }
    for name, root in roots.items():
        if path.is_relative_to(root):
            return f"{name}/{path.relative_to(root).as_posix()}"
    return path.name
