"""The LoRAs that are evaluated: files, or what a run has left on its way and its end."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ...training.errors import AtelierError
from ...training.results.grid_spec import lora_labels
from ...training.results.lora_file import TrainedLora, trained_lora
from ...training.runs.run import TrainingState
from ...training.runs.state_file import load_state, read_header
from ..train.run_in_graph import run_folder
from .grid_loras import grid_loras
from .lora_files import LoraFile, metadata_of

log = logging.getLogger("lora_atelier")

STEP = re.compile(r"(?:[-_]step0*(\d+)|-(\d{6}))(\.\w+)?$")
"""As the pack and kohya's scripts end the names of their files: of a step, or of an epoch."""
STEPS_KEY = "ss_steps"


class Listed(NamedTuple):
    """One LoRA."""

    name: str
    """Its file, or what would be."""
    step: int
    """0 = not known."""
    read: Callable[[], Mapping[str, Tensor]]
    """With what it says of itself."""

    @property
    def run(self) -> str:
        """What files of one run have in common."""
        return STEP.sub("", self.name.rpartition("/")[2])


def listed_loras(files: Sequence[LoraFile], state: TrainingState) -> list[Listed]:
    """The files; without any, the checkpoints of the run up to the state, and the state.

    Raises:
        AtelierError: a file is damaged.
    """
    if files:
        loras, names = grid_loras(files, None, None)
        found = zip(files, loras, names, strict=True)
        return [
            Listed(
                name, _step(name, file.path), partial(_with_metadata, lora.read, file.path, state)
            )
            for file, lora, name in found
        ]
    loras, names = grid_loras([], None, state)
    there = {
        _step(name): Listed(name, _step(name), lora.read)
        for lora, name in zip(loras, names, strict=True)
    }
    there = _states(state) | there
    return [there[step] for step in sorted(there) if step > 0]


def labels(loras: Sequence[Listed]) -> tuple[str, ...]:
    """What to call them in the report."""
    return lora_labels([lora.name for lora in loras])


def _states(state: TrainingState) -> dict[int, Listed]:
    """States of the run on disk, which hold their LoRAs: most runs save no LoRA on the way."""
    folder = run_folder(state.run)
    found = {}
    for path in (folder / "state").glob("step*.safetensors"):
        try:
            header = read_header(path)
        except AtelierError as error:
            log.warning("A checkpoint is passed over: %s", error)
            continue
        if header.step < state.step and header.is_on_the_way_of(state.run):
            name = f"{folder.name}-step{header.step:08d}"
            found[header.step] = Listed(name, header.step, partial(_of_state, path, state))
    return found


def _of_state(path: Path, state: TrainingState) -> TrainedLora:
    return trained_lora(load_state(path, state.run))


def _with_metadata(
    read: Callable[[], Mapping[str, Tensor]], path: Path, state: TrainingState
) -> TrainedLora:
    return TrainedLora(read(), metadata_of(path), state.run.models)


def _step(name: str, path: Path | None = None) -> int:
    """From what the file says of itself, or else from its name."""
    told = {} if path is None else metadata_of(path)
    if told.get(STEPS_KEY, "").isdigit():
        return int(told[STEPS_KEY])
    match = STEP.search(name)
    return int(match[1] or match[2]) if match else 0
