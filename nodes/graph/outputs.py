"""Where the pack writes: below ComfyUI's output folder, and models/loras when asked to."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import folder_paths

from ...training.errors import AtelierError


def safe_name(name: str) -> str:
    """``name`` made fit for a file name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:64] or "run"


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


def thumbnails_folder() -> Path:
    """Small pictures for the browser, kept by content; safe to delete."""
    return cache_folder() / "thumbnails"


def runs_folder() -> Path:
    """What runs leave behind, a folder each: states to resume from, LoRAs, previews, history."""
    return output_folder() / "atelier" / "runs"


def states_in(root: Path) -> list[str]:
    """Training states below ``root``/atelier, by their paths there, the newest first."""
    folder = root / "atelier"
    files = [*folder.glob("saved/**/*.safetensors"), *folder.glob("runs/*/state/*.safetensors")]
    times = {}
    for file in files:
        with suppress(OSError):  # deleted meanwhile by a run that goes on
            times[file] = file.stat().st_mtime
    newest_first = sorted(times, key=lambda file: -times[file])
    return [file.relative_to(folder).as_posix() for file in newest_first]


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
