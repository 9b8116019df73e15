"""The rule on evaluations whose answer is known, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lora_atelier.training.dataset.pictures import ImagePixels
from lora_atelier.training.dataset.samples import ImageDataset, Role, Sample
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.evaluation.features import seen
from lora_atelier.training.evaluation.measures import Estimate, Pair, estimate
from lora_atelier.training.evaluation.picture import MOST_ROWS, draw_evaluation
from lora_atelier.training.evaluation.report import report_text
from lora_atelier.training.evaluation.results import Candidate, Evaluation, Pictures, Row, compare
from lora_atelier.training.evaluation.rule import Fault, Recommendation, recommend
from lora_atelier.training.evaluation.spec import (
    EvaluationSpec,
    Prompts,
    chosen_prompts,
    evenly,
    parse_evaluated_strengths,
)
from lora_atelier.training.results.preview_spec import PreviewSpec

IMAGES = 8
PIXELS = np.random.default_rng(1).integers(0, 256, (IMAGES, 64, 64, 3), np.uint8)
DRAWN = Pictures([seen(pixels, 64) for pixels in PIXELS])
NOISE = np.linspace(-1, 1, IMAGES)
PREVIEW = PreviewSpec(("x",), seeds=(7, 3))
SPEC = EvaluationSpec(PREVIEW, ("a",), Prompts(("p", "q"), "prompts as written", False))


def row(
    step: int,
    gain: float = 0.5,
    strength: float = 1.0,
    loss: float = 0.9,
    kept: float = 0.95,
    diversity: float = 0.9,
    copies: int = 0,
    scatter: float = 0.05,
) -> Row:
    """A row that nothing speaks against, but for what is given."""
    losses = np.full((6, 4), loss) + 0.001 * np.arange(6)[:, None]
    candidate = Candidate(f"step {step}", step, step, strength, losses, DRAWN)
    pairs = tuple(Pair(i, i % 2, 0.5 if i < copies else 1.5) for i in range(IMAGES))
    gains = gain + scatter * np.roll(NOISE, 3 * step // 100 + round(10 * strength))
    return Row(candidate, gains, Estimate(kept, 0.02), diversity, pairs)


def evaluation(*rows: Row, **changes: object) -> Evaluation:
    losses = np.ones((6, 4)) + 0.001 * np.arange(6)[:, None]
    whole = Evaluation(rows, DRAWN, losses, DRAWN, ("fox.png", "bear.png", *"abcdef"), True)
    return replace(whole, **changes)


def faults(found: Recommendation) -> list[tuple[Fault, ...]]:
    return [judged.faults for judged in found.rows]


def taken(found: Recommendation) -> tuple[int, float] | None:
    if found.chosen is None:
        return None
    return found.chosen.row.candidate.step, found.chosen.row.candidate.strength


def test_the_largest_gain_wins_when_nothing_speaks_against_it() -> None:
    found = recommend(evaluation(row(100, 0.3), row(200, 0.6), row(300, 0.5)))
    assert taken(found) == (200, 1.0) and faults(found) == [(), (), ()]


def test_the_score_is_the_mean_of_what_pictures_and_loss_say() -> None:
    found = recommend(evaluation(row(100, 0.4, loss=0.96), row(200, 0.5, loss=0.92)))
    assert [judged.score.value for judged in found.rows] == pytest.approx([0.45, 0.75])
    pictures = estimate(found.rows[0].row.gain).error
    assert found.rows[0].score.error == pytest.approx(pictures / 2)  # the losses do not scatter
    little = recommend(evaluation(row(100, 0.1, loss=0.995)))  # the lowest, but by ½ %: ¼
    assert little.rows[0].score.value == pytest.approx(0.175, abs=1e-3)
    assert faults(little) == [(Fault.LITTLE_GAIN,)]


def test_of_gains_that_cannot_be_told_apart_the_fewest_steps_win_then_strength_one() -> None:
    rows = [row(300, 0.61, 0.8), row(300, 0.605), row(300, 0.6, 1.2), row(600, 0.612)]
    assert taken(recommend(evaluation(*rows))) == (300, 1.0)
    clear = [row(300, 0.5, scatter=0.001), row(600, 0.51, scatter=0.001)]
    assert taken(recommend(evaluation(*clear))) == (600, 1.0)


def test_a_lora_whose_steps_are_not_known_gives_way_to_one_that_is_as_good() -> None:
    assert taken(recommend(evaluation(row(0, 0.5), row(900, 0.5)))) == (900, 1.0)


def test_what_copies_loses_the_prompts_or_is_all_alike_is_rejected() -> None:
    rows = [
        row(100, 0.3),
        row(200, 0.9, copies=2),
        row(300, 0.9, kept=0.7),
        row(400, 0.9, diversity=0.4),
    ]
    found = recommend(evaluation(*rows))
    assert taken(found) == (100, 1.0)
    assert faults(found)[1:] == [(Fault.MEMORISED,), (Fault.PROMPTS_LOST,), (Fault.ALL_ALIKE,)]
    one = recommend(evaluation(row(100, 0.3), row(200, 0.9, copies=1)))
    assert taken(one) == (200, 1.0)  # one of eight may be chance


def test_prompts_and_diversity_are_judged_by_what_base_and_training_pictures_have() -> None:
    few = row(100, kept=0.7, diversity=0.4)
    assert faults(recommend(evaluation(few)))[0] == (Fault.PROMPTS_LOST, Fault.ALL_ALIKE)
    assert faults(recommend(evaluation(few, base_kept=0.85, training_diversity=0.7)))[0] == ()


def test_a_loss_that_rises_with_the_steps_or_above_the_base_is_rejected() -> None:
    rows = [
        row(100, 0.3, loss=0.9),
        row(200, 0.6, loss=0.905),  # by less than a hundredth
        row(300, 0.9, loss=0.95),
        row(400, 1.5, loss=1.05),
        row(300, 0.5, strength=0.5, loss=0.95),  # the first in its strength
    ]
    found = recommend(evaluation(*rows))
    assert taken(found) == (200, 1.0)
    assert faults(found)[2:] == [(Fault.OVERFITTED,), (Fault.WORSE_THAN_BASE,), ()]
    other = replace(rows[2], candidate=replace(rows[2].candidate, run="another"))
    assert faults(recommend(evaluation(*rows[:2], other)))[2] == ()
    trained = recommend(evaluation(*rows, are_held_out=False))  # that loss says nothing
    assert faults(trained) == [()] * 5


def test_a_loss_that_falls_with_the_steps_rejects_nobody() -> None:
    rows = [row(100, 0.5, loss=0.99), row(200, 0.6, loss=0.9), row(0, 0.5, loss=0.95)]
    assert faults(recommend(evaluation(*rows))) == [(), (), ()]


def test_a_rise_within_the_noise_is_none() -> None:
    noisy = row(200, 0.6)
    losses = noisy.candidate.losses + np.array([0.9, -0.7, 0.5, -0.5, 0.4, -0.3])[:, None]
    noisy = replace(noisy, candidate=replace(noisy.candidate, losses=losses))
    assert Fault.OVERFITTED not in faults(recommend(evaluation(row(100), noisy)))[1]


def test_little_or_unsure_gain_is_not_enough_and_then_nothing_is_recommended() -> None:
    rows = [row(10, 0.15, scatter=0.01), row(20, 0.4, scatter=1.0), row(30, -0.5)]
    found = recommend(evaluation(*rows, are_held_out=False))
    assert found.best is None and faults(found) == [(Fault.LITTLE_GAIN,)] * 3
    text = report_text(found, SPEC, [], 6)
    assert text.startswith("None is good enough: little gain.\nLittle gain: the LoRA has learned")


def test_where_the_base_is_there_already_the_held_out_loss_decides() -> None:
    rows = [replace(row(step, loss=loss), gain=None) for step, loss in ((100, 0.97), (200, 0.9))]
    found = recommend(evaluation(*rows))
    assert taken(found) == (200, 1.0)
    text = report_text(found, SPEC, [], 6)
    assert "Its loss on held-out pictures is 10 % ± 0 below the base's." in text
    assert "The base draws like the training pictures already" in text
    unknown = recommend(evaluation(*rows, are_held_out=False))
    assert unknown.best is None and faults(unknown) == [(Fault.LITTLE_GAIN,)] * 2
    assert "cannot be told" in report_text(unknown, SPEC, [], 6)


def test_the_report_gives_reasons_figures_and_names_of_what_was_copied() -> None:
    rows = [row(100, 0.4), row(200, 0.41), row(900, 0.9, copies=5)]
    found = recommend(evaluation(*rows))
    text = report_text(found, SPEC, ["a note."], 6)
    lines = text.splitlines()
    assert lines[0] == "Recommended: step 100 at strength 1."
    assert "come 40 % ± " in lines[1] and lines[4] == (
        "None of its pictures is a copy of a training picture."
    )
    assert "step 200 at strength 1 scores higher, but by less than chance would explain" in text
    assert "copies 5/8 · score" in text and "· memorised\n" in text and lines[-1] == "a note."
    assert "step 900 at strength 1 copies fox.png (3 ×), bear.png (2 ×)." in lines
    assert "Loss on 6 held-out pictures" in text and "the last of its run" not in text
    last = report_text(recommend(evaluation(row(100, 0.4), row(200, 0.9))), SPEC, [], 6)
    assert "It is the last of its run: more steps may bring still more." in last
    alone = report_text(recommend(evaluation(row(200, 0.9))), SPEC, [], 6)
    assert "the last of its run" not in alone
    trained = report_text(recommend(evaluation(*rows, are_held_out=False)), SPEC, [], 6)
    assert "falls also when a LoRA only memorises" in trained


def test_the_report_tells_the_loss_by_noise_beside_the_base() -> None:
    one = row(100)
    losses = one.candidate.losses * np.array([0.5, 1.0, 1.0, 1.5])
    found = recommend(evaluation(replace(one, candidate=replace(one.candidate, losses=losses))))
    lines = report_text(found, SPEC, [], 6).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("Loss by noise (least noise"))
    assert "base: 1.0025 · 1.0025" in lines[head]
    assert lines[head + 1] == "step 100 at strength 1: −55.0 · −10.0 · −10.0 · +35.0 %"


def test_what_to_try_follows_from_what_is_wrong() -> None:
    rows = [row(100, 0.9, copies=8), row(200, 0.9, loss=1.02, kept=0.5)]
    text = report_text(recommend(evaluation(*rows)), SPEC, [], 6)
    for advice in ("Memorised: it draws", "The loss on held-out pictures rises", "Prompts do not"):
        assert advice in text
    assert "Little gain" not in text


def test_captions_that_were_trained_on_are_told() -> None:
    trained = replace(SPEC, prompts=Prompts(("p",), "captions of the training pictures", True))
    text = report_text(recommend(evaluation(row(100))), trained, [], 6)
    assert "These captions were trained on" in text and "With one prompt alone" in text


def test_copies_of_training_pictures_are_flagged_and_distinct_pictures_are_not() -> None:
    random = np.random.default_rng(3)

    def some(count: int) -> np.ndarray:
        small = random.integers(0, 256, (count, 5, 5, 3), np.uint8)
        return np.repeat(np.repeat(small, 13, axis=1), 13, axis=2)

    training, base, fresh = some(6), some(8), some(8)
    copied = np.concatenate([training[:5, :, ::-1], fresh[:3]])

    def pictures(pixels: np.ndarray) -> Pictures:
        return Pictures([seen(one, 64) for one in pixels])

    losses = np.ones((3, 4))
    candidates = [
        Candidate(name, i, i + 1, 1.0, losses, pictures(pixels))
        for i, (name, pixels) in enumerate((("fresh", fresh), ("copied", copied)))
    ]
    found = compare(
        candidates, pictures(base), losses, pictures(training), "abcdef", range(8), True
    )
    assert [len(row.copies) for row in found.rows] == [0, 5]
    assert sorted((p.picture, p.training) for p in found.rows[1].copies) == [
        (i, i) for i in range(5)
    ]
    # In the eyes of an encoder they are copies too, or else they are none.
    for eyes, copies in ((np.eye(6)[:5], 5), (np.eye(14)[9:], 0)):
        embedded = [
            replace(one, embeddings=_padded(values))
            for one, values in (
                (pictures(training), np.eye(6)),
                (pictures(base), np.eye(14)[6:]),
                (pictures(copied), np.concatenate([_padded(eyes), np.eye(14)[-3:]])),
            )
        ]
        seen_twice = replace(candidates[1], pictures=embedded[2])
        found = compare([seen_twice], embedded[1], losses, embedded[0], "abcdef", range(8), True)
        assert len(found.rows[0].copies) == copies and found.has_encoder


def _padded(vectors: np.ndarray) -> np.ndarray:
    return np.pad(vectors, ((0, 0), (0, 14 - vectors.shape[1]))).astype(np.float32)


@pytest.mark.parametrize("steps_are_known", [True, False])
def test_the_picture_has_room_for_many_rows_copies_and_long_names(steps_are_known: bool) -> None:
    rows = [row(100 * (i + 1), 0.1 * i, copies=i % 4) for i in range(MOST_ROWS + 5)]
    if not steps_are_known:
        rows = [
            replace(r, candidate=replace(r.candidate, step=0, name="一个很长的名字" * 12))
            for r in rows
        ]
    found = recommend(evaluation(*rows))
    image = draw_evaluation(found)
    assert image.shape[1:] == (1280, 3) and 1200 < image.shape[0] < 2200
    assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.05
    plain = draw_evaluation(recommend(evaluation(row(100))))
    assert plain.shape[0] < image.shape[0]


def test_every_prompt_is_drawn_once_then_again_with_the_next_seed() -> None:
    prompts = Prompts(("a", "b", "c"), "", False)
    spec = replace(SPEC, prompts=prompts, images_per_checkpoint=8)
    assert spec.asked == [(0, 7), (1, 7), (2, 7), (0, 3), (1, 3), (2, 3), (0, 4), (1, 4)]
    many = replace(spec, prompts=Prompts(tuple("abcdefghijk"), "", False), images_per_checkpoint=3)
    assert many.asked == [(0, 7), (5, 7), (10, 7)]
    assert evenly(range(5), 1) == [0] and evenly("abc", 5) == ["a", "b", "c"]


def test_prompts_are_those_written_then_held_out_captions_then_trained_ones() -> None:
    def sample(name: str, caption: str, role: Role) -> Sample:
        return Sample(ImagePixels(PIXELS[0]), name, (caption,), role=role)

    both = ImageDataset(
        (sample("1", "a", Role.TRAIN), sample("2", "b", Role.VALIDATION)),
    )
    assert chosen_prompts(" x \n\nx\ny", both).texts == ("x", "y")
    assert chosen_prompts("", both)[0::2] == (("b",), False)
    assert chosen_prompts("", ImageDataset(both.samples[:1]))[0::2] == (("a",), True)
    with pytest.raises(AtelierError, match="the dataset has no captions. Write prompts"):
        chosen_prompts("", ImageDataset((sample("1", "", Role.TRAIN),)))


def test_what_cannot_be_evaluated_is_refused() -> None:
    with pytest.raises(AtelierError, match="There is no LoRA to evaluate"):
        replace(SPEC, loras=())
    with pytest.raises(AtelierError, match="would draw 1920 pictures: 64 × "):
        replace(SPEC, loras=tuple("abcdefghijklmnopqrstuvwxyzabc"), images_per_checkpoint=64)
    with pytest.raises(AtelierError, match="images_per_checkpoint is 1: "):
        replace(SPEC, images_per_checkpoint=1)
    assert parse_evaluated_strengths("0.6, 1,0.6") == (0.6, 1.0)
    with pytest.raises(AtelierError, match="strengths is -1.0: "):
        parse_evaluated_strengths("-1")
