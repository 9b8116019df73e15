"""A verdict in words: what it is, the figures it rests on, and what to do."""

from __future__ import annotations

import math

from .loss_history import LossHistory
from .trend import Figure
from .verdict import (
    FEWEST_POINTS,
    FEWEST_STEPS,
    NOTHING,
    OVERFIT,
    RISE,
    STILL_FALLING,
    SURE,
    Figures,
    Judgement,
    Verdict,
)

HEADLINES = {
    Verdict.CONVERGED: "converged: the loss fell and has levelled off",
    Verdict.STILL_FALLING: "still falling: the end of the fall is not in sight",
    Verdict.PLATEAU: "plateau: no fall that stands out from the noise",
    Verdict.OVERFITTING: "overfitting: the validation loss rises again",
    Verdict.DIVERGING: "diverging: the training breaks the model",
    Verdict.NOT_FINITE: "not finite: the numbers broke down",
    Verdict.TOO_SHORT: "too short to tell",
}


def headline(judgement: Judgement) -> str:
    """One line, for the title of the chart."""
    return HEADLINES[judgement.verdict]


def explain(judgement: Judgement, history: LossHistory) -> str:
    """The whole verdict, a sentence or two a line."""
    lines = [f"Verdict: {headline(judgement)}."]
    lines += _grounds(judgement, history)
    lines += _advice(judgement, history)
    if not history.validation and judgement.verdict is not Verdict.NOT_FINITE:
        lines.append(
            "Overfitting does not show in the training loss. To see it, hold pictures back: "
            "validation_fraction 0.1 on Load Image Dataset."
        )
    return "\n".join(lines)


def _grounds(judgement: Judgement, history: LossHistory) -> list[str]:
    figures = judgement.figures
    if judgement.verdict is Verdict.NOT_FINITE:
        return [f"Step {judgement.bad_step} of {history.steps} is the first that is no number."]
    if figures.steps < FEWEST_STEPS and judgement.verdict is Verdict.TOO_SHORT:
        return [f"{figures.steps} steps; at least {FEWEST_STEPS} are needed to see a trend."]
    lines = []
    if math.isfinite(figures.fallen.error):
        lines.append(
            f"Training loss, {figures.steps} steps: {_change(figures.fallen, -1)} from the first "
            f"fifth to the last, {_change(figures.last_third)} over the last third "
            f"(Mann-Kendall z {figures.last_third_z:+.1f})."
        )
    if judgement.verdict in (Verdict.STILL_FALLING, Verdict.CONVERGED):
        lines += _outlook(judgement, history)
    if judgement.verdict is Verdict.DIVERGING:
        lines.append(_how_it_broke(figures))
    if judgement.verdict in (Verdict.PLATEAU, Verdict.TOO_SHORT) and not history.validation:
        hidden = _fall(SURE * figures.fallen.error)
        lines.append(f"A fall of less than about {hidden} % would not stand out from the noise.")
    return lines + _validation_grounds(figures, history)


def _outlook(judgement: Judgement, history: LossHistory) -> list[str]:
    ahead = judgement.figures.ahead
    which = "validation" if len(history.validation) >= FEWEST_POINTS else "training"
    lines = [f"As many steps again would bring about {_change(ahead, -1)} of the {which} loss."]
    most = ahead.value + 2 * ahead.error
    if judgement.verdict is Verdict.CONVERGED and most > STILL_FALLING:
        lines.append(f"The noise leaves room for a further fall of up to {_fall(most)} %.")
    return lines


def _how_it_broke(figures: Figures) -> str:
    if figures.rise.value > RISE:
        return f"The last fifth lies {_change(figures.rise)} against the lowest stretch before it."
    if figures.end > NOTHING:
        return (
            f"The last losses are about {math.exp(figures.end):.2g} and hardly scatter: a model "
            "that answers nothing at all scores 1."
        )
    return "The validation loss ends far above where it began."


def _validation_grounds(figures: Figures, history: LossHistory) -> list[str]:
    rise, count = figures.validation_rise, len(history.validation)
    if rise is None:
        few = 0 < count < FEWEST_POINTS
        return [f"{count} validation losses are too few for a curve."] if few else []
    lines = [
        f"Validation loss: lowest at step {figures.validation_best}; the last third of its points "
        f"lies {_change(rise)} against the lowest stretch before."
    ]
    if figures.rises_most and rise.value > OVERFIT:
        lines.append(f"It rises most where there is {figures.rises_most}.")
    return lines


def _advice(judgement: Judgement, history: LossHistory) -> list[str]:
    rate = max((r for r in history.learning_rate if math.isfinite(r)), default=0.0)
    steps, figures = history.steps, judgement.figures
    if judgement.verdict is Verdict.CONVERGED:
        return [
            "More of the same steps bring little. Judge the pictures: if the effect is too weak, "
            f"train with a larger network_dim (rank){_or_rate(rate, 2)}; if they all look like "
            "training pictures, use fewer steps."
        ]
    if judgement.verdict is Verdict.STILL_FALLING:
        longer = f"Train longer (max_train_steps about {_round(2 * steps)})"
        return [f"{longer}{_or_rate(rate, 2)}.", *_schedule_hint(history, rate)]
    if judgement.verdict is Verdict.PLATEAU:
        return [
            "If the pictures show no effect, raise the rate" + _rate(rate, 5) + ", then "
            "max_train_steps. If they do show it, all is well.",
        ]
    if judgement.verdict is Verdict.OVERFITTING:
        best = figures.validation_best
        first = best <= history.validation[0][0]
        steps_to_take = (
            f"max_train_steps about {_round(best)}"
            if not first
            else f"fewer than {history.validation[1][0]} steps"
        )
        return [
            f"Take {steps_to_take}, or more pictures, a smaller network_dim (rank), or a lower "
            f"rate{_rate(rate, 0.5)}."
        ]
    if judgement.verdict is Verdict.DIVERGING:
        return [f"Lower the rate{_rate(rate, 0.2)}; a longer warm-up helps too."]
    if judgement.verdict is Verdict.NOT_FINITE:
        return [
            f"Lower the rate{_rate(rate, 0.1)}, warm up for longer, and choose mixed_precision "
            "bf16 or no if it was fp16."
        ]
    return [f"Train for longer, max_train_steps {max(_round(4 * steps), 100)} or more."]


def _schedule_hint(history: LossHistory, rate: float) -> list[str]:
    """A schedule that has ended, or a warm-up that took most of the run, explains much."""
    rates = history.learning_rate
    if not rates or rate <= 0:
        return []
    warm = next(i for i, value in enumerate(rates) if value >= 0.99 * rate)
    if warm > 0.4 * len(rates):
        return [f"The rate rose until step {warm + 1}: a shorter warm-up leaves more steps."]
    if rates[-1] < 0.05 * rate:
        return ["The schedule has ended: start anew with more steps instead of going on."]
    return []


def _change(figure: Figure, sign: int = 1) -> str:
    """ "−12 % ± 3": a difference of logarithms in per cent."""
    log = min(sign * figure.value, 50.0)
    percent = 100 * math.expm1(log)
    error = 100 * figure.error * math.exp(log)
    return f"{percent:+.{_digits(error)}f} % ± {error:.{_digits(error)}f}".replace("-", "−")


def _fall(log: float) -> str:
    return f"{-100 * math.expm1(-log):.0f}"


def _digits(error: float) -> int:
    return 0 if error >= 1 else 1


def _rate(rate: float, factor: float) -> str:
    return f" (unet_lr {rate:.2g} → {rate * factor:.1g})" if rate > 0 else ""


def _or_rate(rate: float, factor: float) -> str:
    return f" or at a higher rate{_rate(rate, factor)}"


def _round(steps: float) -> int:
    """Two digits are enough for advice."""
    return int(float(f"{max(steps, 1):.2g}"))
