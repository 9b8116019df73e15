"""What can be said of a run's settings before anything is loaded or encoded."""

from __future__ import annotations

from .errors import require
from .lr_scheduler import check_lr_scheduler
from .optimizer import check_optimizer
from .optimizers.advice import lr_advice, schedule_advice
from .run import TrainingSpec


def preflight(spec: TrainingSpec) -> list[str]:
    """Refuse settings that cannot train, and give advice on those that hardly will.

    Returns:
        Advice, a sentence each; empty when all looks usual.

    Raises:
        AtelierError: naming the widget, what is wrong and what to do.
    """
    check_optimizer(spec.optimizer)
    check_lr_scheduler(
        spec.lr_scheduler, spec.max_train_steps, spec.samples, spec.optimizer.unet_lr
    )
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
    advice = [lr_advice(spec.optimizer), schedule_advice(spec.optimizer, spec.lr_scheduler)]
    return [sentence for sentence in advice if sentence]
