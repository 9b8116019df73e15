"""The node that shapes the loss: its form, its weights, the noise and the noise levels."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ...training.objective.chart import draw_objective
from ...training.objective.loss_types import HuberSchedule, LossSpec, LossType
from ...training.objective.noise import NoiseSpec
from ...training.objective.objective import ObjectiveSpec, PriorSpec
from ...training.objective.timesteps import TimestepSampling, TimestepSpec
from ...training.objective.weighting import Weighting
from ..graph.checks import choice, verdict
from ..graph.wires import AtelierObjective

CATEGORY = "training/atelier/config"


class LossAndNoise(io.ComfyNode):
    """Loss, weighting, noise and timesteps -> ATELIER_OBJECTIVE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AtelierObjective",
            display_name="Loss and Noise",
            category=CATEGORY,
            description=(
                "What the LoRA is marked on: how far off an answer is, which noise levels count "
                "most, and what the noise is like. The defaults are what Train LoRA does without "
                "this node. The node shows the weight and the density of the timesteps."
            ),
            inputs=[*_weighting(), *_loss(), *_noise(), *_timesteps(), *_others()],
            outputs=[
                AtelierObjective.Output(
                    "objective",
                    display_name="objective",
                    tooltip="Loss settings, for Train LoRA or Prior Preservation.",
                ),
                io.Image.Output(
                    "picture",
                    display_name="picture",
                    tooltip=(
                        "Weight of the loss at every timestep, and how often each timestep is "
                        "drawn. Grey = never trained on."
                    ),
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        weighting: str | None = None,
        min_snr_gamma: float | None = None,
        loss_type: str | None = None,
        huber_schedule: str | None = None,
        huber_c: float | None = None,
        noise_offset: float | None = None,
        adaptive_noise_scale: float | None = None,
        multires_noise_iterations: int | None = None,
        multires_noise_discount: float | None = None,
        ip_noise_gamma: float | None = None,
        timestep_sampling: str | None = None,
        logit_mean: float | None = None,
        logit_std: float | None = None,
        discrete_flow_shift: float | None = None,
        min_timestep: int | None = None,
        max_timestep: int | None = None,
        prior_loss_weight: float | None = None,
        guidance: float | None = None,
    ) -> bool | str:
        values = {name: value for name, value in locals().items() if name != "cls"}
        return verdict(_objective, **values, masked_loss=True, zero_terminal_snr=False)

    @classmethod
    def execute(cls, **widgets: Any) -> io.NodeOutput:
        objective = _objective(**widgets)
        picture = draw_objective(objective).unsqueeze(0)
        return io.NodeOutput(objective, picture, ui=ui.PreviewImage(picture, cls=cls))


def _objective(
    *,
    weighting: str,
    min_snr_gamma: float,
    loss_type: str,
    huber_schedule: str,
    huber_c: float,
    noise_offset: float,
    adaptive_noise_scale: float,
    multires_noise_iterations: int,
    multires_noise_discount: float,
    ip_noise_gamma: float,
    timestep_sampling: str,
    logit_mean: float,
    logit_std: float,
    discrete_flow_shift: float,
    min_timestep: int,
    max_timestep: int,
    prior_loss_weight: float,
    masked_loss: bool,
    zero_terminal_snr: bool,
    guidance: float,
) -> ObjectiveSpec:
    return ObjectiveSpec(
        min_snr_gamma=min_snr_gamma,
        weighting=choice("weighting", weighting, Weighting),
        loss=LossSpec(
            choice("loss_type", loss_type, LossType),
            huber_c,
            choice("huber_schedule", huber_schedule, HuberSchedule),
        ),
        noise=NoiseSpec(
            noise_offset,
            adaptive_noise_scale,
            multires_noise_iterations,
            multires_noise_discount,
            ip_noise_gamma,
        ),
        timesteps=TimestepSpec(
            choice("timestep_sampling", timestep_sampling, TimestepSampling),
            logit_mean,
            logit_std,
            discrete_flow_shift,
            min_timestep,
            max_timestep,
        ),
        prior=PriorSpec(prior_loss_weight),
        masked_loss=masked_loss,
        zero_terminal_snr=zero_terminal_snr,
        guidance=None if guidance == -1 else guidance,
    )


def _weighting() -> list[io.Input]:
    return [
        io.Combo.Input(
            "weighting",
            options=Weighting,
            default=Weighting.AUTO,
            tooltip=(
                "Which noise levels count most. auto: min_snr for models that predict noise or "
                "velocity (SD1.5, SDXL), none for flow models (SD3, Flux). min_snr holds back the "
                "nearly clean levels, soft_min_snr does so without an edge, debiased leans towards "
                "the noisy ones, that is towards composition. Flow models refuse these three."
            ),
        ),
        io.Float.Input(
            "min_snr_gamma",
            default=5.0,
            min=0.0,
            max=1000.0,
            step=0.5,
            round=0.001,
            tooltip=(
                "For min_snr and soft_min_snr: signal-to-noise ratio from which on a level is "
                "held back. 5 is the paper's value. Too low (1): fine detail is hardly learned, "
                "colours and shapes first. Too high (20): nearly as if it were off, slower and "
                "less even. 0 = off. It says nothing to flow models, which refuse another value "
                "than the default."
            ),
        ),
    ]


def _loss() -> list[io.Input]:
    return [
        io.Combo.Input(
            "loss_type",
            options=LossType,
            default=LossType.L2,
            tooltip=(
                "How a difference is marked. l2 (its square) is what the models were trained "
                "with. huber and smooth_l1 forgive large differences, so odd pictures in the set "
                "do less harm; l1 forgives them most and blurs. Compare losses only within a type."
            ),
        ),
        io.Combo.Input(
            "huber_schedule",
            options=HuberSchedule,
            default=HuberSchedule.SNR,
            tooltip=(
                "For huber and smooth_l1: where large differences are forgiven. constant: at "
                "every noise level; exponential and snr: hardly at the nearly clean levels, where "
                "details are learned, and fully at the noisy ones. snr is the usual choice."
            ),
        ),
        io.Float.Input(
            "huber_c",
            default=0.1,
            min=0.0001,
            max=1.0,
            step=0.01,
            round=0.0001,
            tooltip=(
                "For huber and smooth_l1: difference from which on it is forgiven, in units of "
                "the noise. 0.1 is usual; smaller forgives more, 1 is nearly l2."
            ),
        ),
    ]


def _noise() -> list[io.Input]:
    return [
        io.Float.Input(
            "noise_offset",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.0001,
            tooltip=(
                "Lets the LoRA learn pictures that are dark or bright as a whole: the noise of "
                "each channel gets a random offset of this deviation. 0.05 to 0.1 for night "
                "scenes and strong contrast, 0 = off."
            ),
        ),
        io.Float.Input(
            "adaptive_noise_scale",
            default=0.0,
            min=-10.0,
            max=10.0,
            step=0.005,
            round=0.0001,
            tooltip=(
                "Adds this times the mean of each channel of the picture to noise_offset, so that "
                "unusually dark or bright pictures get more of it. About a tenth of noise_offset; "
                "negative = less for them, 0 = off."
            ),
        ),
        io.Int.Input(
            "multires_noise_iterations",
            default=0,
            min=0,
            max=16,
            tooltip=(
                "Adds ever coarser layers of noise, which lets the LoRA learn wide areas of light "
                "and dark; does what noise_offset does, more evenly. 6 to 10, 0 = off. Use one of "
                "the two."
            ),
        ),
        io.Float.Input(
            "multires_noise_discount",
            default=0.3,
            min=0.0,
            max=1.0,
            step=0.05,
            round=0.001,
            tooltip=(
                "For multires_noise_iterations: weight of each coarser layer against the one "
                "before. 0.1 is gentle, 0.3 usual, 0.8 strong and easily too much."
            ),
        ),
        io.Float.Input(
            "ip_noise_gamma",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            round=0.0001,
            tooltip=(
                "Input perturbation: a little more noise in what the model sees than in what it "
                "should answer, so that small faults while sampling matter less. 0.1 is usual, "
                "0 = off."
            ),
        ),
    ]


def _timesteps() -> list[io.Input]:
    return [
        io.Combo.Input(
            "timestep_sampling",
            options=TimestepSampling,
            default=TimestepSampling.AUTO,
            tooltip=(
                "How often each noise level is trained on. auto: SD models all alike, flow models "
                "by the shift that they carry. For flow models also: uniform, sigmoid and "
                "logit_normal (the middle most), mode and cosmap (the middle somewhat), shift "
                "(more noise, by discrete_flow_shift), flux_shift (the larger the picture, the "
                "more noise). On SD models they act on timestep / 1000."
            ),
        ),
        io.Float.Input(
            "logit_mean",
            default=0.0,
            min=-10.0,
            max=10.0,
            step=0.1,
            round=0.001,
            tooltip=(
                "For logit_normal: which levels are trained on most. 0 = the middle, positive = "
                "more noise (composition), negative = less (details)."
            ),
        ),
        io.Float.Input(
            "logit_std",
            default=1.0,
            min=0.01,
            max=10.0,
            step=0.1,
            round=0.001,
            tooltip=(
                "For sigmoid, logit_normal, shift and flux_shift: how far the levels spread. 1 is "
                "usual, smaller keeps to the middle, larger reaches both ends (sigmoid_scale in "
                "other trainers)."
            ),
        ),
        io.Float.Input(
            "discrete_flow_shift",
            default=3.0,
            min=0.01,
            max=100.0,
            step=0.1,
            round=0.0001,
            tooltip=(
                "For shift: how far towards noise. 1 = not at all, 3 is SD3's, 3.1582 Flux's at "
                "1024 px; below 1 towards details."
            ),
        ),
        io.Int.Input(
            "min_timestep",
            default=0,
            min=0,
            max=1000,
            tooltip=(
                "Least noise that is trained on, 0 (clean) to 1000 (noise); of flow models sigma "
                "times 1000. 0 is usual; higher leaves fine details to the base model."
            ),
        ),
        io.Int.Input(
            "max_timestep",
            default=1000,
            min=0,
            max=1000,
            tooltip=(
                "Most noise that is trained on, on the same scale. 1000 is usual; lower leaves "
                "the composition to the base model, e.g. 500 for a LoRA of textures."
            ),
        ),
    ]


def _others() -> list[io.Input]:
    return [
        io.Float.Input(
            "prior_loss_weight",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.001,
            tooltip=(
                "Weight of regularisation pictures against the training pictures. 1 is usual; "
                "less lets the LoRA go further from what the base model paints."
            ),
        ),
        io.Boolean.Input(
            "masked_loss",
            default=True,
            tooltip=(
                "Whether the masks of the dataset count: what they hide is not learned. Off "
                "trains on whole pictures without changing the dataset. No masks, no difference."
            ),
        ),
        io.Boolean.Input(
            "zero_terminal_snr",
            default=False,
            tooltip=(
                "Trains v-prediction models on a schedule that ends in pure noise, for truly "
                "black and white pictures. Sample with ModelSamplingDiscrete (v_prediction, zsnr "
                "on) too. Not for models that predict noise; flow models refuse it."
            ),
        ),
        io.Float.Input(
            "guidance",
            default=-1.0,
            min=-1.0,
            max=100.0,
            step=0.5,
            round=0.01,
            tooltip=(
                "For guidance-distilled models (Flux dev): the guidance it is told while "
                "training. 1 suits most LoRAs; -1 leaves ComfyUI's default (3.5 for Flux). Other "
                "models refuse it."
            ),
        ),
    ]
