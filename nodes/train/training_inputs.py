"""What the nodes that begin a run have in common: their inputs, and the settings they make."""

from __future__ import annotations

from comfy_api.latest import io

from ...training.base_model.precision import MixedPrecision
from ...training.network.build import NetworkSpec
from ...training.objective.objective import ObjectiveSpec
from ...training.optimizers.lr_scheduler import LRSchedulerSpec
from ...training.optimizers.optimizer import OptimizerSpec
from ...training.runs.adapter_precision import AdapterPrecision
from ...training.runs.guard import OnDivergence
from ...training.runs.run import TrainingSpec
from ..graph.checks import choice
from ..graph.wires import (
    AtelierCheckpoints,
    AtelierDataset,
    AtelierNetwork,
    AtelierObjective,
    AtelierOptimizer,
    AtelierPreview,
    AtelierScheduler,
    AtelierState,
)
from .run_in_graph import Resume


def result_outputs() -> list[io.Output]:
    """What every node that trains gives."""
    return [
        AtelierState.Output(
            "trained_state",
            display_name="state",
            tooltip="The run frozen at its last step: weights, optimizer, history.",
        ),
        io.Model.Output(
            "trained_model",
            display_name="model",
            tooltip="The base model with the LoRA at strength 1.",
        ),
        io.Clip.Output(
            "trained_clip", display_name="clip", tooltip="The text encoder to use with it."
        ),
        io.LoraModel.Output("lora", display_name="lora", tooltip="The LoRA alone, for Save LoRA."),
        io.LossMap.Output(
            "loss_map",
            display_name="loss_map",
            tooltip="The loss of every step, for Loss Chart.",
        ),
    ]


def keeping_inputs() -> list[io.Input]:
    """How a node that trains deals with what lies on disk."""
    return [
        io.Combo.Input(
            "resume",
            options=Resume,
            default=Resume.RESUME,
            optional=True,
            tooltip=(
                "resume: after Cancel, a crash or a restart, the same graph goes on from its last "
                "checkpoint, and a finished run with more steps is extended. start_again: forgets "
                "the checkpoints of this run and begins anew."
            ),
        ),
        AtelierCheckpoints.Input(
            "checkpoints",
            optional=True,
            tooltip=(
                "From Training Checkpoints. Not connected: a checkpoint every 10 minutes, of "
                "which the last stays, and one at the end and on Cancel."
            ),
        ),
        AtelierPreview.Input(
            "preview",
            optional=True,
            tooltip=(
                "From Training Previews: pictures with the LoRA as it stands, while it trains. Not "
                "connected: none."
            ),
        ),
    ]


def run_inputs() -> list[io.Input]:
    """Models, dataset and settings, in the order in which workflows keep their values."""
    return [
        io.Model.Input(
            "model",
            tooltip=(
                "Base model. LoRAs and samplings already on it stay, are trained on top "
                "of, and are not part of the new LoRA."
            ),
        ),
        io.Clip.Input(
            "clip",
            optional=True,
            tooltip=(
                "Text encoder that reads the captions. Leave it open only if conditioning is wired."
            ),
        ),
        io.Vae.Input(
            "vae",
            optional=True,
            tooltip=(
                "VAE of the base model; turns pictures into latents. Leave it open only if latents "
                "are wired."
            ),
        ),
        AtelierDataset.Input("dataset", tooltip="Pictures and captions to learn from."),
        io.Int.Input(
            "max_train_steps",
            default=1000,
            min=1,
            max=10_000_000,
            tooltip=(
                "Optimizer steps. 500 to 3000 for most sets of 15 to 100 pictures. Too "
                "few: no effect; too many: every picture looks like a training picture."
            ),
        ),
        io.Int.Input(
            "train_batch_size",
            default=1,
            min=1,
            max=4096,
            tooltip=(
                "Pictures looked at together in one pass, each under its own caption. "
                "Larger is steadier, and needs that much more memory. When memory runs "
                "out, go down to 1."
            ),
        ),
        io.Int.Input(
            "gradient_accumulation_steps",
            default=1,
            min=1,
            max=4096,
            tooltip=(
                "Passes that together make one step: 4 with a batch of 1 trains like a "
                "batch of 4 in the memory of 1, at a quarter of the steps per minute."
            ),
        ),
        io.Combo.Input(
            "mixed_precision",
            options=MixedPrecision,
            default=MixedPrecision.AUTO,
            tooltip=(
                "Number format inside the model, not of the LoRA itself. Leave it on auto, "
                "which fits the model and the card. bf16 and fp16 (with loss scaling) save "
                "memory; models of 10 B and more need bf16; no = fp32, exact and slow."
            ),
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=False,
            tooltip=(
                "Decides the LoRA's first weights, the order of the pictures and the "
                "noise. The same seed and settings give the same LoRA."
            ),
        ),
        AtelierNetwork.Input(
            "network",
            optional=True,
            tooltip="From LoRA Network. Not connected: rank 16, alpha 16.",
        ),
        AtelierOptimizer.Input(
            "optimizer",
            optional=True,
            tooltip="From Optimizer. Not connected: AdamW, learning rate 1e-4.",
        ),
        AtelierScheduler.Input(
            "scheduler",
            optional=True,
            tooltip="From LR Scheduler. Not connected: cosine with 5 % warm-up.",
        ),
        AtelierObjective.Input(
            "objective",
            optional=True,
            tooltip=(
                "From Loss and Noise or Prior Preservation. Not connected: the squared "
                "error, with min-SNR gamma 5 for models that predict noise or velocity."
            ),
        ),
        io.Combo.Input(
            "adapter_precision",
            options=AdapterPrecision,
            default=AdapterPrecision.FP32,
            optional=True,
            tooltip=(
                "Number format of the LoRA between steps. fp32 unless memory is short "
                "with a large rank or algorithm full. bf16_stochastic halves the LoRA and "
                "its gradients, at the price of a little noise; bf16_kahan halves the "
                "gradients only and learns almost as fp32 does."
            ),
        ),
        io.Boolean.Input(
            "gradient_checkpointing",
            default=False,
            optional=True,
            tooltip=(
                "Keeps only the input of each block of the model and computes the rest "
                "again on the way back: much less memory for activations, steps about 40 % "
                "slower, the same result. Switch it on when memory runs out at batch 1, "
                "or for a larger batch or resolution."
            ),
        ),
        io.Int.Input(
            "validate_every_n_steps",
            default=0,
            min=-1,
            max=10_000_000,
            optional=True,
            tooltip=(
                "How often the loss on the dataset's validation pictures is measured, besides the "
                "start and the end; without such pictures never. 0 = about 20 times in a run. "
                "Each time takes four forward passes a picture and changes nothing in the result. "
                "-1 = off."
            ),
        ),
        io.Combo.Input(
            "on_divergence",
            options=OnDivergence,
            default=OnDivergence.STOP,
            optional=True,
            tooltip=(
                "What to do when the loss climbs away or gradients explode. stop: end the run, "
                "keep its last good state and say what to try. roll_back: go on from that state at "
                "half the learning rate, up to three times. ignore: only end when nothing is a "
                "number any more. Single steps that are no numbers are passed over in any case."
            ),
        ),
    ]


def ready_inputs() -> list[io.Input]:
    """What stands in for CLIP and VAE; the last inputs of a node, so that those of saved workflows
    keep their places."""
    return [
        io.Conditioning.Input(
            "conditioning",
            optional=True,
            tooltip=(
                "Ready, in place of what clip makes of the captions: for text encoders that are "
                "too large for this machine. One entry for all pictures, or one for each in the "
                "dataset's order, put together with Conditioning (Combine). The captions then only "
                "go into the LoRA's metadata."
            ),
        ),
        io.Latent.Input(
            "latents",
            optional=True,
            tooltip=(
                "Ready, in place of what vae makes of the pictures: a batch of one for each, in "
                "the dataset's order and at the size it trains at. The dataset still gives "
                "captions, masks and repeats."
            ),
        ),
    ]


def compile_input() -> io.Input:
    """The last of all, for the same reason."""
    return io.Boolean.Input(
        "compile_blocks",
        default=False,
        optional=True,
        tooltip=(
            "Compiles the blocks of the model with torch.compile in the first step, which then "
            "takes up to minutes, and again for each new size of picture. Worth a try on a GPU "
            "with Triton for runs of hours. Where it does not work, the run says so and goes on "
            "without. Rounds a little differently."
        ),
    )


def spec_from(
    max_train_steps: int,
    train_batch_size: int,
    gradient_accumulation_steps: int,
    mixed_precision: str,
    seed: int,
    network: NetworkSpec | None = None,
    optimizer: OptimizerSpec | None = None,
    scheduler: LRSchedulerSpec | None = None,
    objective: ObjectiveSpec | None = None,
    adapter_precision: str = AdapterPrecision.FP32.value,
    gradient_checkpointing: bool = False,
    validate_every_n_steps: int = 0,
    on_divergence: str = OnDivergence.STOP.value,
    compile_blocks: bool = False,
) -> TrainingSpec:
    """The widgets as the engine's settings; what is not connected takes its defaults.

    Raises:
        AtelierError: a value is out of its range.
    """
    return TrainingSpec(
        network=network or NetworkSpec(),
        optimizer=optimizer or OptimizerSpec(),
        lr_scheduler=scheduler or LRSchedulerSpec(),
        objective=objective or ObjectiveSpec(),
        mixed_precision=choice("mixed_precision", mixed_precision, MixedPrecision),
        max_train_steps=max_train_steps,
        train_batch_size=train_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        seed=seed,
        adapter_precision=choice("adapter_precision", adapter_precision, AdapterPrecision),
        gradient_checkpointing=gradient_checkpointing,
        compile_blocks=compile_blocks,
        validate_every_n_steps=validate_every_n_steps,
        on_divergence=choice("on_divergence", on_divergence, OnDivergence),
    )
