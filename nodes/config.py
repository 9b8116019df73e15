"""Nodes that hold settings. Each is optional on Train LoRA: the defaults work."""

from __future__ import annotations

from comfy_api.latest import io

from ..training.lr_scheduler import LRSchedulerSpec, LRSchedulerType
from ..training.network import MAX_NETWORK_DIM, NetworkSpec
from ..training.optimizer import OptimizerSpec, OptimizerType
from .checks import verdict
from .wires import AtelierNetwork, AtelierOptimizer, AtelierScheduler

CATEGORY = "training/atelier/config"


class LoRANetwork(io.ComfyNode):
    """Rank and alpha -> ATELIER_NETWORK."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierNetwork",
            display_name="LoRA Network",
            category=CATEGORY,
            description=(
                "Size of the LoRA. It is put on the attention and MLP layers of the diffusion "
                "model, and starts as exactly the base model."
            ),
            inputs=[
                io.Int.Input(
                    "network_dim",
                    default=16,
                    min=1,
                    max=MAX_NETWORK_DIM,
                    tooltip=(
                        "Rank: how much the LoRA can hold. 8 to 16 for a light style, 32 for an "
                        "anime style, 128 for a character or a complex style. Larger files, more "
                        "memory, and sooner overfitted on few pictures."
                    ),
                ),
                io.Float.Input(
                    "network_alpha",
                    default=16.0,
                    min=0.001,
                    max=10000.0,
                    step=0.5,
                    round=0.001,
                    tooltip=(
                        "The LoRA's effect is scaled by network_alpha / network_dim. Half the rank "
                        "or the rank are usual; a smaller alpha works like a lower learning rate. "
                        "Above the rank it amplifies and easily diverges."
                    ),
                ),
            ],
            outputs=[
                AtelierNetwork.Output(
                    "network", display_name="network", tooltip="Network settings, for Train LoRA."
                )
            ],
        )

    @classmethod
    def validate_inputs(
        cls, network_dim: int | None = None, network_alpha: float | None = None
    ) -> bool | str:
        return verdict(NetworkSpec, network_dim, network_alpha)

    @classmethod
    def execute(cls, network_dim: int, network_alpha: float) -> io.NodeOutput:
        return io.NodeOutput(NetworkSpec(network_dim, network_alpha))


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
                        "AdamW is the safe choice. AdamW8bit keeps its memory in 8 bits: the same "
                        "results with a quarter of the optimizer's memory, worth it at high ranks."
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
                        "AdamW. Loss that jumps or turns NaN: lower it. Nothing learned after a "
                        "thousand steps: raise it, at most threefold at a time."
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
        unet_lr: float | None = None,
        weight_decay: float | None = None,
        max_grad_norm: float | None = None,
    ) -> bool | str:
        return verdict(OptimizerSpec, OptimizerType.ADAMW, unet_lr, weight_decay, max_grad_norm)

    @classmethod
    def execute(
        cls, optimizer_type: str, unet_lr: float, weight_decay: float, max_grad_norm: float
    ) -> io.NodeOutput:
        kind = OptimizerType(optimizer_type)
        return io.NodeOutput(OptimizerSpec(kind, unet_lr, weight_decay, max_grad_norm))


class LRScheduler(io.ComfyNode):
    """Shape of the learning rate over the run -> ATELIER_SCHEDULER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierScheduler",
            display_name="LR Scheduler",
            category=CATEGORY,
            description="How the learning rate moves from the first step to the last.",
            inputs=[
                io.Combo.Input(
                    "lr_scheduler",
                    options=LRSchedulerType,
                    default=LRSchedulerType.COSINE,
                    tooltip=(
                        "cosine falls smoothly to zero at the last step and ends calmly; constant "
                        "keeps the rate, so that the last steps still learn as much as the first."
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
                        "Share of the steps in which the rate climbs from 0 to its full value. "
                        "0.05 (5 %) for small sets, 0.1 to 0.2 for very large ones, 0 = none."
                    ),
                ),
            ],
            outputs=[
                AtelierScheduler.Output(
                    "scheduler",
                    display_name="scheduler",
                    tooltip="Schedule settings, for Train LoRA.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, lr_warmup_ratio: float | None = None) -> bool | str:
        return verdict(LRSchedulerSpec, LRSchedulerType.COSINE, lr_warmup_ratio)

    @classmethod
    def execute(cls, lr_scheduler: str, lr_warmup_ratio: float) -> io.NodeOutput:
        return io.NodeOutput(LRSchedulerSpec(LRSchedulerType(lr_scheduler), lr_warmup_ratio))
