"""The node that keeps what the base model can do already."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ...training.objective.objective import ObjectiveSpec, PriorSpec, PriorTarget
from ..graph.checks import choice, verdict
from ..graph.wires import AtelierObjective

CATEGORY = "training/atelier/config"


class PriorPreservation(io.ComfyNode):
    """ATELIER_OBJECTIVE -> the same, with the base model as a teacher of what is to be kept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierPriorPreservation",
            display_name="Prior Preservation",
            category=CATEGORY,
            description=(
                "Keeps what the base model can do already: teach it one dog without turning every "
                "dog into that one. The target is the base model's own answer, so no "
                "regularisation pictures are needed."
            ),
            inputs=[
                io.Float.Input(
                    "prior_preservation",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.001,
                    tooltip=(
                        "Weight of keeping the base model's answer to class_prompt, beside "
                        "learning the pictures at 1. 1 is usual; more keeps more and learns more "
                        "slowly, 0 = off. A step takes about two and a half times as long."
                    ),
                ),
                io.String.Input(
                    "class_prompt",
                    default="",
                    placeholder="e.g. a dog (empty = whatever no prompt gives)",
                    tooltip=(
                        "What is to stay as it is, in the words of the captions but without the "
                        "trigger word: captions 'sks dog on a beach', class_prompt 'a dog'. Empty "
                        "keeps what the model paints without a prompt."
                    ),
                ),
                io.Combo.Input(
                    "prior_target",
                    options=PriorTarget,
                    default=PriorTarget.BASE_MODEL,
                    tooltip=(
                        "What regularisation pictures of the dataset are aimed at, if there are "
                        "any. base_model: at the base model's own answer under their captions, "
                        "which keeps it whatever the pictures are like. pictures: at the "
                        "pictures, as other trainers do."
                    ),
                ),
                AtelierObjective.Input(
                    "objective",
                    optional=True,
                    tooltip="From Loss and Noise. Not connected: its defaults.",
                ),
            ],
            outputs=[
                AtelierObjective.Output(
                    "preserving_objective",
                    display_name="objective",
                    tooltip="The objective with prior preservation, for Train LoRA.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, prior_preservation: float | None = None) -> bool | str:
        return verdict(PriorSpec, prior_preservation=prior_preservation)

    @classmethod
    def execute(
        cls,
        prior_preservation: float,
        class_prompt: str,
        prior_target: str,
        objective: ObjectiveSpec | None = None,
    ) -> io.NodeOutput:
        objective = objective or ObjectiveSpec()
        prior = replace(
            objective.prior,
            prior_preservation=prior_preservation,
            class_prompt=class_prompt.strip(),
            prior_target=choice("prior_target", prior_target, PriorTarget),
        )
        return io.NodeOutput(replace(objective, prior=prior))
