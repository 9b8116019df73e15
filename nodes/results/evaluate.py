"""The node that says whether a LoRA is good, and which checkpoint and strength to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ...training.evaluation.spec import IMAGES, parse_evaluated_strengths, require_images
from ...training.results.preview_spec import PreviewSpec
from ...training.runs.run import TrainingState
from ..config.preview import require_offered
from ..graph.checks import verdict
from ..graph.wires import AtelierPreview, AtelierState
from ..live.progress import show_text
from .lora_files import fingerprint_of, named_files

if TYPE_CHECKING:
    from ...training.evaluation.rule import Recommendation


class EvaluateLoRA(io.ComfyNode):
    """A run and its LoRAs -> which to take, how strong, and why."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierEvaluate",
            display_name="Evaluate LoRA",
            category="training/atelier/results",
            is_output_node=True,
            description=(
                "Is it good, and when should training have stopped? Measures every checkpoint in "
                "several strengths: the loss on held-out pictures, how far its pictures have come "
                "from the base to the training pictures, whether prompts still come through, and "
                "whether training pictures are copied. Recommends one, with its reasons."
            ),
            inputs=[*_wires(), *_what(), *_eyes()],
            outputs=_outputs(),
        )

    @classmethod
    def validate_inputs(
        cls,
        lora_files: str | None = None,
        strengths: str | None = None,
        images_per_checkpoint: int | None = None,
    ) -> bool | str:
        verdicts = (
            verdict(named_files, lora_files),
            verdict(parse_evaluated_strengths, strengths),
            verdict(require_images, images_per_checkpoint),
        )
        return next((text for text in verdicts if text is not True), True)

    @classmethod
    def fingerprint_inputs(cls, lora_files: str | None = None, **others: Any) -> str:
        """Runs again when a file was written anew, or one more fits a pattern."""
        return "linked" if lora_files is None else fingerprint_of(lora_files)

    @classmethod
    def execute(
        cls,
        state: TrainingState,
        preview: PreviewSpec,
        lora_files: str,
        prompts: str,
        strengths: str,
        images_per_checkpoint: int,
        clip_vision: Any = None,
    ) -> io.NodeOutput:
        from .evaluated_loras import listed_loras
        from .evaluating import evaluate

        require_offered(preview)
        loras = listed_loras(named_files(lora_files), state)
        found = evaluate(
            state,
            loras,
            preview,
            prompts,
            parse_evaluated_strengths(strengths),
            images_per_checkpoint,
            clip_vision,
        )
        step, strength, lora = _taken(found.recommendation, loras)
        show_text(found.report)
        shown = ui.PreviewImage(found.picture, cls=cls).as_dict()
        return io.NodeOutput(
            found.picture,
            found.report,
            step,
            strength,
            lora,
            ui=shown | {"text": (found.report,)},
        )


def _taken(recommendation: Recommendation, loras: list[Any]) -> tuple[int, float, Any]:
    """Step, strength and LoRA; without a good one, whatever wants the LoRA is told so."""
    from comfy_execution.graph_utils import ExecutionBlocker

    from ...training.evaluation.report import headline

    chosen = recommendation.chosen
    if chosen is None:
        told = f"Evaluate LoRA recommends no LoRA. {headline(recommendation)}."
        return 0, 0.0, ExecutionBlocker(told)
    candidate = chosen.row.candidate
    return candidate.step, candidate.strength, loras[candidate.lora].read()


def _wires() -> list[io.Input]:
    return [
        AtelierState.Input(
            "state",
            tooltip=(
                "From Train LoRA or Train Steps: brings the base model, the pictures and the "
                "checkpoints of the run. Pictures of role validation make the verdict far surer: "
                "set validation_fraction 0.1 on Load Image Dataset before you train."
            ),
        ),
        AtelierPreview.Input(
            "preview",
            tooltip=(
                "From Training Previews: size, sampler, steps, cfg, negative prompt and seeds of "
                "the pictures. Its prompts are not used: write them below, or leave those to the "
                "captions."
            ),
        ),
    ]


def _what() -> list[io.Input]:
    return [
        io.String.Input(
            "lora_files",
            default="",
            multiline=True,
            placeholder="empty = the checkpoints of this run and its end",
            tooltip=(
                "Empty: every checkpoint of the run that is still on disk, and the state itself; "
                "save_every_n_steps and save_last_n of Training Checkpoints say which are. Or LoRA "
                "files, one a line, as in Compare Grid; * stands for any letters."
            ),
        ),
        io.String.Input(
            "prompts",
            default="",
            multiline=True,
            placeholder="empty = captions of the validation pictures",
            tooltip=(
                "What is drawn, one prompt a line, with the trigger word. Empty: captions of the "
                "validation pictures, or of training pictures when there are none. Five or more "
                "different ones tell best whether prompts still come through."
            ),
        ),
        io.String.Input(
            "strengths",
            default="0.6, 0.8, 1",
            tooltip=(
                "Every checkpoint is measured in each of them. A late one is often best below 1; "
                "if the LoRA seems weak, add 1.2. Each strength takes as long again."
            ),
        ),
        io.Int.Input(
            "images_per_checkpoint",
            default=8,
            min=IMAGES[0],
            max=IMAGES[1],
            tooltip=(
                "Pictures of each checkpoint in each strength, and of the base. 8 show what is "
                "clear; 16 or more are needed to tell checkpoints apart that are close."
            ),
        ),
    ]


def _eyes() -> list[io.Input]:
    return [
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip=(
                "Image encoder (Load CLIP Vision) in whose eyes pictures are compared. Needed for "
                "a person or a thing; without it only colours, edges, texture and layout are "
                "seen, which is enough for a style at most."
            ),
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Image.Output(
            "report_picture",
            display_name="report_picture",
            tooltip="Curves, table, pictures of base and LoRA, and copies beside their originals.",
        ),
        io.String.Output(
            "report",
            display_name="report",
            tooltip="The recommendation, why, what to try otherwise, and every figure; in words.",
        ),
        io.Int.Output(
            "recommended_step",
            display_name="recommended_step",
            tooltip="When training should have stopped; 0 when nothing is good enough, or unknown.",
        ),
        io.Float.Output(
            "recommended_strength",
            display_name="recommended_strength",
            tooltip="For strength_model of Apply Trained LoRA; 0 when nothing is good enough.",
        ),
        io.LoraModel.Output(
            "recommended_lora",
            display_name="recommended_lora",
            tooltip=(
                "The recommended checkpoint, for Save LoRA or Apply Trained LoRA. When nothing is "
                "good enough, nodes that want it do not run and say why."
            ),
        ),
    ]
