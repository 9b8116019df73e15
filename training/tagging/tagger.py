"""A tagger of the WD14 family: an ONNX model that gives every tag of its table a probability.

Input [N, S, S, 3] float32, BGR, 0..255; output [N, tags] float32, 0..1, the sigmoid applied.
Source: SmilingWolf's wd-tagger Space (``app.py``), from which the models come.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import AtelierError, needed_package, require
from ..memory.freed import give_back_freed
from .tag_table import TagTable

MODEL_FILE, TABLE_FILE = "model.onnx", "selected_tags.csv"

CPU = "CPUExecutionProvider"
PROVIDERS = {"CUDAExecutionProvider": "CUDA", "DmlExecutionProvider": "DirectML", CPU: "CPU"}
"""The best first."""

BATCH = {"CUDA": 8, "DirectML": 8, "CPU": 4}
"""Pictures at a time where the model leaves it open."""

WHITE = (255, 255, 255)

ERRORS_ONLY = 3
"""ONNX Runtime's level of its log."""


@dataclass(frozen=True, slots=True)
class TaggerFiles:
    """Where a tagger lies."""

    name: str
    model: Path
    table: Path


def tagger_files(folder: Path) -> TaggerFiles | None:
    """Model and table in a folder; None where one of them is missing.

    Raises:
        AtelierError: there are several models, none of them called model.onnx.
    """
    models, table = sorted(folder.glob("*.onnx")), folder / TABLE_FILE
    if not models or not table.is_file():
        return None
    usual = folder / MODEL_FILE
    require(
        len(models) == 1 or usual in models,
        f'"{folder}" holds {len(models)} ONNX models: {", ".join(p.name for p in models)}. Call '
        f"the one that is meant {MODEL_FILE}, or give each a folder of its own.",
    )
    return TaggerFiles(folder.name, usual if usual in models else models[0], table)


def tagger_input(image: Image.Image, size: int) -> np.ndarray:
    """A picture as a tagger sees it: on white, whole, in the middle of a square.

    It is scaled before the square is made and not after it, so that a strip of 1 × 10,000 px needs
    no square of 10,000: the same picture up to half a pixel.

    Args:
        image: RGB or RGBA.

    Returns:
        [size, size, 3] uint8, BGR.
    """
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    if image.mode == "RGBA":
        ground = Image.new("RGBA", image.size, (*WHITE, 255))
        ground.alpha_composite(image)
        image = ground.convert("RGB")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size), WHITE)
    square.paste(image, ((size - width) // 2, (size - height) // 2))
    red, green, blue = square.split()
    return np.asarray(Image.merge("RGB", (blue, green, red)))


class Tagger:
    """One session, on the best device that ONNX Runtime can use here; closed after use.

    Raises:
        AtelierError: no ONNX Runtime, a broken model, or one of another kind than the table's.
    """

    def __init__(self, files: TaggerFiles, table: TagTable) -> None:
        self.files, self.table = files, table
        self.notes: list[str] = []
        self._session, self.device = _session(files.model, self.notes)
        try:
            self.input, self.size, fixed = _input(self._session, files.model)
            self.output = _output(self._session, files, table)
        except AtelierError:
            self.close()
            raise
        self.batch = fixed or BATCH[self.device]
        self._fixed = fixed is not None

    def __enter__(self) -> Tagger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def probabilities(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Of at most ``batch`` pictures.

        Args:
            pictures: as :func:`tagger_input` makes them.

        Returns:
            [N, tags] float32.

        Raises:
            AtelierError: the model fails, or gives something else.
        """
        count = self.batch if self._fixed else len(pictures)
        given = np.zeros((count, self.size, self.size, 3), np.float32)
        for place, picture in zip(given, pictures, strict=False):
            place[:] = picture
        model = f'"{self.files.model}"'
        try:
            (found,) = self._session.run([self.output], {self.input: given})
        except Exception as error:  # ONNX Runtime's exceptions have no common class of their own
            raise AtelierError(
                f"{model} failed on {self.device}: {_first_line(error)}. If the memory is full, "
                "close other programs; if the file is damaged, get it again."
            ) from error
        found = found[: len(pictures)]
        wanted = (len(pictures), len(self.table))
        require(found.shape == wanted, _mismatch(self.files, found.shape[-1], len(self.table)))
        require(
            bool(np.all((found >= -1e-3) & (found <= 1 + 1e-3))),
            f"{model} gives numbers from {found.min():g} to {found.max():g}, not probabilities: it "
            "is not a tagger of the WD14 family, which ends in a sigmoid. Choose another one.",
        )
        return found

    def close(self) -> None:
        """Give the memory back."""
        self._session = None
        give_back_freed()


def _session(model: Path, notes: list[str]) -> tuple[Any, str]:
    """A session and the device it runs on. A GPU that cannot be used is told, and the CPU taken."""
    runtime = needed_package("onnxruntime", "Auto-Tag Images")
    options = runtime.SessionOptions()
    # Its threads would burn what decoding needs while they wait for each other.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = ERRORS_ONLY
    available = [name for name in PROVIDERS if name in runtime.get_available_providers()]
    for provider in available:
        device = PROVIDERS[provider]
        try:
            chosen = [provider] if provider == CPU else [provider, CPU]
            session = runtime.InferenceSession(str(model), options, providers=chosen)
        except Exception as error:  # as above; the next provider may do
            if provider == available[-1]:
                raise AtelierError(
                    f'"{model}" cannot be opened as an ONNX model: {_first_line(error)}. It may be '
                    "damaged or cut short: get it again."
                ) from error
            notes.append(f"{device} could not be used: {_first_line(error)}.")
            continue
        if session.get_providers()[0] == provider:
            return session, device
        notes.append(f"{device} could not be used; ONNX Runtime took the CPU. See the log.")
        return session, PROVIDERS[CPU]
    raise AtelierError("onnxruntime has no provider for CPU, CUDA or DirectML. Install it anew.")


def _input(session: Any, model: Path) -> tuple[str, int, int | None]:
    """Name, side in px, and number of pictures if that is fixed.

    Raises:
        AtelierError: not [N, S, S, 3] float32.
    """
    given = session.get_inputs()
    told = ", ".join(f"{i.name} {i.shape} {i.type}" for i in given)
    wrong = f'"{model}" takes {told}, but a tagger of the WD14 family takes [N, S, S, 3] float'
    require(len(given) == 1 and len(given[0].shape) == 4, f"{wrong}. Choose another one.")
    pictures, height, width, channels = given[0].shape
    require(
        channels == 3,
        f"{wrong}: the three colours last, in the order blue, green, red. "
        + ("This one has them first: it is made for other preprocessing. " if height == 3 else "")
        + "Choose another one.",
    )
    square = isinstance(height, int) and height == width and height > 0
    require(square and given[0].type == "tensor(float)", f"{wrong}. Choose another one.")
    return given[0].name, height, pictures if isinstance(pictures, int) else None


def _output(session: Any, files: TaggerFiles, table: TagTable) -> str:
    """Name of the output that has a number for each tag; where the model does not say how many it
    gives, that is looked at when it has run."""
    outputs = [o for o in session.get_outputs() if len(o.shape) == 2]
    for output in outputs:
        if output.shape[1] == len(table):
            return output.name
    unknown = [o.name for o in outputs if not isinstance(o.shape[1], int)]
    if unknown:
        return unknown[0]
    sizes = [o.shape[-1] for o in outputs]
    raise AtelierError(_mismatch(files, sizes[0] if sizes else "other", len(table)))


def _mismatch(files: TaggerFiles, outputs: object, rows: int) -> str:
    return (
        f'"{files.model}" gives {outputs} numbers a picture, but "{files.table}" names {rows} '
        "tags: they do not belong together. Get both from the same place."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
