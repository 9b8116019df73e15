"""Which folders of this machine a graph may name."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

import folder_paths

from ...training.errors import AtelierError

EXTRA_KEY = "atelier_datasets"
"""Name under which ``extra_model_paths.yaml`` lists further dataset folders."""


def dataset_roots() -> list[Path]:
    """ComfyUI's input and output folders and those a person listed, as absolute paths."""
    roots = [folder_paths.get_input_directory(), folder_paths.get_output_directory()]
    if EXTRA_KEY in folder_paths.folder_names_and_paths:
        roots += folder_paths.get_folder_paths(EXTRA_KEY)
    return [Path(os.path.abspath(root)) for root in roots]


class SaveInto(str, Enum):
    """ComfyUI's folder in which a dataset is saved."""

    OUTPUT = "output"
    INPUT = "input"


def dataset_folder(folder: str) -> Path:
    """The folder a graph means: a name inside one of the roots, or a full path below one.

    A graph can come from anyone, so it reaches nothing outside the roots, symbolic links included.

    Raises:
        AtelierError: outside the roots, or in none of them; says where folders may lie.
    """
    text = folder.strip()
    roots = dataset_roots()
    if not text:
        raise AtelierError(f"folder is empty. Give the name of a folder in {roots[0]}.")
    found, leads_out = None, False
    for root in roots:
        path = Path(os.path.abspath(root / text))
        if not path.is_relative_to(root) or "\0" in text:
            continue  # told by its words alone: asking for //server/share would go there
        if not _stays_below(path, root):
            leads_out = leads_out or os.path.lexists(path)  # a link to somewhere else
            continue
        if path.is_dir():
            return path
        found = found or path
    if found is None or leads_out:
        raise AtelierError(
            f'folder "{text}" lies outside the folders this pack may read: '
            f"{', '.join(map(str, roots))}. Move it into ComfyUI's input folder, or list its "
            f"parent under {EXTRA_KEY} in extra_model_paths.yaml and restart ComfyUI."
        )
    raise AtelierError(f'folder: there is no folder "{found}".{_nearby(roots[0])}')


def mask_folder_of(folder: str) -> Path | None:
    """Where the masks lie, by the same rules; None when the widget is empty.

    Raises:
        AtelierError: as :func:`dataset_folder`.
    """
    if not folder.strip():
        return None
    try:
        return dataset_folder(folder)
    except AtelierError as error:
        raise AtelierError(f"mask_{error}") from error  # they all begin with "folder"


def save_folder(folder: str, save_into: SaveInto) -> Path:
    """The folder that a dataset is saved as, which need not exist.

    Raises:
        AtelierError: it is no folder below ComfyUI's input or output folder.
    """
    text = folder.strip()
    into_input = save_into is SaveInto.INPUT
    root = folder_paths.get_input_directory() if into_input else folder_paths.get_output_directory()
    root = Path(os.path.abspath(root))
    path = Path(os.path.abspath(root / text))
    if not text or path == root:
        raise AtelierError('folder is empty. Give the dataset a name, such as "datasets/glossy".')
    if not path.is_relative_to(root) or "\0" in text or not _stays_below(path, root):
        raise AtelierError(
            f'folder "{text}" leads out of {root}. Use a plain name such as "datasets/glossy".'
        )
    return path


def _stays_below(path: Path, root: Path) -> bool:
    """With symbolic links followed; asks the file system."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def _nearby(root: Path) -> str:
    names = sorted(p.name for p in root.iterdir() if p.is_dir())[:10] if root.is_dir() else []
    return f" ComfyUI's input folder holds: {', '.join(names)}." if names else ""
