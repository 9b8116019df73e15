"""States and LoRAs that a run leaves on disk while it trains, and the way back from them.

A run's folder holds ``state/step00000200.safetensors`` and, where wanted,
``lora/<name>-step00000200.safetensors``. Which of them stay is told by the files themselves, so it
does not matter how often the process was killed in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ..errors import AtelierError, require_number
from ..results.lora_file import SavePrecision, save_lora, trained_lora
from .run import TrainingRun, TrainingState
from .state_file import StateHeader, load_state, read_header, save_state

log = logging.getLogger("lora_atelier")


class OnSaveError(str, Enum):
    """What becomes of a run when a checkpoint cannot be written."""

    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True)
class CheckpointSpec:
    """When checkpoints are written, and which stay. Steps, epochs and minutes count alike: whatever
    comes first; 0 = not by that."""

    save_every_n_steps: int = 0
    save_every_n_epochs: int = 0
    save_every_n_minutes: float = 10.0
    save_last_n: int = 1
    """How many of those written on the way stay; the end of a node's work always stays."""
    keep_best: bool = True
    """Also the one with the lowest loss on the validation pictures."""
    save_lora: bool = False
    """A LoRA file beside each state."""
    tensorboard: bool = False
    save_precision: SavePrecision = SavePrecision.FP16
    on_save_error: OnSaveError = OnSaveError.CONTINUE

    def __post_init__(self) -> None:
        never = "0 = never by this."
        require_number("save_every_n_steps", self.save_every_n_steps, 0, 10_000_000, never)
        require_number("save_every_n_epochs", self.save_every_n_epochs, 0, 10_000_000, never)
        require_number("save_every_n_minutes", self.save_every_n_minutes, 0, 100_000, never)
        require_number("save_last_n", self.save_last_n, 1, 10_000, "1 to 5 is usual.")


class Checkpoints:
    """The files of one run.

    Args:
        run: which one.
        folder: its own.
        clock: seconds; for the interval in minutes.
    """

    def __init__(
        self,
        run: TrainingRun,
        folder: Path,
        spec: CheckpointSpec,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run = run
        self.folder = folder
        self.spec = spec
        self._clock = clock
        self._saved_at = clock()
        self._left_over: list[Path] = []
        self._remove_partial_files()

    def due(self, step: int) -> bool:
        """Whether to save after this step."""
        spec = self.spec
        minutes = (self._clock() - self._saved_at) / 60
        by_epochs = spec.save_every_n_epochs
        return (
            (spec.save_every_n_steps > 0 and step % spec.save_every_n_steps == 0)
            or (by_epochs > 0 and _ends_epoch(self.run, step, by_epochs))
            or 0 < spec.save_every_n_minutes <= minutes
        )

    def is_best(self, state: TrainingState) -> bool:
        """Whether its loss on the validation pictures is lower than that of any state on disk."""
        if not self.spec.keep_best or not state.validations:
            return False
        losses = [h.validation_loss for _, h in self._own() if h.validation_loss is not None]
        last = state.validations[-1]
        return last.step == state.step > 0 and all(last.loss < loss for loss in losses)

    def save(self, state: TrainingState, is_end: bool = False, goes_back: bool = False) -> Path:
        """Write a checkpoint, then remove those that need not stay.

        Args:
            goes_back: the run goes on from here, whatever it did later before.

        Returns:
            The state's file.

        Raises:
            AtelierError: it could not be written; the older ones are as they were.
        """
        self._saved_at = self._clock()
        path = self.folder / "state" / f"step{state.step:08d}.safetensors"
        save_state(path, state, is_end)
        self._remove([left for left in self._left_over if left != path])
        self._left_over = []
        if goes_back:
            self._remove([p for p, h in self._own() if h.step > state.step])
        try:
            if self.spec.save_lora:
                save_lora(self.lora_path(state), trained_lora(state), self.spec.save_precision)
        finally:
            self._prune(besides=path)
        return path

    def lora_path(self, state: TrainingState) -> Path:
        """Where the LoRA of a state lies, or would lie."""
        return self._lora_path(state.step)

    def _lora_path(self, step: int) -> Path:
        return self.folder / "lora" / f"{self.folder.name}-step{step:08d}.safetensors"

    def newest(self, first: int, last: int) -> TrainingState | None:
        """The latest whole state of this very run after step ``first`` and up to ``last``.

        One whose schedule was laid out for another number of steps is another run's, unless this
        one goes on beyond them: then it is that run, extended.
        """
        horizon = self.run.spec.max_train_steps
        for path, header in reversed(self._states()):
            same = bool(self.run.identity) and header.identity == self.run.identity
            extended = header.step <= header.horizon < min(horizon, last)
            if same and (header.horizon == horizon or extended) and first < header.step <= last:
                return load_state(path, self.run)
        return None

    def start_again(self, after: int) -> int:
        """The run begins anew after step ``after``: its first checkpoint replaces those of later
        steps, which until then stay where they are.

        Returns:
            How many there are.
        """
        self._left_over = [p for p, h in self._states() if h.step > after]
        return len(self._left_over)

    def _states(self) -> list[tuple[Path, StateHeader]]:
        """Whole states by their steps; what is damaged is named in the log and passed over."""
        found = []
        for path in sorted((self.folder / "state").glob("step*.safetensors")):
            try:
                found.append((path, read_header(path)))
            except AtelierError as error:
                log.warning("A checkpoint is passed over: %s", error)
        return sorted(found, key=lambda item: item[1].step)

    def _own(self) -> list[tuple[Path, StateHeader]]:
        """Those of this run with its schedule, written on the way."""
        horizon = self.run.spec.max_train_steps
        return [
            (path, header)
            for path, header in self._states()
            if not header.is_end
            and header.identity == self.run.identity
            and header.horizon == horizon
            and path not in self._left_over
        ]

    def _prune(self, besides: Path) -> None:
        states = self._own()
        measured = [(h.validation_loss, p) for p, h in states if h.validation_loss is not None]
        stay = {besides, *(path for path, _ in states[-self.spec.save_last_n :])}
        if self.spec.keep_best and measured:
            stay.add(min(measured)[1])
        self._remove([path for path, _ in states if path not in stay])

    def _remove(self, states: Iterable[Path]) -> None:
        for path in states:
            step = int(path.stem.removeprefix("step"))
            # Without save_lora the only LoRAs there are those that Cancel has left.
            for file in (path, *([self._lora_path(step)] if self.spec.save_lora else [])):
                with suppress(OSError):  # none, or open in another program: the next time
                    file.unlink()

    def _remove_partial_files(self) -> None:
        """What a killed process was writing; a file of the last hour may be another's at work."""
        for partial in self.folder.glob("*/.*.partial"):
            with suppress(OSError):
                if time.time() - partial.stat().st_mtime > 3600:
                    partial.unlink()


def _ends_epoch(run: TrainingRun, step: int, every: int) -> bool:
    """Whether the step completes another ``every`` epochs."""
    batches = run.plan.batches_per_epoch * every
    accumulation = run.spec.gradient_accumulation_steps
    return step * accumulation // batches > (step - 1) * accumulation // batches
