"""The node that draws the same pictures with several LoRAs and strengths, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from time import monotonic
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ...training.generate.records import to_picture
from ...training.results.grid_picture import GridPicture
from ...training.results.grid_spec import (
    LABEL_SIZES,
    PICTURE_SIZES,
    GridLayout,
    GridSpec,
    lora_labels,
    parse_strengths,
    require_picture_size,
)
from ...training.results.preview_spec import PreviewSpec
from ...training.runs.run import TrainingState
from ..config.preview import require_offered
from ..graph.checks import choice, verdict
from ..graph.wires import AtelierPreview, AtelierState
from ..live.progress import duration, show_text
from .grid_loras import grid_loras
from .lora_files import fingerprint_of, named_files


class CompareGrid(io.ComfyNode):
    """Models, what to draw, and LoRAs -> one labelled picture a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierCompareGrid",
            display_name="Compare Grid",
            category="training/atelier/results",
            is_output_node=True,
            description=(
                "Draws every prompt and seed without a LoRA and with each LoRA in each strength, "
                "as LoraLoader and KSampler would, and puts them side by side on a labelled sheet "
                "for each prompt: which checkpoint, and how strong?"
            ),
            inputs=[*_wires(), *_axes(), *_look()],
            outputs=[
                io.Image.Output(
                    "grid",
                    display_name="grid",
                    tooltip="A sheet for each prompt, all of one size, for Save Image.",
                ),
                io.String.Output(
                    "text",
                    display_name="text",
                    tooltip="What was drawn, and which LoRAs do not fit the model.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        lora_files: str | None = None,
        strengths: str | None = None,
        picture_size: int | None = None,
    ) -> bool | str:
        verdicts = (
            verdict(named_files, lora_files),
            verdict(parse_strengths, strengths),
            verdict(require_picture_size, picture_size),
        )
        return next((text for text in verdicts if text is not True), True)

    @classmethod
    def fingerprint_inputs(cls, lora_files: str | None = None, **others: Any) -> str:
        """Runs again when a file was written anew, or one more fits a pattern."""
        return "linked" if lora_files is None else fingerprint_of(lora_files)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        preview: PreviewSpec,
        lora_files: str,
        strengths: str,
        layout: str,
        picture_size: int,
        label_size: float,
        lora: Mapping[str, Tensor] | None = None,
        state: TrainingState | None = None,
    ) -> io.NodeOutput:
        from ...training.host.grid import Grid

        require_offered(preview)
        loras, names = grid_loras(named_files(lora_files), lora, state)
        spec = GridSpec(
            preview,
            lora_labels(names),
            parse_strengths(strengths),
            choice("layout", layout, GridLayout),
            picture_size,
            label_size,
        )
        picture, drawing = GridPicture(spec), _Drawing(spec)
        grid = Grid(model, clip, vae, loras, spec, drawing.step)
        with closing(grid.draw()) as pictures:
            for drawn in pictures:
                small = to_picture(drawn.image[0])
                picture.put(drawn.variant, drawn.prompt, drawn.seed, small)
                drawing.finished(small)
        images = picture.images()
        text = "\n".join([drawing.summary(picture), *grid.notes])
        show_text(text)
        shown = ui.PreviewImage(images, cls=cls).as_dict()
        return io.NodeOutput(images, text, ui=shown | {"text": (text,)})


class _Drawing:
    """The progress of one grid; raises the host's exception after a press on Cancel."""

    def __init__(self, spec: GridSpec) -> None:
        from ...training.host.progress import HostProgress

        self.spec = spec
        self.bar = HostProgress(spec.pictures * spec.preview.steps)
        self.done = self._steps = 0
        self._begin = self._told = monotonic()

    def step(self) -> None:
        """The sampler has taken one; some take another number of them than they are told."""
        columns = len(self.spec.preview.columns)
        most = (self.done // columns + 1) * columns * self.spec.preview.steps
        self._steps = min(self._steps + 1, most)
        self.bar.update(self._steps)
        if monotonic() - self._told > 1:
            self._tell()

    def finished(self, newest: Any) -> None:
        """A picture is on its sheet."""
        self.done += 1
        self._steps = max(self._steps, self.done * self.spec.preview.steps)
        self.bar.update(self._steps)
        self.bar.show(newest)

    def summary(self, picture: GridPicture) -> str:
        """For the node."""
        sheets = len(self.spec.preview.prompts)
        width, height = picture.layout.size
        lines = [
            f"{self.done} pictures in {duration(monotonic() - self._begin)} on {sheets} "
            f"{'sheet' if sheets == 1 else 'sheets'} of {width} × {height} px"
        ]
        preview = self.spec.preview
        wanted = self.spec.picture_size or max(preview.width, preview.height)
        if picture.layout.longer < wanted:
            lines.append(f"Pictures are {picture.layout.longer} px there: more has no room")
        return "\n".join(lines)

    def _tell(self) -> None:
        total = self.spec.pictures * self.spec.preview.steps
        self._told = monotonic()
        left = (self._told - self._begin) / self._steps * (total - self._steps)
        number = min(self._steps // self.spec.preview.steps + 1, self.spec.pictures)
        show_text(f"picture {number}/{self.spec.pictures} · {duration(left)} left")


def _wires() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The base model, without the LoRAs that are compared."),
        io.Clip.Input("clip", tooltip="Its text encoder; LoRAs that change it do so here too."),
        io.Vae.Input("vae", tooltip="Its VAE, which makes pictures of what the sampler gives."),
        AtelierPreview.Input(
            "preview",
            tooltip=(
                "From Training Previews: prompts, seeds, size and the settings of the sampler. "
                "When it draws, does not matter here. The same one for training and grid makes "
                "pictures that can be compared."
            ),
        ),
    ]


def _axes() -> list[io.Input]:
    return [
        io.String.Input(
            "lora_files",
            default="",
            multiline=True,
            placeholder="my_style-*\noutput/atelier/runs/<run>/lora/*",
            tooltip=(
                "LoRA files, one a line: names as LoraLoader lists them, or below output/atelier. "
                "A * stands for any letters: my_style-* is all checkpoints of that name. May stay "
                "empty when lora or state is connected."
            ),
        ),
        io.String.Input(
            "strengths",
            default="1",
            tooltip=(
                'How strong each LoRA is, such as "0.5, 0.75, 1", for model and text encoder '
                "alike. 1 is as it was trained; if that is too much, a lower one may be just right."
            ),
        ),
        io.Combo.Input(
            "layout",
            options=GridLayout,
            default=GridLayout.STRENGTHS_ACROSS,
            tooltip=(
                "strengths_across: a row for each seed, strengths side by side. strengths_down: a "
                "column for each LoRA, strengths one below the other; better for many checkpoints."
            ),
        ),
    ]


def _look() -> list[io.Input]:
    return [
        io.Int.Input(
            "picture_size",
            default=384,
            min=0,
            max=PICTURE_SIZES[1],
            step=32,
            tooltip=(
                "Longer side of each picture on the sheet, px; 0 = as large as it was drawn. "
                "Smaller when the sheet would become too large."
            ),
        ),
        io.Float.Input(
            "label_size",
            default=1.0,
            min=LABEL_SIZES[0],
            max=LABEL_SIZES[1],
            step=0.1,
            round=0.01,
            tooltip="Factor for all letters. 1 suits the sheet; more for a sheet shown very small.",
        ),
        io.LoraModel.Input(
            "lora", optional=True, tooltip="A LoRA of the graph, such as that of Train LoRA."
        ),
        AtelierState.Input(
            "state",
            optional=True,
            tooltip=(
                "From Train LoRA or Train Steps: all LoRAs that the run has saved (save_lora "
                "of Training Checkpoints), then the state itself."
            ),
        ),
    ]
