"""What must lie in a captioner's folder, and what is refused, told before anything is loaded.

A graph can come from anyone, a captioner too. So weights are safetensors, which hold numbers only,
and program code in the folder runs only after a person has put a file beside it that says so:
what lies in the folder, its author may have put there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache import digest_of
from ..dataset.pictures import ImageFile, Picture
from ..errors import AtelierError, require

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
TRUST = "trust_remote_code"
"""``<folder>.trust_remote_code`` beside a folder means that code in it may run."""

PICKLES = frozenset({".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"})
"""Weights in files that can run anything when they are read."""

READ = frozenset({".jinja", ".json", ".model", ".py", ".safetensors", ".txt"})
"""Files that decide what a captioner says."""


@dataclass(frozen=True, slots=True)
class CaptionerFolder:
    """A folder that holds an image-to-text model as transformers saves it."""

    path: Path
    model_type: str
    """As config.json has it: ``blip``, ``florence2``, …"""
    own_code: Mapping[str, str]
    """Class of transformers -> class in the folder's Python files that would stand in for it."""
    trusted: bool
    """The person lets that code run."""

    @property
    def name(self) -> str:
        """As in the node's list."""
        return self.path.name

    def digest(self, of: Callable[[Picture], str]) -> str:
        """Changes when what the model says may change.

        Args:
            of: digest of a file's content, see ``ContentDigests``.
        """
        files = _files(self.path)
        names = [file.relative_to(self.path).as_posix() for file in files]
        contents = [of(ImageFile(str(file), (0, 0))) for file in files]
        return digest_of(self.trusted, list(zip(names, contents, strict=True)))


def captioner_folder(path: Path) -> CaptionerFolder:
    """Look at a folder without running or loading anything of it.

    Raises:
        AtelierError: it holds no model, or none that is let in; says what to do.
    """
    config = _config(path)
    _require_whole_model(path, config)
    _require_weights(path)
    own_code = config.get("auto_map")
    return CaptionerFolder(
        path,
        str(config["model_type"]),
        {k: str(v) for k, v in own_code.items()} if isinstance(own_code, dict) else {},
        trust_file(path).is_file(),
    )


def trust_file(path: Path) -> Path:
    """The file, empty or not, by which the person lets the code of this folder run."""
    return path.with_name(f"{path.name}.{TRUST}")


def stamp(path: Path) -> str:
    """Changes when a file in a captioner's folder is changed, without reading any."""
    facts = []
    for file in [*_files(path), trust_file(path)]:
        with suppress(OSError):  # it is gone, or was never there
            stat = file.stat()
            facts.append((file.name, stat.st_size, stat.st_mtime_ns))
    return digest_of(facts)


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.suffix in READ and p.is_file())


def _config(path: Path) -> dict[str, Any]:
    file = path / CONFIG
    try:
        config = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise AtelierError(
            f'captioner: there is no {CONFIG} in "{path}". Put all files of the model there, as '
            "its page on the Hugging Face hub lists them."
        ) from error
    except (OSError, ValueError) as error:
        raise AtelierError(
            f'captioner: "{file}" cannot be read ({error}). Fetch it again.'
        ) from error
    require(
        isinstance(config, dict) and isinstance(config.get("model_type"), str),
        f'captioner: "{file}" names no model_type, so it is no model of transformers. Choose '
        "another folder.",
    )
    return config


def _require_whole_model(path: Path, config: dict[str, Any]) -> None:
    require(
        not (path / ADAPTER).exists(),
        f'captioner: "{path}" holds a LoRA for a captioner ({ADAPTER}), not a whole model. Merge '
        "it into its model and save that, or choose another folder.",
    )
    require(
        "quantization_config" not in config,
        f'captioner: the weights in "{path}" are quantised, and such weights cannot be moved '
        "between devices as ComfyUI does. Get the model that is not quantised.",
    )


def _require_weights(path: Path) -> None:
    weights = {file.name for file in path.glob("*.safetensors")}
    if not weights:
        pickles = sorted(f.name for f in path.iterdir() if f.suffix in PICKLES)
        require(
            not pickles,
            f'captioner: the weights in "{path}" are pickles ({", ".join(pickles)}), which can run '
            "any program when they are read, so they are not. Get model.safetensors of the same "
            "model, or convert it on a machine where you trust the file.",
        )
        raise AtelierError(
            f'captioner: there are no weights in "{path}". Put model.safetensors there.'
        )
    if not (path / INDEX).is_file():
        return
    try:
        parts = set(json.loads((path / INDEX).read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AtelierError(
            f'captioner: "{path / INDEX}" cannot be read. Fetch it again.'
        ) from error
    missing = sorted(parts - weights)
    require(
        not missing,
        f'captioner: "{path}" lacks {", ".join(missing)}. Put all parts of the weights there.',
    )
