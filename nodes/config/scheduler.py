"""The node that shapes the learning rate over the run."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ...training.optimizers.lr_chart import draw_lr_chart, lr_curve
from ...training.optimizers.lr_scheduler import LRSchedulerSpec, LRSchedulerType, WarmupType
from ..graph.checks import choice, verdict
from ..graph.wires import AtelierScheduler

CATEGORY = "training/atelier/config"


class LRScheduler(io.ComfyNode):
    """Shape of the learning rate over the run -> ATELIER_SCHEDULER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierScheduler",
            display_name="LR Scheduler",
            category=CATEGORY,
            description=(
                "How the learning rate moves from the first step to the last. The node shows the "
                "curve."
            ),
            inputs=[
                io.Combo.Input(
                    "lr_scheduler",
                    options=LRSchedulerType,
                    default=LRSchedulerType.COSINE,
                    tooltip=(
                        "cosine falls smoothly to zero at the last step and ends calmly; constant "
                        "keeps the rate, so that the last steps still learn as much as the first. "
                        "linear and polynomial fall on other curves, inverse_sqrt falls slowly and "
                        "never ends, cosine_with_restarts starts again three times, "
                        "warmup_stable_decay keeps the rate and falls in the last tenth, "
                        "cosine_with_min_lr ends at a tenth, reduce_lr_on_plateau halves the rate "
                        "when the loss stops falling."
                    ),
                ),
                io.Float.Input(
                    "lr_warmup_ratio",
                    default=0.05,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=1e-4,
                    tooltip=(
                        "For lr_warmup ratio: share of the steps in which the rate climbs from 0 "
                        "to its full value. 0.05 (5 %) for small sets, 0.1 to 0.2 for very large "
                        "ones, 0 = none."
                    ),
                ),
                io.Combo.Input(
                    "lr_warmup",
                    options=WarmupType,
                    default=WarmupType.RATIO,
                    tooltip=(
                        "Where the length of the warm-up comes from: ratio (lr_warmup_ratio), "
                        "steps (lr_warmup_steps), or auto: 5 % of the steps for runs that look at "
                        "up to 10,000 pictures, rising to 10 % at a million, at most 20 %."
                    ),
                ),
                io.Int.Input(
                    "lr_warmup_steps",
                    default=50,
                    min=0,
                    max=10_000_000,
                    tooltip=(
                        "For lr_warmup steps: optimizer steps in which the rate climbs from 0 to "
                        "its full value. 50 to 500 is usual, 0 = none."
                    ),
                ),
                io.String.Input(
                    "lr_scheduler_args",
                    default="",
                    placeholder="name=value, e.g. num_cycles=3",
                    tooltip=(
                        "The schedule's own arguments: num_cycles=4 for cosine_with_restarts, "
                        "power=3 for polynomial, num_decay_steps=200 for warmup_stable_decay, "
                        "min_lr_rate=0.2 for cosine_with_min_lr, patience=200 factor=0.3 for "
                        "reduce_lr_on_plateau. Unknown names are refused. Empty = the defaults."
                    ),
                ),
                io.Int.Input(
                    "preview_steps",
                    default=1000,
                    min=1,
                    max=10_000_000,
                    tooltip=(
                        "Length of the run in the picture, at one picture a step; decides nothing "
                        "else. Give it the max_train_steps of Train LoRA to see the real curve, "
                        "before you train: any change here runs the nodes after it again."
                    ),
                ),
            ],
            outputs=[
                AtelierScheduler.Output(
                    "scheduler",
                    display_name="scheduler",
                    tooltip="Schedule settings, for Train LoRA.",
                ),
                io.Image.Output(
                    "picture",
                    display_name="picture",
                    tooltip="The curve: rate of every step in per cent of unet_lr.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        lr_scheduler: str | None = None,
        lr_warmup_ratio: float | None = None,
        lr_warmup: str | None = None,
        lr_warmup_steps: int | None = None,
        lr_scheduler_args: str | None = None,
        preview_steps: int | None = None,
    ) -> bool | str:
        return verdict(
            _checked,
            lr_scheduler,
            lr_warmup_ratio,
            lr_warmup,
            lr_warmup_steps,
            lr_scheduler_args,
            preview_steps,
        )

    @classmethod
    def execute(
        cls,
        lr_scheduler: str,
        lr_warmup_ratio: float,
        lr_warmup: str,
        lr_warmup_steps: int,
        lr_scheduler_args: str,
        preview_steps: int,
    ) -> io.NodeOutput:
        spec = _spec(lr_scheduler, lr_warmup_ratio, lr_warmup, lr_warmup_steps, lr_scheduler_args)
        picture = draw_lr_chart(spec, preview_steps, samples=preview_steps).unsqueeze(0)
        return io.NodeOutput(spec, picture, ui=ui.PreviewImage(picture, cls=cls))


def _spec(
    lr_scheduler: str,
    lr_warmup_ratio: float,
    lr_warmup: str,
    lr_warmup_steps: int,
    lr_scheduler_args: str,
) -> LRSchedulerSpec:
    return LRSchedulerSpec(
        choice("lr_scheduler", lr_scheduler, LRSchedulerType),
        lr_warmup_ratio,
        choice("lr_warmup", lr_warmup, WarmupType),
        lr_warmup_steps,
        lr_scheduler_args,
    )


def _checked(*widgets: str | float) -> None:
    *settings, preview_steps = widgets
    lr_curve(_spec(*settings), preview_steps, samples=preview_steps)
