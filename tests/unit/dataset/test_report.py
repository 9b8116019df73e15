"""What the report finds, and how it says it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_atelier.training.dataset.analysis import Analysis, Edges, Measurements
from lora_atelier.training.dataset.fit import Crop, FitOptions
from lora_atelier.training.dataset.pictures import ImageFile, ImagePixels
from lora_atelier.training.dataset.report import DatasetReport, distinct_captions, examine
from lora_atelier.training.dataset.report_findings import findings
from lora_atelier.training.dataset.report_text import report_text, short_text
from lora_atelier.training.dataset.samples import ImageDataset, Mask, Problem, Role, Sample
from lora_atelier.training.dataset.spread import Spread
from lora_atelier.training.dataset.token_counts import EncoderTokens
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.runs.batches import BatchPlan
from lora_atelier.training.runs.examples import items
from reported import FIT, blurred, report_on, sample, tiles


def whats(report: DatasetReport) -> list[str]:
    return [found.what for found in findings(report)]


def advice(report: DatasetReport, what: str) -> str:
    (found,) = [f for f in findings(report) if f.what == what]
    return found.advice


def test_a_sound_set_has_nothing_to_mend() -> None:
    report = report_on(sample(0, "a red fox"), sample(1, "a cat"))
    assert findings(report) == []
    assert "WHAT TO MEND\nNothing was found.\n" in report_text(report)
    assert short_text(report) == (
        "set: 2 pictures\n"
        "2 an epoch · 1 bucket · 1 optimizer step an epoch at batch 2\n"
        "Nothing was found."
    )


def test_the_whole_text_of_a_small_set() -> None:
    tokens = (EncoderTokens("l", 75, False, (3, 2), ()),)
    report = report_on(
        sample(0, "sks, standing, red fox"),
        sample(1, "sks, sitting", size=(512, 256), num_repeats=3),
        tokens=tokens,
        gradient_accumulation_steps=2,
    )
    assert report_text(report) == "\n".join(
        [
            "set: 2 pictures",
            "4 an epoch · 2 buckets · 2 optimizer steps an epoch at batch 2 × 2 accumulated",
            "",
            "WHAT TO MEND",
            "1. An epoch takes 4 batches instead of 2: each of the 2 buckets ends with a short "
            "one. Use fewer buckets (larger bucket_reso_steps in Fit Images) or a smaller "
            "train_batch_size.",
            "",
            "SIZES AND SHARPNESS",
            "2 sizes, from 256×256 to 512×256 px",
            "most frequent: 256×256 (1), 512×256 (1)",
            f"median blur of the edges: {report.blur:.1f} px of 512 (0.4 to 0.8 is sharp)",
            "",
            "BUCKETS",
            "width × height  pictures  an epoch  batches   cut",
            "       256×256         1         1        1    0%",
            "       320×192         1         3        3   17%",
            "",
            "STEPS",
            "2 optimizer steps an epoch at batch 2 × 2 accumulated; 1000 steps are 500 epochs",
            "4 batches, 2 of them because a bucket's last batch is short; pictures in short "
            "batches weigh more",
            "",
            "CAPTIONS",
            "tags; 4 different tags",
            "most frequent: sks (2)",
            "in every caption: sks. The trigger word belongs there; take others out of the "
            "captions to have the trigger word stand for them too",
            "only once: 3 (standing, red fox, sitting)",
            "",
            "TOKENS",
            "l: median 2, longest 3; 0 of 2 over 75",
            "",
            "VARIETY",
            "named in too few captions to judge: pose, angle, framing, expression",
            "",
            "WHERE THEY COME FROM",
            "source: my photos",
            "licence: CC0",
        ]
    )


def test_the_cut_and_the_scale_of_a_picture_by_hand() -> None:
    """512×300 px at 256 px. The bucket of the nearest aspect ratio is 320×192 (1.67 for 1.71):
    the picture is scaled to 328×192, of which 8 columns go: 8/328. 100×100 px is scaled 2.56×."""
    report = report_on(sample(0, size=(512, 300)), sample(1, size=(100, 100)))
    wide, small = report.fitted
    assert wide.placement.resized == (328, 192)
    assert wide.cut == pytest.approx(8 / 328)
    assert wide.upscale == pytest.approx(0.640625)
    assert small.upscale == pytest.approx(2.56)
    assert [f.sample for f in report.too_small] == [1]
    said = advice(report, "1 picture is smaller than what they train at")
    assert said.startswith("1.png (scaled up 2.56×).")


def test_a_picture_at_several_resolutions_is_named_once_by_the_worst() -> None:
    for resolutions in ((256, 512), (512, 256)):
        fit = FitOptions(resolutions=resolutions)
        small, large = sample(0, size=(200, 200), fit=fit), sample(1, size=(600, 600), fit=fit)
        report = report_on(small, large)
        assert [(f.sample, f.resolution) for f in report.too_small] == [(0, 512)]
    assert {(b.size, b.pictures) for b in report.buckets} == {((256, 256), 2), ((512, 512), 2)}


def test_what_a_square_cut_takes_away_is_said() -> None:
    square = FitOptions(resolutions=(256,), enable_bucket=False)
    report = report_on(sample(0, size=(600, 300), fit=square), sample(1))
    assert report.fitted[0].cut == pytest.approx(0.5)
    assert advice(report, "1 picture loses 20% or more to the crop").startswith("0.png (50%).")


def test_steps_and_buckets_are_those_of_training() -> None:
    samples = [
        sample(i, size=((256, 256), (384, 256), (200, 640))[i % 3], num_repeats=1 + i % 4)
        for i in range(17)
    ]
    samples[3] = replace(samples[3], role=Role.VALIDATION)
    samples[4] = replace(samples[4], role=Role.REGULARISATION)
    report = report_on(*samples, train_batch_size=4, gradient_accumulation_steps=5)
    views, repeats, buckets = items(ImageDataset(tuple(samples)))
    plan = BatchPlan(repeats, buckets, 4, seed=9)
    assert report.epoch is not None
    assert report.epoch.batches == plan.batches_per_epoch == sum(b.batches for b in report.buckets)
    assert report.epoch.pictures == sum(repeats) == sum(b.seen for b in report.buckets)
    assert report.epoch.batches % 5 != 0
    assert report.epoch.steps == pytest.approx(plan.batches_per_epoch / 5)
    assert sum(b.pictures for b in report.buckets) == len(views) == 16


def test_the_same_file_and_the_same_picture_are_told_apart() -> None:
    again = replace(sample(0), name="again.png")
    pixels = tiles(0).pixels.copy()
    pixels[0, 0] ^= 1
    nearly = replace(sample(0), image=ImagePixels(pixels), name="nearly.png")
    report = report_on(sample(0), again, sample(1), nearly)
    assert report.same == ((0, 1),)
    assert report.near == ((0, 3),)
    assert advice(report, "1 picture is the same file as another").startswith("0.png = again.png.")
    near = advice(report, "1 picture is nearly the same as another")
    assert near.startswith("0.png = nearly.png. Look at these")


def test_a_picture_on_both_sides_of_the_split_is_a_leak() -> None:
    held_out = replace(sample(0), name="held.png", role=Role.VALIDATION)
    report = report_on(sample(0), held_out, sample(1), sample(2, role=Role.VALIDATION))
    assert report.leaks == [(0, 1)]
    assert whats(report)[0] == "1 picture is held out for validation though a copy trains"
    both_held = report_on(sample(1), held_out, replace(held_out, name="twice.png"))
    assert both_held.same == ((1, 2),)
    assert both_held.leaks == []


def test_a_blurred_picture_stands_out_and_a_soft_set_is_called_soft() -> None:
    sharp = [sample(i) for i in range(4)]
    soft = [replace(sample(i), image=blurred(tiles(i), 2)) for i in range(4, 8)]
    one = report_on(*sharp, soft[0])
    assert one.blurred == [4]
    assert advice(one, "1 picture seems blurred").startswith("4.png (1.")
    assert "Look at these" in advice(one, "1 picture seems blurred")
    report = report_on(*soft)
    assert report.blurred == []
    assert "The set is soft as a whole" in whats(report)
    assert "The set is soft as a whole" not in whats(one)


def test_softness_is_judged_beside_the_others() -> None:
    """About 1 px is soft beside sharp pictures, and usual where all have it."""
    softer = [replace(sample(i), image=blurred(tiles(i), 1.2)) for i in range(4)]
    assert report_on(*softer).blurred == []
    assert report_on(softer[0], *[sample(i) for i in range(4, 8)]).blurred == [0]
    softest = replace(sample(9), image=blurred(tiles(9), 3))
    assert report_on(*softer, softest).blurred == [4]


def test_a_picture_of_one_colour_is_named() -> None:
    plain = replace(sample(5), image=ImagePixels(np.full((256, 256, 3), 90, np.uint8)))
    report = report_on(sample(0), plain)
    assert advice(report, "1 picture is of one colour").startswith("5.png.")
    assert report.near == ()


def test_captions_that_are_missing_empty_or_all_the_same() -> None:
    report = report_on(sample(0, ""), sample(1, ("a fox", "")), sample(2, "a fox"))
    assert advice(report, "1 picture has no caption").startswith("0.png.")
    assert advice(report, "1 picture has an empty caption among several").startswith("1.png.")
    assert advice(report, "Every picture has the same caption").startswith('"a fox".')
    assert "Every picture has the same caption" not in whats(report_on(sample(0, "a fox")))


def test_a_forgotten_trigger_word_is_named_with_the_pictures() -> None:
    captions = ["sks, fox", "sks, cat", "sks, dog", "sks, cow", "owl"]
    report = report_on(*[sample(i, caption) for i, caption in enumerate(captions)])
    said = advice(report, '"sks" is in 4 of 5 captions')
    assert said == "not in those of 4.png. If it is the trigger word, add it there."


def test_a_one_sided_character_set_is_told() -> None:
    captions = [f"sks, from front, {pose}" for pose in ("standing", "sitting", "running") * 4]
    report = report_on(*[sample(i, caption) for i, caption in enumerate(captions)])
    (found,) = [f for f in findings(report) if "nearly always" in f.what]
    assert found.what == "The angle is nearly always “front”"
    assert found.advice.startswith("12 of the 12 captions that name one.")
    text = report_text(report)
    assert "pose: standing 4, sitting 4, running 4 (named in 12 of 12" in text
    assert "evenness 1.00 of 1)" in text
    assert "named in too few captions to judge: framing, expression" in text


def test_a_few_words_in_a_large_set_say_nothing_of_its_variety() -> None:
    captions = ["from front"] * 6 + [f"a thing {i}" for i in range(60)]
    report = report_on(*[sample(i, c, size=(64, 64)) for i, c in enumerate(captions)])
    assert report.told_variety == {}
    assert not any("nearly always" in what for what in whats(report))


def test_long_captions_are_told_by_the_encoder_that_splits_or_cuts() -> None:
    def tokens(cuts: bool, limit: int | None = 75) -> tuple[EncoderTokens, ...]:
        beyond = ((1, "the last words"),) if limit else ()
        return tuple(EncoderTokens(e, limit, cuts, (9, 80), beyond) for e in ("l", "g"))

    two = (sample(0, "short"), sample(1, "long"))
    split = report_on(*two, tokens=tokens(cuts=False))
    said = advice(split, "1 caption has more than 75 tokens")  # once for both encoders
    assert said.startswith("ComfyUI reads them in several passes; many other programs cut there.")
    assert 'The longest has 80; beyond lies "the last words".' in said
    assert "g + l: median 44, longest 80; 1 of 2 over 75, up to 2 passes" in report_text(split)
    cut = report_on(*two, tokens=tokens(cuts=True))
    assert "the encoder g + l cuts off the rest" in advice(cut, "1 caption has more than 75 tokens")
    free = report_on(*two, tokens=tokens(cuts=False, limit=None))
    assert findings(free) == []
    assert "g + l: median 44, longest 80; any length goes through" in report_text(free)


def test_without_a_clip_it_says_that_tokens_were_not_counted() -> None:
    assert "TOKENS\nnot counted: connect clip" in report_text(report_on(sample(0)))


def test_pictures_without_source_or_licence_are_named() -> None:
    neither = [sample(i, source="", license=" ") for i in range(2)]
    assert advice(report_on(*neither), "2 pictures have neither source nor licence").startswith(
        "all of them. Fill in source and license in Load Image Dataset"
    )
    one = report_on(sample(0), sample(1, license=""))
    assert advice(one, "1 picture has no licence").startswith("1.png. Fill in license in")


def test_files_left_out_and_broken_pictures_are_named_with_their_reason(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(tiles(3).pixels).save(whole)
    broken = tmp_path / "broken.png"
    broken.write_bytes(whole.read_bytes()[:300])
    file = replace(sample(1), image=ImageFile(str(broken), (256, 256)), name="broken.png")
    problem = Problem("note.png", '"note.png" is not an image, whatever its name says.')
    report = report_on(sample(0), file, problems=(problem,))
    assert whats(report) == ["2 files are left out, 1 because broken"]
    said = advice(report, whats(report)[0])
    assert '\n   "broken.png" is damaged or cut short' in said
    assert said.endswith('\n   "note.png" is not an image, whatever its name says.')
    assert [s.name for s in report.samples] == ["0.png"]
    assert report_text(report).startswith("set: 1 picture\n")


def test_when_all_are_broken_the_report_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"no picture")
    file = replace(sample(1), image=ImageFile(str(path), (256, 256)), name="x.png")
    report = report_on(file)
    assert report.epoch is None
    assert whats(report) == ["1 file is left out as broken", "There is nothing to train on"]
    assert "BUCKETS" not in report_text(report)


def test_a_set_for_validation_alone_cannot_train() -> None:
    report = report_on(sample(0, role=Role.VALIDATION))
    assert "There is nothing to train on" in whats(report)
    assert report_text(report).startswith("set: 1 picture, 0 to train on, 1 for validation\n\n")


def test_a_picture_without_room_for_a_step_is_named() -> None:
    fit = FitOptions(resolutions=(256,), bucket_no_upscale=True)
    report = report_on(sample(0, size=(300, 20), fit=fit), sample(1, fit=fit))
    assert whats(report)[0] == "1 picture is too narrow for a bucket and cannot train"
    assert report.fitted[0].cut == 1


def test_everything_at_once_is_in_order_of_weight() -> None:
    captions = ["sks, front view, standing"] * 8 + ["", "front view"]
    samples = [
        replace(sample(i % 7, caption, size=(100, 300), license=""), name=f"{i}.png")
        for i, caption in enumerate(captions)
    ]
    samples[0] = replace(samples[0], role=Role.VALIDATION)
    report = report_on(*samples, problems=(Problem("a", "a is broken."),), train_batch_size=4)
    assert whats(report) == [
        "1 file is left out",
        "1 picture is held out for validation though a copy trains",
        "1 picture has no caption",
        "3 pictures are the same file as another",
        '"sks" is in 7 of 8 captions',
        "10 pictures are smaller than what they train at",
        "The pose is nearly always “standing”",
        "The angle is nearly always “front”",
        "10 pictures have no licence",
    ]


def test_random_crops_and_masks_change_nothing_in_the_report() -> None:
    usual = report_on(sample(0, size=(512, 300)))
    fit = replace(FIT, crop=Crop.RANDOM, flip_aug=True)
    other = report_on(sample(0, size=(512, 300), fit=fit, mask=Mask.ALPHA))
    assert report_text(other) == report_text(usual)


def test_the_spread_names_pictures_of_the_training_set_alone() -> None:
    spread = Spread(0.25, ((0, 1, 0.9),), ((1, 0.5),), 2)
    report = report_on(sample(7, role=Role.VALIDATION), sample(8), sample(9), spread=spread)
    text = report_text(report)
    assert "spread in the eyes of clip_vision: 0.250 (0 = all alike" in text
    assert "most alike: 8.png = 9.png (0.90)" in text
    assert "farthest from the rest: 9.png (0.50)" in text


def test_marks_for_kept_tokens_are_not_counted_as_words() -> None:
    assert distinct_captions([sample(0, ("sks ||| fox", ""))]) == ["sks , fox"]


@pytest.mark.parametrize("widget", ["train_batch_size", "gradient_accumulation_steps"])
def test_sizes_that_cannot_train_are_refused(widget: str) -> None:
    with pytest.raises(AtelierError, match=f"{widget} is 0"):
        report_on(sample(0), **{widget: 0})


def test_five_thousand_pictures_take_no_time_and_two_screens() -> None:
    rng = np.random.default_rng(0)
    images = [tiles(i, *rng.integers(64, 400, 2)) for i in range(40)]
    samples = tuple(
        Sample(images[i % 40], f"{i:05}.png", (f"sks, thing {i}, word {i % 7}",), fit=FIT)
        for i in range(5000)
    )
    hashes = [int.from_bytes(rng.bytes(8), "big") for _ in samples]
    found = tuple(
        Measurements(
            Edges(100, rng.uniform(20, 400)),
            Edges(0, 0),
            50.0,
            phash,
            np.zeros((8, 8, 3), np.uint8),
        )
        for phash in hashes
    )
    analysis = Analysis(tuple(str(i // 2) for i in range(5000)), found, ())
    began = time.perf_counter()
    report = examine(ImageDataset(samples), analysis, 4, 1)
    text = report_text(report)
    assert time.perf_counter() - began < 20
    assert "2500 pictures are the same file as another" in text
    assert text.count("\n") < 60
    assert max(map(len, text.split("\n"))) < 600
