"""Previews of a run as it goes: pictures in its folder, which never fail it.

The orchestration calls between two pieces of training, where the host's MODEL is free. What is
drawn has no part in what is learned: training draws no number from torch's own streams, and these
are put back besides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ...training.errors import AtelierError
from ...training.files import write_whole
from ...training.results.contact_sheet import ContactSheet
from ...training.results.lora_file import trained_lora
from ...training.results.preview_files import BASE, PreviewFile, save_preview, saved_previews
from ...training.results.preview_spec import PreviewSpec
from ...training.runs.run import TrainingState
from ..graph.outputs import output_folder
from .browsers import running_graph

SHEET = "previews.png"

log = logging.getLogger("lora_atelier")


class Shown(NamedTuple):
    """A picture as ``RunMonitor.preview`` takes it: by the names under which /view serves it."""

    step: int
    filename: str
    subfolder: str
    folder_type: str = "output"


class PreviewGallery:
    """The previews of one run.

    Args:
        model, clip, vae: of the graph, without the adapter; they stay as they are.
        folder: of the run, below ComfyUI's output folder.
        say: gets what went wrong, in words, and "warning"; ``RunMonitor.message`` is one.
        tick: called after every step of the sampler; raises after a press on Cancel.
    """

    def __init__(
        self,
        spec: PreviewSpec,
        model: Any,
        clip: Any,
        vae: Any,
        folder: Path,
        say: Callable[[str, str], None],
        tick: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.model, self.clip, self.vae = model, clip, vae
        self.folder = folder
        self.say, self.tick = say, tick
        self.sheet = ContactSheet(spec)

    def has_base(self) -> bool:
        """Whether the whole row without the adapter is there from an earlier part of the run."""
        files = [file for file, _ in saved_previews(self.folder, self.spec)]
        return {(f.prompt, f.seed) for f in files if f.step == BASE} == set(self.spec.columns)

    def make(self, state: TrainingState | None, step: int) -> list[Shown]:
        """Draw a row and bring the contact sheet up to date; afterwards no model is loaded.

        Args:
            state: whose adapter is on the models; None: they are drawn as they are.
            step: at which the run is.

        Returns:
            What was written, also when something went wrong after it: that is told, not raised.

        Raises:
            InterruptProcessingException: the host's, after a press on Cancel.
        """
        from ...training.host.sampling import free_memory

        shown: list[Shown] = []
        if not self._attempt(
            lambda: self._draw(state, step, shown), f"The previews at step {step}"
        ):
            free_memory()  # of what the error held on to, too
        if shown:
            self._attempt(self._write_sheet, "The contact sheet of the previews")
        return shown

    def _draw(self, state: TrainingState | None, step: int, shown: list[Shown]) -> None:
        from ...training.host.result import apply_lora
        from ...training.host.sampling import free_memory, sample_previews

        model, clip = self.model, self.clip
        if state is not None:
            model, clip = apply_lora(model, clip, trained_lora(state))
        try:
            for prompt, seed, image in sample_previews(model, clip, self.vae, self.spec, self.tick):
                file = PreviewFile(BASE if state is None else step, prompt, seed)
                path = save_preview(self.folder, file, self.spec, image, running_graph())
                subfolder = path.parent.relative_to(output_folder()).as_posix()
                shown.append(Shown(step, path.name, subfolder))
        finally:
            free_memory()  # the room is for training; and takes the patches out of the weights

    def _write_sheet(self) -> None:
        files = list(saved_previews(self.folder, self.spec))
        write_whole(self.folder / SHEET, self.sheet.draw(files, running_graph()))

    def _attempt(self, work: Callable[[], None], what: str) -> bool:
        """Whatever goes wrong but Cancel becomes a sentence: hours of training are worth more."""
        from ...training.host.progress import is_cancel
        from ...training.host.sampling import ran_out_of_memory

        try:
            work()
        except Exception as error:
            if is_cancel(error):
                raise
            known = isinstance(error, AtelierError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            if ran_out_of_memory(error):
                reason = f"{reason} Choose a smaller width and height on Training Previews."
            sentence = f"{what} could not be made, training goes on: {reason}"
            log.warning("%s", sentence, exc_info=not known)
            self.say(sentence, "warning")
            return False
        return True
