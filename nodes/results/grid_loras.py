"""LoRAs that a graph compares: files, checkpoints of a run, and the one on its wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from ...training.results.lora_file import trained_lora
from ...training.runs.run import TrainingState
from ..graph.outputs import output_folder
from ..train.run_in_graph import run_folder
from .lora_files import LoraFile, metadata_of, require_readable

TRAINED = "trained LoRA"
"""What the LORA_MODEL of the graph is called."""


def grid_loras(
    files: Sequence[LoraFile], lora: Mapping[str, Tensor] | None, state: TrainingState | None
) -> tuple[list[Any], list[str]]:
    """What is compared and how it is called: files, then the checkpoints of a run, then the LoRA
    of the graph.

    Raises:
        AtelierError: a file is damaged.
    """
    from ...training.host.grid import GridLora, read_lora_file

    known = {file.path for file in files}
    earlier = [] if state is None else _checkpoints(state)
    named: dict[str, Any] = {}
    for file in [*files, *(file for file in earlier if file.path not in known)]:
        require_readable(file)
        named[file.name] = GridLora(file.name, partial(read_lora_file, str(file.path), file.name))
    if state is not None:
        name = f"{run_folder(state.run).name}-step{state.step:08d}"
        named[name] = GridLora(f"step {state.step}", partial(trained_lora, state))
    if lora is not None and not (state is not None and _is_of(lora, state)):
        named[TRAINED] = GridLora(TRAINED, partial(dict, lora))
    return list(named.values()), list(named)


def _checkpoints(state: TrainingState) -> list[LoraFile]:
    """The LoRAs that the run has left on its way to this state, in the order of their steps."""
    folder = run_folder(state.run)
    found = []
    for path in (folder / "lora").glob(f"{folder.name}-step*.safetensors"):
        step = path.stem.rpartition("-step")[2]
        if step.isdigit() and int(step) < state.step and _is_on_the_way(path, state):
            name = f"output/{path.relative_to(output_folder()).as_posix()}"
            found.append((int(step), LoraFile(name, path)))
    return [file for _, file in sorted(found)]


def _is_on_the_way(path: Path, state: TrainingState) -> bool:
    """Whether it was not left by a run of the same settings that was laid out longer. A file that
    cannot be read is told of later, where all are looked at.
    """
    try:
        horizon = metadata_of(path).get("ss_max_train_steps", "")
    except (OSError, SafetensorError):
        return True
    return not horizon.isdigit() or int(horizon) <= state.run.spec.max_train_steps


def _is_of(lora: Mapping[str, Tensor], state: TrainingState) -> bool:
    """Whether it came out of the same node as the state."""
    network = state.network
    return lora.keys() == network.keys() and all(lora[key] is network[key] for key in lora)
