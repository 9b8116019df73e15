"""The folders of models that are this pack's own: a folder each, below models/taggers and the like.

They are known to ComfyUI by their names, so ``extra_model_paths.yaml`` may list further places.
"""

from __future__ import annotations

from pathlib import Path

import folder_paths

TAGGERS = "taggers"
CAPTIONERS = "captioners"


def register_model_folders() -> None:
    """Tell ComfyUI of models/taggers and models/captioners."""
    for kind in (TAGGERS, CAPTIONERS):
        folder_paths.add_model_folder_path(kind, str(own_folder(kind)))


def own_folder(kind: str, name: str = "") -> Path:
    """Where a model of this name is put when it is fetched."""
    return Path(folder_paths.models_dir) / kind / name


def folder_for(kind: str, name: str) -> Path:
    """Where the files of a known model belong: its folder, if it has one that lacks some."""
    return models_in(kind).get(name) or own_folder(kind, name)


def models_in(kind: str) -> dict[str, Path]:
    """The folders below those of this kind, by name, in order; of two of a name, the first found.

    A graph names one of these and never a path.
    """
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(kind)):
        for folder in root.iterdir() if root.is_dir() else ():
            if folder.is_dir() and not folder.name.startswith("."):
                found.setdefault(folder.name, folder)
    return dict(sorted(found.items()))
