"""The node that chooses the optimizer and its learning rates."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ...training.optimizers.advice import lr_advice
from ...training.optimizers.optimizer import OptimizerSpec, OptimizerType, check_optimizer
from ..graph.checks import choice, verdict
from ..graph.wires import AtelierOptimizer
from ..live.progress import show_text

CATEGORY = "training/atelier/config"

log = logging.getLogger("lora_atelier")


class Optimizer(io.ComfyNode):
    """Optimizer and learning rate -> ATELIER_OPTIMIZER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierOptimizer",
            display_name="Optimizer",
            category=CATEGORY,
            description="How the LoRA's weights follow the gradient, and how fast.",
            inputs=[
                io.Combo.Input(
                    "optimizer_type",
                    options=OptimizerType,
                    default=OptimizerType.ADAMW,
                    tooltip=(
                        "AdamW is the safe choice. AdamW8bit: the same results with a quarter of "
                        "the optimizer's memory; PagedAdamW8bit moves it to RAM when the card is "
                        "full. Adafactor and CAME need little memory too. Prodigy finds the "
                        "learning rate itself (unet_lr 1). AdamWScheduleFree needs no schedule. "
                        "Lion, Muon and SGD are for the curious. pytorch_optimizer: any optimizer "
                        "of that package, by optimizer_name."
                    ),
                ),
                io.Float.Input(
                    "unet_lr",
                    default=1e-4,
                    min=0.0,
                    max=10.0,
                    step=1e-5,
                    round=1e-9,
                    tooltip=(
                        "Learning rate of the diffusion model's adapters. 1e-4 is a good start for "
                        "AdamW, 3e-5 for Lion, 1 for Prodigy. Loss that jumps or turns NaN: lower "
                        "it. Nothing learned after a thousand steps: raise it, at most threefold "
                        "at a time."
                    ),
                ),
                io.Float.Input(
                    "weight_decay",
                    default=0.01,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    round=1e-6,
                    tooltip=(
                        "Pulls the weights towards zero a little at every step; restrains "
                        "overfitting. 0.01 is usual, 0.1 is strong, 0 = off."
                    ),
                ),
                io.Float.Input(
                    "max_grad_norm",
                    default=1.0,
                    min=0.0,
                    max=1e6,
                    step=0.1,
                    round=1e-4,
                    tooltip=(
                        "Gradients longer than this are shortened to it, which keeps one odd "
                        "picture from throwing the run off. 1 is usual, 0 = off."
                    ),
                ),
                io.Float.Input(
                    "loraplus_lr_ratio",
                    default=1.0,
                    min=0.001,
                    max=1000.0,
                    step=1.0,
                    round=0.001,
                    tooltip=(
                        "LoRA+: the up matrices, which start at zero, learn this many times "
                        "faster. 4 to 16 learns sooner and needs a lower unet_lr; 1 = off."
                    ),
                ),
                io.String.Input(
                    "betas",
                    default="",
                    placeholder="0.9, 0.999",
                    tooltip=(
                        "How long the optimizer remembers gradients and their squares, one number "
                        "each. Smaller second numbers (0.99) follow changes sooner. Empty = the "
                        "optimizer's own; SGD and Adafactor have none."
                    ),
                ),
                io.String.Input(
                    "eps",
                    default="",
                    placeholder="1e-8",
                    tooltip=(
                        "Small number that keeps the optimizer from dividing by zero. Larger "
                        "damps weights with tiny gradients. Empty = the optimizer's own."
                    ),
                ),
                io.String.Input(
                    "optimizer_args",
                    default="",
                    multiline=True,
                    placeholder="name=value name=value",
                    tooltip=(
                        "More of the optimizer's own arguments, such as d_coef=2 for Prodigy or "
                        "momentum=0.95 for SGD. A name it does not know is refused, with a list of "
                        "those it knows. Empty = its own choices."
                    ),
                ),
                io.String.Input(
                    "optimizer_name",
                    default="",
                    placeholder="for pytorch_optimizer, e.g. soap",
                    tooltip=(
                        "Which optimizer of the package pytorch-optimizer, e.g. soap, adan or "
                        "ademamix. Only with optimizer_type pytorch_optimizer; else leave it empty."
                    ),
                ),
                io.Float.Input(
                    "ema_decay",
                    default=0.0,
                    min=0.0,
                    max=0.999999,
                    step=0.001,
                    round=1e-6,
                    tooltip=(
                        "The LoRA becomes a moving average over the last steps, which smooths out "
                        "their jitter: 0.99 over about 100 steps, 0.999 over about 1000. Stay well "
                        "below the length of the run; 0 = off, the weights of the last step."
                    ),
                ),
                io.Float.Input(
                    "text_encoder_lr",
                    default=5e-5,
                    min=0.0,
                    max=10.0,
                    step=1e-5,
                    round=1e-9,
                    optional=True,
                    tooltip=(
                        "Learning rate of the text encoders' adapters, which count only where "
                        "text_encoders on LoRA Network is clip or all. Half of unet_lr or less: "
                        "they overfit sooner. The same as unet_lr for Prodigy."
                    ),
                ),
            ],
            outputs=[
                AtelierOptimizer.Output(
                    "optimizer",
                    display_name="optimizer",
                    tooltip="Optimizer settings, for Train LoRA.",
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        optimizer_type: str | None = None,
        unet_lr: float | None = None,
        weight_decay: float | None = None,
        max_grad_norm: float | None = None,
        loraplus_lr_ratio: float | None = None,
        betas: str | None = None,
        eps: str | None = None,
        optimizer_args: str | None = None,
        optimizer_name: str | None = None,
        ema_decay: float | None = None,
        text_encoder_lr: float | None = 5e-5,
    ) -> bool | str:
        return verdict(
            checked_optimizer,
            optimizer_type,
            unet_lr,
            weight_decay,
            max_grad_norm,
            loraplus_lr_ratio,
            betas,
            eps,
            optimizer_args,
            optimizer_name,
            ema_decay,
            text_encoder_lr,
        )

    @classmethod
    def execute(cls, optimizer_type: str, **widgets: Any) -> io.NodeOutput:
        spec = checked_optimizer(optimizer_type, **widgets)
        if advice := lr_advice(spec):
            log.warning(advice)
            show_text(advice)
        return io.NodeOutput(spec)


def checked_optimizer(optimizer_type: str, *widgets: Any, **by_name: Any) -> OptimizerSpec:
    """The settings, after they were tried.

    Raises:
        AtelierError: a value, an argument, a name or a missing package.
    """
    kind = choice("optimizer_type", optimizer_type, OptimizerType)
    spec = OptimizerSpec(kind, *widgets, **by_name)
    check_optimizer(spec)
    return spec
