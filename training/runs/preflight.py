"""What can be said of a run's settings before anything is loaded or encoded."""

from __future__ import annotations

from ..errors import require
from ..optimizers.advice import lr_advice, schedule_advice
from ..optimizers.lr_scheduler import check_lr_scheduler
from ..optimizers.optimizer import check_optimizer
from .run import TrainingSpec


def preflight(spec: TrainingSpec) -> list[str]:
    """Refuse settings that cannot train, and give advice on those that hardly will.

    Returns:
        Advice, a sentence each; empty when all looks usual.

    Raises:
        AtelierError: naming the widget, what is wrong and what to do.
    """
    check_optimizer(spec.optimizer)
    unet = spec.network.trains_diffusion_model
    rate = spec.optimizer.unet_lr if unet else spec.optimizer.text_encoder_lr
    check_lr_scheduler(spec.lr_scheduler, spec.max_train_steps, spec.samples, rate)
    require(
        spec.optimizer.loraplus_lr_ratio == 1 or spec.network.algorithm.has_side_path,
        f"loraplus_lr_ratio is {spec.optimizer.loraplus_lr_ratio:g}, but algorithm "
        f"{spec.network.algorithm.value} has no up matrices that could learn faster. Set it to 1, "
        "or choose the algorithm lora or dora.",
    )
    require(
        spec.network.scale_weight_norms == 0 or not spec.optimizer.kind.averages,
        f"scale_weight_norms is {spec.network.scale_weight_norms:g}, but "
        f"{spec.optimizer.label} averages weights that are not limited. Set it to 0, or choose "
        "another optimizer.",
    )
    require(
        not spec.adapter_precision.is_narrow or not spec.optimizer.kind.averages,
        f"adapter_precision is {spec.adapter_precision.value}, but {spec.optimizer.label} keeps an "
        "average that is tied to the exact weights it trains, which rounding changes behind its "
        "back. Choose fp32, or another optimizer.",
    )
    _check_text_encoder_rate(spec)
    rates = {"unet_lr": spec.network.trains_diffusion_model}
    rates["text_encoder_lr"] = spec.network.trains_text_encoders
    advice = [lr_advice(spec.optimizer, widget) for widget, counts in rates.items() if counts]
    advice.append(schedule_advice(spec.optimizer, spec.lr_scheduler))
    return [sentence for sentence in advice if sentence]


def _check_text_encoder_rate(spec: TrainingSpec) -> None:
    network, optimizer = spec.network, spec.optimizer
    both = network.trains_diffusion_model and network.trains_text_encoders
    require(
        not both
        or not optimizer.kind.finds_its_rate
        or optimizer.unet_lr == optimizer.text_encoder_lr,
        f"text_encoder_lr is {optimizer.text_encoder_lr:g} and unet_lr {optimizer.unet_lr:g}, but "
        f"{optimizer.label} finds one learning rate for all weights. Give both the same number; 1 "
        "is usual.",
    )
