"""An evaluation in words: what to take, why, and what the figures are."""

from __future__ import annotations

from collections import Counter

from ..dataset.samples import shorten
from ..runs.validation import BAND_NAMES
from .measures import Estimate
from .results import Row, loss_change
from .rule import Fault, Judged, Recommendation
from .spec import EvaluationSpec

MOST_PAIRS = 6
"""Copies that are named and shown."""
SURE = 2
"""Standard errors that are given behind ±."""


def headline(recommendation: Recommendation) -> str:
    """One line, for the title of the picture."""
    chosen = recommendation.chosen
    if chosen is None:
        return f"None is good enough: {_common_fault(recommendation)}"
    return f"Recommended: {row_name(chosen.row)}"


def row_name(row: Row) -> str:
    """``step 200 at strength 0.8``."""
    return f"{row.candidate.name} at strength {row.candidate.strength:g}"


def report_text(
    recommendation: Recommendation, spec: EvaluationSpec, notes: list[str], loss_pictures: int
) -> str:
    """All of it, a thought a line.

    Args:
        notes: what else is to be said, a sentence each.
        loss_pictures: pictures on which the loss was measured.
    """
    lines = [f"{headline(recommendation)}."]
    chosen = recommendation.chosen
    lines += _why(chosen, recommendation) if chosen else _what_to_try(recommendation)
    lines += ["", *(_row_line(judged, recommendation) for judged in recommendation.rows)]
    lines += ["", *_bands(recommendation)]
    copies = copies_text(recommendation)
    lines += ["", *copies] if copies else []
    return "\n".join([*lines, "", *_how(recommendation, spec, loss_pictures), *notes])


def verdict_text(judged: Judged, is_best: bool, most: int = len(Fault)) -> str:
    """What became of a row, in a few words.

    Args:
        most: how many faults are named.
    """
    if is_best:
        return "recommended"
    return ", ".join(fault.value for fault in judged.faults[:most]) or "good"


def copies_text(recommendation: Recommendation) -> list[str]:
    """Which training pictures were copied, those most often first."""
    names = recommendation.evaluation.training_names
    lines = []
    for judged in recommendation.rows:
        found = Counter(names[pair.training] for pair in judged.row.copies)
        if found:
            told = [f"{name} ({count} ×)" for name, count in found.most_common()]
            lines.append(f"{row_name(judged.row)} copies {shorten(told, MOST_PAIRS)}.")
    return lines


def _why(chosen: Judged, recommendation: Recommendation) -> list[str]:
    row, evaluation = chosen.row, recommendation.evaluation
    lines = []
    if chosen.gain is not None:
        lines.append(
            f"Its pictures have come {_percent(chosen.gain)} of the way from the base to what "
            "training pictures are to each other."
        )
    if evaluation.are_held_out:
        change = loss_change(row, evaluation.base_losses)
        fallen = Estimate(-change.value / evaluation.base_loss, change.error / evaluation.base_loss)
        lines.append(f"Its loss on held-out pictures is {_percent(fallen)} below the base's.")
    if row.kept is not None:
        lines.append(
            f"Prompts are still told apart: {row.kept.value:.2f} (0.5 = not at all, the base "
            f"{evaluation.base_kept:.2f}). Diversity is {row.diversity:.2f} of the base's."
        )
    copies = len(row.copies)
    if copies:
        lines.append(f"{copies} of its {len(row.pairs)} pictures are copies of training pictures.")
    else:
        lines.append("None of its pictures is a copy of a training picture.")
    if _is_last(chosen, recommendation):
        lines.append("It is the last of its run: more steps may bring still more.")
    others = [judged for judged in recommendation.rows if judged is not chosen]
    better = [o for o in others if o.is_good and o.score.value > chosen.score.value]
    if better:
        lines.append(
            f"{row_name(better[0].row)} scores higher, but by less than chance would explain: with "
            "fewer steps, or nearer to strength 1, the same is had at less risk."
        )
    return lines


def _is_last(chosen: Judged, recommendation: Recommendation) -> bool:
    candidate = chosen.row.candidate
    others = (judged.row.candidate for judged in recommendation.rows)
    steps = [other.step for other in others if other.run == candidate.run]
    return len(set(steps)) > 1 and candidate.step == max(steps)


def _what_to_try(recommendation: Recommendation) -> list[str]:
    faults = Counter(fault for judged in recommendation.rows for fault in judged.faults)
    lines = []
    if all(judged.score is None for judged in recommendation.rows):
        lines.append(
            "What was gained cannot be told: the base draws like the training pictures already, "
            "and no pictures were held out. Set validation_fraction 0.1 on Load Image Dataset."
        )
    elif faults[Fault.LITTLE_GAIN]:
        lines.append(
            "Little gain: the LoRA has learned too little, or the prompts lack the trigger word of "
            "the captions. Train more steps or at a higher rate, or evaluate higher strengths."
        )
    if faults[Fault.MEMORISED]:
        lines.append(
            "Memorised: it draws training pictures instead of new ones. Take earlier checkpoints "
            "or lower strengths, and for the next run more pictures, fewer steps or a lower rate."
        )
    if faults[Fault.OVERFITTED] or faults[Fault.WORSE_THAN_BASE]:
        lines.append(
            "The loss on held-out pictures rises: fewer steps, a lower rate, a smaller network_dim "
            "(rank), or more pictures."
        )
    if faults[Fault.PROMPTS_LOST] or faults[Fault.ALL_ALIKE]:
        lines.append(
            "Prompts do not come through: lower strengths, earlier checkpoints, a lower rate, or "
            "captions that name what differs between the pictures."
        )
    return lines


def _common_fault(recommendation: Recommendation) -> str:
    faults = Counter(fault for judged in recommendation.rows for fault in judged.faults)
    return " and ".join(fault.value for fault, _ in faults.most_common(2))


def _row_line(judged: Judged, recommendation: Recommendation) -> str:
    row = judged.row
    parts = [f"loss {row.loss:.4f}"]
    if judged.gain is not None:
        parts.append(f"gain {_percent(judged.gain)}")
    if row.kept is not None:
        parts.append(f"prompts kept {row.kept.value:.2f}")
    parts.append(f"diversity {row.diversity:.2f}")
    parts.append(f"copies {len(row.copies)}/{len(row.pairs)}")
    if judged.score is not None:
        parts.append(f"score {_percent(judged.score)}")
    verdict = verdict_text(judged, judged is recommendation.chosen)
    return f"{row_name(row)}: {' · '.join(parts)} · {verdict}"


def _bands(recommendation: Recommendation) -> list[str]:
    """The loss by the amount of noise, in which styles and subjects are learned differently."""
    base = recommendation.evaluation.base_bands
    names, losses = " · ".join(BAND_NAMES), " · ".join(f"{loss:.4f}" for loss in base)
    lines = [f"Loss by noise ({names}), base: {losses}. Above or below the base:"]
    for judged in recommendation.rows:
        lines.append(f"{row_name(judged.row)}: {bands_text(judged, recommendation)} %")
    return lines


def bands_text(
    judged: Judged, recommendation: Recommendation, between: str = " · ", digits: int = 1
) -> str:
    """By how many per cent the loss lies above the base's, from least noise to most."""
    changes = 100 * (judged.row.bands / recommendation.evaluation.base_bands - 1)
    return between.join(f"{change:+.{digits}f}".replace("-", "−") for change in changes)


def _how(recommendation: Recommendation, spec: EvaluationSpec, loss_pictures: int) -> list[str]:
    evaluation = recommendation.evaluation
    if evaluation.are_held_out:
        loss = (
            f"Loss on {loss_pictures} held-out pictures; the base's is {evaluation.base_loss:.4f}"
        )
    else:
        loss = (
            f"Loss on {loss_pictures} training pictures (the base's is "
            f"{evaluation.base_loss:.4f}), which falls also when a LoRA only memorises: it has no "
            "part in the choice. Hold pictures back with validation_fraction 0.1 on Load Image "
            "Dataset"
        )
    lines = [
        f"{loss}.",
        f"{spec.images_per_checkpoint} pictures each, {spec.prompts.source}.",
    ]
    if spec.prompts.are_trained:
        lines.append(
            "These captions were trained on: a picture that comes back need not mean that new "
            "prompts give copies, too. Write prompts of your own to find out."
        )
    if len(spec.prompts.texts) < 2:
        lines.append("With one prompt alone nothing can be said of prompts kept.")
    if all(judged.gain is None for judged in recommendation.rows):
        lines.append(
            "The base draws like the training pictures already, so pictures do not show what was "
            "gained."
        )
    if not evaluation.has_encoder:
        lines.append(
            "Pictures were compared by colours, edges, texture and layout alone. That sees styles, "
            "but not who or what is in a picture: for a face or a thing connect clip_vision."
        )
    return lines


def _percent(share: Estimate) -> str:
    return f"{percent(share.value)} ± {100 * SURE * share.error:.0f}"


def percent(share: float) -> str:
    """ "63 %", with a minus that is one."""
    return f"{100 * share:.0f} %".replace("-", "−")
