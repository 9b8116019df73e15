"""A training state on disk: one safetensors file, written whole or not at all, no pickle.

The tensors are the adapters, the state of the optimizer and the history (a row a step); the rest
lies as JSON in the file's header, so that what a file holds can be read without its tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..base_model.precision import MixedPrecision
from ..errors import AtelierError
from ..files import whole_file
from ..tensor_tree import NotATree, put_together, take_apart
from .run import Ingredients, StepRecord, TrainingRun, TrainingSpec, TrainingState
from .spec_json import from_json, to_json
from .validation import ValidationPoint

VERSION = 1
HEADER = "lora_atelier_state"


@dataclass(frozen=True)
class StateHeader:
    """What a state file says of itself."""

    version: int
    step: int
    identity: str
    """Of the run, see :mod:`training.runs.identity`; "" = unknown."""
    horizon: int
    """``max_train_steps``, for which the schedule was laid out."""
    spec: Mapping[str, Any]
    """:class:`training.runs.run.TrainingSpec` as JSON."""
    ingredients: Mapping[str, str]
    dataset_name: str
    samples: int
    is_end: bool
    """Written at the end of a node's work, not on the way."""
    validation_loss: float | None
    """Of this very step; None = it was not measured then."""
    mixed_precision: str = "auto"
    """What ``auto`` came to; "auto" = nothing was trained yet."""

    def is_on_the_way_of(self, run: TrainingRun) -> bool:
        """Whether ``run`` may have come by: the same run, laid out as long or shorter (an extended
        run goes on from the end of a shorter one)."""
        return self.identity == run.identity and self.horizon <= run.spec.max_train_steps

    def training_spec(self) -> TrainingSpec:
        """The settings it was trained with.

        Raises:
            AtelierError: they are those of a newer version.
        """
        return from_json(TrainingSpec, self.spec)

    def made_from(self) -> Ingredients:
        return Ingredients(**self.ingredients)


def save_state(path: Path, state: TrainingState, is_end: bool = False) -> None:
    """Write or replace a state file.

    Raises:
        AtelierError: the disk is full or the folder cannot be written (an old file stays), or a
            weight is not finite.
    """
    broken = [name for name, tensor in state.network.items() if not tensor.isfinite().all()]
    if broken:
        raise AtelierError(
            f"The state of step {state.step} holds numbers that are not finite (in {broken[0]}) "
            "and was not saved."
        )
    try:
        tensors, form = take_apart(_content(state))
    except NotATree as error:
        raise AtelierError(
            f"The state of {state.run.spec.optimizer.label} cannot be saved: it holds a value of "
            f"the kind {error}. Choose another optimizer to be able to resume."
        ) from error
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {HEADER: json.dumps(asdict(_header(state, is_end))), "form": form}
    with whole_file(path) as partial:
        try:
            save_file(_unshared(tensors), partial, metadata=metadata)
        except SafetensorError as error:  # how it reports a full disk
            raise OSError(str(error)) from error


def read_header(path: Path) -> StateHeader:
    """What a state file says of itself, without its tensors.

    Raises:
        AtelierError: it is damaged, cut short, no state file, or of a newer version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        header = StateHeader(**json.loads(metadata[HEADER]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise AtelierError(
            f'"{path.name}" is no whole state file of this pack ({error}).'
        ) from error
    if header.version > VERSION:
        raise AtelierError(
            f'"{path.name}" was written by a newer version of LoRA Atelier. Update the pack.'
        )
    return header


@torch.inference_mode(False)  # what is read here, autograd and optimizers must accept
def load_state(path: Path, run: TrainingRun) -> TrainingState:
    """The state in a file, as one of ``run``.

    Raises:
        AtelierError: as :func:`read_header`.
    """
    header = read_header(path)
    run = replace(run, resolved_precision=MixedPrecision(header.mixed_precision))
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        content = put_together(tensors, file.metadata()["form"])
    return TrainingState(
        run=run,
        step=header.step,
        network=content["network"],
        optimizer=content["optimizer"],
        history=_records(content["history"]),
        training_weights=content["training_weights"],
        validations=tuple(from_json(ValidationPoint, point) for point in content["validations"]),
    )


def _header(state: TrainingState, is_end: bool) -> StateHeader:
    run = state.run
    return StateHeader(
        version=VERSION,
        step=state.step,
        identity=run.identity,
        horizon=run.spec.max_train_steps,
        spec=to_json(run.spec),
        ingredients=asdict(run.ingredients),
        dataset_name=run.dataset.name,
        samples=len(run.dataset.samples),
        is_end=is_end,
        validation_loss=_validation_loss(state),
        mixed_precision=(run if state.step > 0 else run.spec).mixed_precision.value,
    )


def _validation_loss(state: TrainingState) -> float | None:
    last = state.validations[-1] if state.validations else None
    measured = last is not None and last.step == state.step and math.isfinite(last.loss)
    return last.loss if last is not None and measured else None


def read_network(path: Path) -> dict[str, Tensor]:
    """The adapters in a state file, and nothing else of it.

    Raises:
        AtelierError: as :func:`read_header`.
    """
    read_header(path)
    with safe_open(path, framework="pt") as file:
        form = json.loads(file.metadata()["form"])
        names = {key: tensor for key, (_, tensor) in form[1]["network"][1].items()}
        return {key: file.get_tensor(name).clone() for key, name in names.items()}


def _content(state: TrainingState) -> dict[str, Any]:
    weights = state.training_weights
    return {
        "network": dict(state.network),
        "training_weights": None if weights is None else dict(weights),
        "optimizer": state.optimizer,
        "history": _rows(state.history),
        "validations": [to_json(point) for point in state.validations],
    }


def _rows(history: Sequence[StepRecord]) -> Tensor:
    """[steps, fields] float64, which holds every number of a record exactly."""
    rows = [astuple(record) for record in history]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(fields(StepRecord)))


def _records(rows: Tensor) -> tuple[StepRecord, ...]:
    """Whole numbers and flags come back as what they were."""
    kinds = [get_type_hints(StepRecord)[f.name] for f in fields(StepRecord)][: rows.shape[1]]
    return tuple(
        StepRecord(*(kind(number) for kind, number in zip(kinds, row, strict=True)))
        for row in rows.tolist()
    )


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of those that share their memory with another, which safetensors refuses."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        shared = address in seen or tensor.untyped_storage().nbytes() != tensor.nbytes
        own[name] = tensor.clone() if shared else tensor
        seen.add(address)
    return own
