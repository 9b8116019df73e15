"""What the model is asked to predict, and how far off it is.

The targets are those of :mod:`training.objective.noise_schedule`, the parts of the loss those of
:mod:`training.objective.timesteps` (where), :mod:`training.objective.noise` (with what),
:mod:`training.objective.loss_types` and :mod:`training.objective.weighting` (how much).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from ..errors import require, require_number
from .loss_types import LossSpec, LossType, element_losses, huber_thresholds
from .noise import Noise, NoiseSpec
from .noise_schedule import NoiseSchedule, PredictionType
from .timesteps import TimestepSpec, places
from .weighting import Weighting, loss_weights

DEFAULT_GAMMA = 5.0
"""The paper's value."""


class PriorTarget(str, Enum):
    """What regularisation pictures are aimed at."""

    PICTURES = "pictures"
    """Themselves, like every other picture."""
    BASE_MODEL = "base_model"
    """The answer that the base model gives on them, so that it stays what it was."""


@dataclass(frozen=True)
class PriorSpec:
    """How what the base model can do already is kept."""

    prior_loss_weight: float = 1.0
    """Factor on the loss of regularisation pictures."""
    prior_target: PriorTarget = PriorTarget.PICTURES
    prior_preservation: float = 0.0
    """Without regularisation pictures: every training picture is looked at a second time under
    ``class_prompt``, where the answer should stay the base model's. Weight of that; 0 = off."""
    class_prompt: str = ""

    def __post_init__(self) -> None:
        require_number("prior_loss_weight", self.prior_loss_weight, 0, 100, "1 is usual.")
        require_number(
            "prior_preservation", self.prior_preservation, 0, 100, "0 = off, 1 is usual."
        )

    @property
    def prompts(self) -> tuple[str, ...]:
        """What has to be encoded besides the captions."""
        return (self.class_prompt,) if self.prior_preservation > 0 else ()


@dataclass(frozen=True)
class ObjectiveSpec:
    """Everything that shapes the loss."""

    min_snr_gamma: float = DEFAULT_GAMMA
    """γ of the weightings that have one; 0 switches them off."""
    weighting: Weighting = Weighting.AUTO
    loss: LossSpec = LossSpec()
    noise: NoiseSpec = NoiseSpec()
    timesteps: TimestepSpec = TimestepSpec()
    prior: PriorSpec = PriorSpec()
    masked_loss: bool = True
    """Whether the pictures' masks count."""
    zero_terminal_snr: bool = False
    """Train on a schedule that ends in noise alone."""
    guidance: float | None = None
    """What a distilled model is told as its guidance; None = the host's own value."""

    def __post_init__(self) -> None:
        require_number(
            "min_snr_gamma", self.min_snr_gamma, 0, 1000, "5 is the paper's value, 0 = off."
        )
        if self.guidance is not None:
            require_number("guidance", self.guidance, 0, 100, "1 suits most Flux LoRAs.")


@dataclass(frozen=True)
class NoisedBatch:
    """One micro-batch as the model sees it."""

    noisy_latents: Tensor
    """[B, C, …] float32, before the model's own input scaling."""
    sigmas: Tensor
    """[B] noise levels."""
    target: Tensor
    """[B, C, …] what the model should predict."""
    weights: Tensor
    """[B] weight of each sample's loss."""
    loss_type: LossType = LossType.L2
    huber_thresholds: Tensor | None = None
    """[B] of the losses that have one."""


def require_possible(spec: ObjectiveSpec, schedule: NoiseSchedule) -> None:
    """Refuse what does not fit the model, before any long work.

    Raises:
        AtelierError: names the widget and the reason.
    """
    places(schedule, spec.timesteps)
    if not schedule.is_flow:
        return
    reason = (
        "This is a flow model (SD3, Flux), whose noise levels count through how often they are "
        "drawn (timestep_sampling) instead."
    )
    require(
        spec.weighting in (Weighting.AUTO, Weighting.NONE),
        f"weighting is {spec.weighting.value}: it is for models that predict noise or velocity "
        f"(SD1.5, SDXL). {reason} Choose auto or none.",
    )
    require(
        spec.weighting is Weighting.NONE or spec.min_snr_gamma in (0, DEFAULT_GAMMA),
        f"min_snr_gamma is {spec.min_snr_gamma:g}: it is for models that predict noise or velocity "
        f"(SD1.5, SDXL). {reason} Set weighting to none.",
    )
    require(
        not spec.zero_terminal_snr,
        "zero_terminal_snr is on: it mends the schedule of SD models. This is a flow model (SD3, "
        "Flux), whose schedule ends in noise alone anyway. Switch it off.",
    )


def add_noise(
    latents: Tensor,
    noise: Tensor | Noise,
    sigmas: Tensor,
    schedule: NoiseSchedule,
    spec: ObjectiveSpec,
) -> NoisedBatch:
    """Noise clean latents and say what the model should answer.

    Args:
        latents: [B, C, …] clean, in the model's own scale (unit deviation).
        noise: like ``latents``; two of them where input and target differ.
        sigmas: [B] noise levels of the schedule.
    """
    noise = noise if isinstance(noise, Noise) else Noise(noise, noise)
    require(
        latents.shape == noise.target.shape == noise.input.shape
        and sigmas.shape == latents.shape[:1],
        f"latents {tuple(latents.shape)}, noise {tuple(noise.target.shape)} and noise levels "
        f"{tuple(sigmas.shape)} do not belong together.",
    )
    sigma = sigmas.view(-1, *[1] * (latents.ndim - 1))
    if schedule.is_flow:
        noisy, target = (1 - sigma) * latents + sigma * noise.input, noise.target - latents
    elif schedule.prediction_type is PredictionType.V_PREDICTION:
        noisy = latents + sigma * noise.input
        target = (noise.target - sigma * latents) / (1 + sigma**2).sqrt()
    else:
        noisy, target = latents + sigma * noise.input, noise.target
    weights = loss_weights(sigmas, schedule, spec.weighting, spec.min_snr_gamma)
    kind = spec.loss.loss_type
    thresholds = huber_thresholds(sigmas, schedule, spec.loss) if kind.has_threshold else None
    return NoisedBatch(noisy, sigmas, target, weights, kind, thresholds)


def sample_losses(prediction: Tensor, batch: NoisedBatch, masks: Tensor | None = None) -> Tensor:
    """[B] mean loss of each sample times its weight; the caller reduces.

    Args:
        masks: [B, H, W] of the latents, 0..1, or None. A place counts as much as its mask says; the
            mean is over all places, as in kohya-ss/sd-scripts ``apply_masked_loss``.
    """
    require(
        prediction.shape == batch.target.shape,
        f"The model answered {tuple(prediction.shape)} where {tuple(batch.target.shape)} was due.",
    )
    losses = element_losses(prediction, batch.target, batch.loss_type, batch.huber_thresholds)
    if masks is not None:
        masks = masks.to(losses)
        between = losses.ndim - masks.ndim  # channels, and frames where there are any
        losses = losses * masks.view(-1, *[1] * between, *masks.shape[1:])
    return losses.flatten(1).mean(1) * batch.weights
