"""The node that says what to draw while training goes on."""

from __future__ import annotations

from comfy_api.latest import io

from ...training.errors import require
from ...training.generate.plan import GenerateSpec
from ...training.results.preview_spec import STEP_LIMIT, PreviewSpec, parse_prompts, parse_seeds
from ..graph.checks import verdict
from ..graph.wires import AtelierPreview

CATEGORY = "training/atelier/config"


class TrainingPreviews(io.ComfyNode):
    """Prompts, seeds and the settings of a KSampler -> ATELIER_PREVIEW."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierPreview",
            display_name="Training Previews",
            category=CATEGORY,
            description=(
                "Pictures drawn while training goes on, through ComfyUI's own sampler: what you "
                "see is what the LoRA of that step gives in KSampler. They change nothing of what "
                "is learned, and when one cannot be drawn, training goes on."
            ),
            inputs=[*_what(), *_how(), *_when()],
            outputs=[
                AtelierPreview.Output(
                    "previews",
                    display_name="previews",
                    tooltip="What to draw and when, for a training node.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        prompts: str | None = None,
        seeds: str | None = None,
        width: int | None = None,
        height: int | None = None,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
    ) -> bool | str:
        return verdict(
            preview_spec,
            prompts=prompts,
            seeds=seeds,
            width=width,
            height=height,
            every_n_steps=every_n_steps,
            every_n_epochs=every_n_epochs,
        )

    @classmethod
    def execute(
        cls,
        prompts: str,
        negative: str,
        seeds: str,
        width: int,
        height: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        every_n_steps: int,
        every_n_epochs: int,
        base_row: bool,
        guidance: float,
    ) -> io.NodeOutput:
        spec = preview_spec(
            prompts,
            seeds,
            width,
            height,
            every_n_steps,
            every_n_epochs,
            negative=negative,
            steps=steps,
            cfg=cfg,
            sampler_name=sampler_name,
            scheduler=scheduler,
            base_row=base_row,
            guidance=guidance,
        )
        require_offered(spec)
        return io.NodeOutput(spec)


def preview_spec(
    prompts: str,
    seeds: str,
    width: int,
    height: int,
    every_n_steps: int,
    every_n_epochs: int,
    **others: object,
) -> PreviewSpec:
    """The wire's value from what is in the widgets.

    Raises:
        AtelierError: as the spec.
    """
    return PreviewSpec(
        prompts=parse_prompts(prompts),
        seeds=parse_seeds(seeds),
        width=width,
        height=height,
        every_n_steps=every_n_steps,
        every_n_epochs=every_n_epochs,
        **others,
    )


def require_offered(spec: PreviewSpec | GenerateSpec) -> None:
    """Refuse a sampler or a scheduler, perhaps from a link, that this ComfyUI does not have."""
    from ...training.host.sampling import sampler_names, scheduler_names

    for widget, value, offered in (
        ("sampler_name", spec.sampler_name, sampler_names()),
        ("scheduler", spec.scheduler, scheduler_names()),
    ):
        require(
            value in offered,
            f"{widget} is {value!r}: this ComfyUI has no such one. Choose one of the list of "
            "KSampler.",
        )


def _what() -> list[io.Input]:
    return [
        io.String.Input(
            "prompts",
            default="",
            multiline=True,
            placeholder="one prompt a line, with the trigger word",
            tooltip=(
                "What to draw, one prompt a line. Write the trigger word as in the captions, in a "
                "scene that no training picture shows; add one without it, to see what else "
                "changes. Brackets are weights here, as in CLIP Text Encode."
            ),
        ),
        io.String.Input(
            "negative",
            default="",
            multiline=True,
            placeholder="negative prompt (optional)",
            tooltip="Negative prompt of all pictures, as you would give it to KSampler.",
        ),
        io.String.Input(
            "seeds",
            default="1",
            tooltip=(
                'Noise to start from, such as "1, 2": every prompt is drawn with each of them. '
                "They stay the same for the whole run, so that rows can be compared."
            ),
        ),
        io.Int.Input(
            "width",
            default=512,
            min=64,
            max=16384,
            step=8,
            tooltip=(
                "Of the pictures, px. About the size you train at: 512 for SD1.5, 1024 for SDXL "
                "and Flux; smaller is drawn faster."
            ),
        ),
        io.Int.Input(
            "height", default=512, min=64, max=16384, step=8, tooltip="Likewise, the other side."
        ),
    ]


def _how() -> list[io.Input]:
    from ...training.host.sampling import sampler_names, scheduler_names

    return [
        io.Int.Input(
            "steps",
            default=20,
            min=1,
            max=10_000,
            tooltip=(
                "Steps of the sampler (not of training). What you use in KSampler; 12 are often "
                "enough to judge, 4 to 8 for distilled models."
            ),
        ),
        io.Float.Input(
            "cfg",
            default=7.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip=(
                "How closely pictures follow the prompt, as in KSampler: 7 for SD1.5, 5 for SDXL, "
                "1 for Flux and other distilled models, which also draws twice as fast."
            ),
        ),
        io.Combo.Input(
            "sampler_name",
            options=sampler_names(),
            default="euler",
            tooltip="As in KSampler. euler suits every model and is fast.",
        ),
        io.Combo.Input(
            "scheduler",
            options=scheduler_names(),
            default="normal",
            tooltip="As in KSampler. normal for SD1.5 and SDXL, simple for Flux and SD3.",
        ),
    ]


def _when() -> list[io.Input]:
    return [
        io.Int.Input(
            "every_n_steps",
            default=200,
            min=0,
            max=STEP_LIMIT,
            tooltip=(
                "Draw after every so many training steps. A fifth to a tenth of the run is usual; "
                "training waits while pictures are drawn. 0 = not by steps. The end of the run is "
                "always drawn."
            ),
        ),
        io.Int.Input(
            "every_n_epochs",
            default=0,
            min=0,
            max=STEP_LIMIT,
            tooltip=(
                "Draw after every so many epochs, an epoch being once through all pictures with "
                "their repeats. May be set beside every_n_steps. 0 = not by epochs."
            ),
        ),
        io.Boolean.Input(
            "base_row",
            default=True,
            tooltip=(
                "Draw everything once without the LoRA before training begins: the first row, "
                "which the others are compared with."
            ),
        ),
        io.Float.Input(
            "guidance",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip=(
                "Only for guidance-distilled models such as Flux dev: what Flux Guidance would "
                "give, 3.5 as a rule. 0 = the model's own; other models never see it."
            ),
        ),
    ]
