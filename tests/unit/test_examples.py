"""What is seen at a place of the run, how often, and that all of it was encoded before."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_atelier.training.dataset.caption_options import CaptionOptions
from lora_atelier.training.dataset.fit import Crop, FitOptions, Placement, Variant, bucket_of, place
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.samples import ImageDataset, Role, Sample
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.runs.batches import BatchPlan, Draw
from lora_atelier.training.runs.examples import (
    EncodedDataset,
    EncodedImage,
    View,
    captions,
    draw_caption,
    effective_repeats,
    items,
    placement_of,
    stacked_masks,
    views,
)

SQUARE = FitOptions((64,))
VARIED = FitOptions(
    (64, 128), bucket_reso_steps=8, crop=Crop.RANDOM, crop_variants=3, flip_aug=True
)
TAGS = ("a fox, red, snow, forest", "one fox, white, night")


def _sample(name: str, repeats: int = 1, role: Role = Role.TRAIN, **fields) -> Sample:
    fields.setdefault("captions", (f"caption of {name}",))
    fields.setdefault("fit", SQUARE)
    size = fields.pop("size", (64, 64))
    return Sample(ImageFile(name, size), name, num_repeats=repeats, role=role, **fields)


def _dataset(
    train: list[int], regularisation: list[int] = (), validation: list[int] = (), **fields
) -> ImageDataset:
    """Repeats of the pictures of each role."""
    groups = [("t", train, Role.TRAIN), ("r", regularisation, Role.REGULARISATION)]
    groups += [("v", validation, Role.VALIDATION)]
    return ImageDataset(
        tuple(
            _sample(f"{letter}{i}", n, role, **fields)
            for letter, repeats, role in groups
            for i, n in enumerate(repeats)
        )
    )


def _encoded(dataset: ImageDataset) -> EncodedDataset:
    """Latents and texts that say what they are, and nothing that was not listed."""
    images = {
        view: EncodedImage(torch.full((1, 2, 2), float(number)))
        for number, view in enumerate(views(dataset))
    }
    return EncodedDataset(dataset, images, {text: f"encoded {text}" for text in captions(dataset)})


def _repeats_by_kohya(train: list[int], regularisation: list[int]) -> list[int]:
    """D8, rule by rule: go round the regularisation pictures, the first time with their repeats
    and then once more each, until as many are registered as there are training pictures."""
    registered: dict[int, int] = {}
    count, first_round = 0, True
    while count < sum(train):
        for i, repeats in enumerate(regularisation):
            registered[i] = registered.get(i, 0) + (repeats if first_round else 1)
            count += repeats if first_round else 1
            if count >= sum(train):
                break
        first_round = False
    return [registered.get(i, 0) for i in range(len(regularisation))]


@pytest.mark.parametrize(
    ("train", "regularisation", "expected"),
    [
        ([10], [1, 1, 1], [4, 3, 3]),  # one round, then 7 more: 3 + 2 + 2
        ([10], [4, 4], [5, 5]),
        ([2, 3], [2, 2, 2, 2], [2, 2, 2, 0]),  # 6 ≥ 5 after the third: the fourth is not used
        ([1], [5, 5], [5, 0]),
        ([2, 3], [], []),
    ],
)
def test_regularisation_pictures_repeat_until_they_are_as_many(
    train: list[int], regularisation: list[int], expected: list[int]
) -> None:
    assert effective_repeats(_dataset(train, regularisation, [7])) == train + expected + [0]


counts = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@given(counts, counts, st.lists(st.integers(1, 9), max_size=3))
@settings(max_examples=200)
def test_repeats_equal_kohyas_rule(train, regularisation, validation) -> None:
    expected = train + _repeats_by_kohya(train, regularisation) + [0] * len(validation)
    dataset = _dataset(train, regularisation, validation)
    assert effective_repeats(dataset) == expected
    several = [replace(s, fit=FitOptions((64, 128, 192))) for s in dataset.samples]
    assert effective_repeats(dataset.changed(several)) == expected


@given(counts, counts, st.randoms(use_true_random=False))
def test_regularisation_is_as_many_views_when_resolutions_differ(train, regularisation, rng):
    """No fewer than training pictures, and more only by what the last one brought."""
    some = [FitOptions((64,)), FitOptions((64, 128)), FitOptions((64, 128, 192))]
    dataset = _dataset(train, regularisation)
    dataset = dataset.changed(replace(s, fit=rng.choice(some)) for s in dataset.samples)
    found = items(dataset)
    roles = [dataset.samples[i].role for i, _ in found.views]
    seen = Counter()
    for role, repeats in zip(roles, found.num_repeats, strict=True):
        seen[role] += repeats
    excess = seen[Role.REGULARISATION] - seen[Role.TRAIN]
    assert seen[Role.TRAIN] == dataset.images_per_epoch
    assert 0 <= excess < 9 * 3


def test_many_repeats_are_counted_and_not_walked() -> None:
    begin = time.process_time()
    repeats = effective_repeats(_dataset([10_000] * 2000, [1, 1, 1]))
    assert repeats[-3:] == [6_666_667, 6_666_667, 6_666_666]
    assert time.process_time() - begin < 10


@pytest.mark.parametrize("role", [Role.REGULARISATION, Role.VALIDATION])
def test_a_dataset_without_training_pictures_is_refused_in_words(role: Role) -> None:
    dataset = ImageDataset((_sample("a", role=role),), "portraits")
    assert effective_repeats(dataset) == [0]
    assert views(dataset) == ([View(0, Variant(0))] if role is Role.VALIDATION else [])
    with pytest.raises(AtelierError, match='^dataset: "portraits" holds no pictures to train on'):
        items(dataset)


def test_items_are_the_seen_samples_at_each_resolution_with_their_buckets() -> None:
    two = FitOptions((512, 768))
    dataset = ImageDataset(
        (
            _sample("held out", 5, Role.VALIDATION, fit=two),
            _sample("wide", 3, fit=two, size=(1920, 1080)),
            _sample("class", 9, Role.REGULARISATION, fit=FitOptions(), size=(600, 400)),
            _sample("unused", 9, Role.REGULARISATION, fit=two),
            _sample("square", 1, fit=FitOptions(), size=(600, 600)),
        )
    )
    found = items(dataset)
    assert found.views == ((1, 0), (1, 1), (2, 0), (4, 0))
    assert found.num_repeats == (3, 3, 9, 1)
    wide = bucket_of((1920, 1080), two, 768)
    assert found.buckets == ((640, 384), wide, (640, 384), (512, 512))
    assert wide == (1024, 576)


def test_a_hundred_thousand_pictures_are_listed_fast() -> None:
    fit = FitOptions((1024,))
    dataset = ImageDataset(
        tuple(_sample(str(i), fit=fit, size=(600 + i % 999, 700)) for i in range(100_000))
    )
    begin = time.process_time()
    assert len(items(dataset).views) == 100_000
    assert time.process_time() - begin < 20


def test_views_are_every_resolution_crop_and_mirroring_of_what_is_seen() -> None:
    dataset = ImageDataset(
        (
            _sample("plain"),
            _sample("varied", fit=VARIED),
            _sample("held out", role=Role.VALIDATION, fit=VARIED),
            _sample("class", 9, Role.REGULARISATION),
            _sample("unused", role=Role.REGULARISATION, fit=VARIED),
        )
    )
    found = views(dataset)
    varied = {Variant(r, c, f) for r in range(2) for c in range(3) for f in (False, True)}
    assert {view.variant for view in found if view.sample == 1} == varied
    assert [view for view in found if view.sample != 1] == [
        View(0, Variant(0)),
        View(2, Variant(0)),
        View(3, Variant(0)),
    ]
    assert len(found) == len(set(found)) == 3 + prod((2, 3, 2))


CAPTION_OPTIONS = [
    CaptionOptions(),
    CaptionOptions(caption_dropout_rate=0.3),
    CaptionOptions(shuffle_caption=True, keep_tokens=1, caption_variants=4),
    CaptionOptions(caption_tag_dropout_rate=0.5, caption_dropout_every_n_epochs=2),
    CaptionOptions(shuffle_caption=True, enable_wildcard=True, caption_variants=3),
]


@pytest.mark.parametrize("options", CAPTION_OPTIONS)
def test_no_more_and_no_less_is_encoded_than_is_drawn(options: CaptionOptions) -> None:
    """Over 400 epochs everything that is listed is asked for, and nothing else; a picture that is
    held out is seen in one way alone, under its first caption with all tags in order."""
    dataset = ImageDataset(
        (
            _sample("a", 2, captions=TAGS, fit=VARIED, size=(200, 100), caption_options=options),
            _sample("b", captions=("{cat|dog}, grey, wall",), caption_options=options),
            _sample(
                "v", 1, Role.VALIDATION, captions=TAGS[::-1], fit=VARIED, caption_options=options
            ),
        )
    )
    data, found = _encoded(dataset), items(dataset)
    plan = BatchPlan(found.num_repeats, found.buckets, 2, seed=5)
    asked_views, asked_texts = set(), set()
    for micro_step in range(400 * plan.batches_per_epoch):
        for draw in plan.batch(micro_step):
            sample, resolution = found.views[draw.item]
            example = data.example(sample, resolution, plan.seed, draw)
            asked_texts.add(example.conditioning.removeprefix("encoded "))
            asked_views.add(list(data.images)[int(example.image.latent[0, 0, 0])])
            assert example.placement.size == found.buckets[draw.item]
    held_out = data.held_out_example(2)
    assert held_out.conditioning == f"encoded {TAGS[1]}"
    asked_texts.add(TAGS[1])
    asked_views.add(View(2, Variant(0)))
    assert asked_views == set(data.images) == set(views(dataset))
    assert asked_texts | {""} == set(data.conditioning)
    assert len(captions(dataset)) == len(set(captions(dataset)))
    assert captions(dataset)[0] == ""


def test_an_example_is_the_sample_itself() -> None:
    """Latent, caption, placement, weight and role of one sample, at the resolution asked for."""
    roles = [Role.TRAIN, Role.REGULARISATION] * 3
    samples = tuple(
        _sample(f"{i}", 1, role, fit=FitOptions((64, 128)), size=(90, 90 + i), loss_weight=i / 10)
        for i, role in enumerate(roles)
    )
    data = _encoded(ImageDataset(samples))
    for i, sample in enumerate(samples):
        for resolution in range(2):
            example = data.example(i, resolution, 0, Draw(i, 0, 0))
            variant = Variant(resolution)
            assert example.image is data.images[View(i, variant)]
            assert example.conditioning == f"encoded caption of {i}"
            assert example.placement == place(sample.image.size, sample.fit, variant, sample.name)
            assert (example.loss_weight, example.role) == (i / 10, roles[i])


def test_a_placement_is_keyed_by_the_name_of_the_sample() -> None:
    one, two = (_sample(name, fit=VARIED, size=(300, 90)) for name in ("one", "two"))
    variants = [Variant(1, crop) for crop in range(3)]
    assert [placement_of(one, v) for v in variants] != [placement_of(two, v) for v in variants]
    moved = replace(one, image=ImageFile("/elsewhere/one", (300, 90)))
    assert [placement_of(one, v) for v in variants] == [placement_of(moved, v) for v in variants]


def test_what_is_drawn_is_a_function_of_seed_epoch_and_position() -> None:
    """Crop, mirroring and caption each differ from position to position, with another seed and in
    another epoch; nothing else plays a part."""
    options = CaptionOptions(caption_dropout_rate=0.3)
    sample = _sample("a", captions=TAGS, fit=VARIED, size=(300, 90), caption_options=options)
    data = _encoded(ImageDataset((sample,)))

    def seen(seed: int, epoch: int, item: int = 0) -> list[tuple]:
        drawn = [data.example(0, 1, seed, Draw(item, epoch, p)) for p in range(40)]
        return [
            tuple(e.placement.crop for e in drawn),
            tuple(e.placement.flip for e in drawn),
            tuple(e.conditioning for e in drawn),
        ]

    first = seen(1, 0)
    torch.manual_seed(3)
    assert seen(1, 0, item=9) == first
    assert all(len(set(values)) > 1 for values in first)
    for other in (seen(2, 0), seen(1, 1)):
        assert all(one != two for one, two in zip(first, other, strict=True))


def test_crops_mirrorings_and_alternative_captions_are_drawn_equally_often() -> None:
    """3 × 2 × 2 ways in 2400 draws: 200 expected of each, deviation 13.5."""
    sample = _sample("a", captions=TAGS, fit=VARIED, size=(300, 90))
    data = _encoded(ImageDataset((sample,)))
    numbers = {id(image): view for view, image in data.images.items()}
    drawn = [data.example(0, 1, 0, Draw(0, p // 60, p % 60)) for p in range(2400)]
    ways = Counter((numbers[id(e.image)].variant, e.conditioning) for e in drawn)
    assert len(ways) == 12
    assert all(abs(count - 200) < 70 for count in ways.values())


def test_captions_are_dropped_at_about_the_rate() -> None:
    """0.3 of 3000: 900 expected, deviation 25."""
    sample = _sample("a", caption_options=CaptionOptions(caption_dropout_rate=0.3))
    texts = Counter(draw_caption(sample, 0, Draw(0, p // 50, p % 50)) for p in range(3000))
    assert set(texts) == {"", "caption of a"}
    assert abs(texts[""] - 900) < 130


@pytest.mark.parametrize(("rate", "text"), [(0.0, "caption of a"), (1.0, "")])
def test_a_rate_of_none_or_all_knows_no_exception(rate: float, text: str) -> None:
    sample = _sample("a", caption_options=CaptionOptions(caption_dropout_rate=rate))
    assert {draw_caption(sample, 0, Draw(0, 0, p)) for p in range(300)} == {text}


@pytest.mark.parametrize(
    ("every", "dropped"), [(0, []), (1, [0, 1, 2, 3, 4, 5, 6]), (2, [1, 3, 5]), (3, [2, 5])]
)
def test_every_nth_epoch_goes_without_captions(every: int, dropped: list[int]) -> None:
    """Counted from 1 as sd-scripts does: with 3 it is the third epoch, whose number here is 2."""
    sample = _sample("a", caption_options=CaptionOptions(caption_dropout_every_n_epochs=every))
    for epoch in range(7):
        texts = {draw_caption(sample, 0, Draw(0, epoch, p)) for p in range(10)}
        assert texts == {"" if epoch in dropped else "caption of a"}


def test_masks_of_a_batch_are_whole_where_a_picture_has_none() -> None:
    half = torch.tensor([[1.0, 0.0], [0.5, 0.0]])
    images = [EncodedImage(torch.zeros(4, 2, 2)), EncodedImage(torch.zeros(4, 2, 2), half)]
    stacked = stacked_masks(images)
    assert torch.equal(stacked, torch.stack([torch.ones(2, 2), half]))
    assert stacked_masks(images[:1]) is None
    assert torch.equal(stacked_masks(images[1:]), half[None])


def test_masks_follow_the_last_two_sides_of_a_latent_with_frames() -> None:
    images = [EncodedImage(torch.zeros(4, 1, 2, 3)), EncodedImage(torch.zeros(4, 1, 2, 3))]
    images[1] = replace(images[1], mask=torch.zeros(2, 3))
    assert stacked_masks(images).shape == (2, 2, 3)


def test_an_example_costs_little_beside_a_training_step() -> None:
    """Random crop, mirroring, two captions: well below a millisecond each."""
    sample = _sample("a", captions=TAGS, fit=VARIED, size=(300, 90))
    data = _encoded(ImageDataset((sample,)))
    begin = time.process_time()
    for position in range(2000):
        data.example(0, 1, 0, Draw(0, 0, position))
    assert (time.process_time() - begin) / 2000 < 5e-3


def test_the_size_of_each_sample_travels_with_it() -> None:
    sample = _sample("a", fit=FitOptions((128,), enable_bucket=False), size=(300, 100))
    example = _encoded(ImageDataset((sample,))).example(0, 0, 0, Draw(0, 0, 0))
    assert example.placement == Placement((300, 100), (384, 128), (128, 0), (128, 128))
