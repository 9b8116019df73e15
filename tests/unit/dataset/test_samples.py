"""The dataset value: what belongs to a picture stays with it; the validation split is stable."""

from __future__ import annotations

import hashlib
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.samples import (
    ImageDataset,
    Problem,
    Role,
    Sample,
    require_sample_numbers,
    shorten,
    split_validation,
    tally,
)
from lora_atelier.training.errors import AtelierError


def _sample(name: str, **fields) -> Sample:
    fields.setdefault("captions", (f"caption of {name}", f"other caption of {name}"))
    return Sample(ImageFile(f"/pictures/{name}", (600, 400)), name, **fields)


def _samples(count: int, first: int = 0, **fields) -> tuple[Sample, ...]:
    return tuple(_sample(f"{i}.png", **fields) for i in range(first, first + count))


def _roles(samples: tuple[Sample, ...]) -> dict[str, Role]:
    return {sample.name: sample.role for sample in samples}


names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=20, unique=True)
roles = st.sampled_from(Role)


@given(names, st.data())
@settings(max_examples=100)
def test_captions_stay_with_their_picture_through_filters_sorts_and_changes(names, data) -> None:
    dataset = ImageDataset(tuple(_sample(name, role=data.draw(roles)) for name in names))
    for _ in range(data.draw(st.integers(1, 4))):
        samples = data.draw(st.permutations(dataset.samples))
        samples = samples[: data.draw(st.integers(1, len(samples)))]
        if data.draw(st.booleans()):
            samples = sorted(samples, key=lambda sample: (sample.role.value, sample.name))
        if data.draw(st.booleans()):
            samples = [replace(sample, num_repeats=2) for sample in samples]
        dataset = dataset.changed(samples)
        dataset = dataset.changed(sample for sample in dataset.samples)
    for sample in dataset.samples:
        assert sample.image.path == f"/pictures/{sample.name}"
        assert sample.captions == (f"caption of {sample.name}", f"other caption of {sample.name}")


def test_the_same_dataset_with_other_samples_keeps_name_and_problems() -> None:
    dataset = ImageDataset(_samples(3), "foxes", (Problem("bad.png", "It is empty."),))
    fewer = dataset.changed(dataset.samples[1:])
    assert (fewer.name, fewer.problems) == (dataset.name, dataset.problems)
    assert [sample.name for sample in fewer.samples] == ["1.png", "2.png"]
    assert len(dataset.samples) == 3


def test_a_value_on_a_wire_cannot_be_changed() -> None:
    dataset = ImageDataset(_samples(1))
    with pytest.raises(FrozenInstanceError):
        dataset.samples = ()
    with pytest.raises(FrozenInstanceError):
        dataset.samples[0].captions = ("another",)


def test_no_pictures_are_refused_with_the_reason_the_first_was_left_out() -> None:
    with pytest.raises(AtelierError, match=r"^The dataset holds no pictures\.$"):
        ImageDataset(())
    with pytest.raises(AtelierError, match=r'^The dataset holds no pictures. "a.png" is empty.$'):
        ImageDataset((), problems=(Problem("a.png", '"a.png" is empty.'), Problem("b.png", "Bad.")))


def test_two_pictures_of_one_name_are_refused_and_named() -> None:
    with pytest.raises(AtelierError, match=r"two pictures of one name: 1.png, 2.png\.$"):
        ImageDataset(_samples(3) + _samples(4, first=1)[:2])


def test_samples_are_found_by_role_in_their_order() -> None:
    wanted = [Role.TRAIN, Role.REGULARISATION, Role.TRAIN, Role.VALIDATION]
    dataset = ImageDataset(tuple(_sample(f"{i}", role=role) for i, role in enumerate(wanted)))
    assert [s.name for s in dataset.with_role(Role.TRAIN)] == ["0", "2"]
    assert [s.name for s in dataset.with_role(Role.VALIDATION, Role.TRAIN)] == ["0", "2", "3"]


def test_an_epoch_counts_the_training_pictures_with_repeats_and_resolutions() -> None:
    samples = (
        _sample("a", num_repeats=3),
        _sample("b", num_repeats=2, fit=FitOptions((512, 768))),
        _sample("c", num_repeats=50, role=Role.REGULARISATION),
        _sample("d", num_repeats=50, role=Role.VALIDATION),
    )
    assert ImageDataset(samples).images_per_epoch == 3 + 2 * 2


def test_the_caption_is_the_first_of_the_alternatives() -> None:
    assert _sample("a", captions=("one", "two")).caption == "one"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], ""),
        (["", ""], ""),
        (["CC0", "", "CC0"], "CC0"),
        (["MIT", "CC0", "", "CC0"], "CC0 (2), MIT (1)"),
        (["b", "a"], "b (1), a (1)"),
    ],
)
def test_a_tally_names_the_most_frequent_first(values: list[str], text: str) -> None:
    assert tally(values) == text


def test_sources_and_licences_are_tallied_over_the_pictures() -> None:
    samples = (
        *_samples(2, source="museum", license="CC0"),
        _sample("x", source="my photos"),
        _sample("y", license="CC0"),
    )
    dataset = ImageDataset(samples)
    assert dataset.sources == "museum (2), my photos (1)"
    assert dataset.licenses == "CC0"


def test_the_trigger_phrase_is_that_of_most_training_pictures() -> None:
    others = (
        *(_sample(f"r{i}", role=Role.REGULARISATION, class_tokens="fox") for i in range(5)),
        *(_sample(f"v{i}", role=Role.VALIDATION, class_tokens="owl") for i in range(5)),
        *(_sample(f"n{i}") for i in range(5)),
    )
    trained = (_sample("a", class_tokens="bear"), *_samples(2, class_tokens="sks fox"))
    assert ImageDataset((*others, *trained)).trigger_phrase == "sks fox"
    assert ImageDataset(others).trigger_phrase == ""


@pytest.mark.parametrize(
    ("count", "text"), [(1, "0"), (5, "0, 1, 2, 3, 4"), (8, "0, 1, 2, 3, 4 and 3 more")]
)
def test_a_long_list_of_names_is_shortened(count: int, text: str) -> None:
    assert shorten([str(i) for i in range(count)]) == text


@pytest.mark.parametrize(
    ("repeats", "weight", "words"),
    [
        (0, 1.0, "^num_repeats is 0: .* from 1 to 10000"),
        (10_001, 1.0, "^num_repeats is 10001"),
        (1, -0.1, "^loss_weight is -0.1: .* from 0 to 100"),
        (1, float("nan"), "^loss_weight is nan"),
    ],
)
def test_numbers_out_of_range_are_refused(repeats: int, weight: float, words: str) -> None:
    with pytest.raises(AtelierError, match=words):
        require_sample_numbers(repeats, weight)
    require_sample_numbers(10_000, 0.0)


@given(st.integers(2, 60), st.integers(0, 60), st.floats(0.02, 0.5))
@settings(max_examples=60)
def test_adding_pictures_moves_no_old_one_to_the_other_side(count, added, fraction) -> None:
    old = _samples(count)
    try:
        before = _roles(split_validation(old, fraction))
    except AtelierError:  # all of a few were taken
        return
    mixed = tuple(reversed(old + _samples(added, first=count)))
    after = _roles(split_validation(mixed, fraction))
    moved = {name for name in before if before[name] is not after[name]}
    held_out = [name for name, role in before.items() if role is Role.VALIDATION]
    # One that stood in because the fraction took none may return; no other moves.
    assert moved <= (set(held_out) if len(held_out) == 1 else set())
    if moved:
        assert _share(held_out[0]) >= fraction


def _share(name: str) -> float:
    """Where in [0, 1) a name lies: the first 64 bits of its SHA-256."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 16**16


@given(st.integers(20, 200), st.floats(0.1, 0.9))
@settings(max_examples=60)
def test_a_picture_is_held_out_when_the_hash_of_its_name_lies_below_the_fraction(count, fraction):
    """Written out, so that a change of the hash, which would move pictures, is noticed."""
    expected = {f"{i}.png": _share(f"{i}.png") < fraction for i in range(count)}
    found = _roles(split_validation(_samples(count), fraction))
    assert {name: role is Role.VALIDATION for name, role in found.items()} == expected


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_about_the_fraction_is_held_out(fraction: float) -> None:
    """Of 4000 the deviation is 32 at most (one half): five of them are allowed."""
    held_out = list(_roles(split_validation(_samples(4000), fraction)).values())
    assert abs(held_out.count(Role.VALIDATION) - 4000 * fraction) < 160


def test_at_least_one_is_held_out_and_it_is_the_lowest() -> None:
    found = _roles(split_validation(_samples(9), 1e-9))
    held_out = [name for name, role in found.items() if role is Role.VALIDATION]
    assert held_out == [min(found, key=_share)]


def test_only_training_pictures_are_held_out_and_nothing_else_changes() -> None:
    others = (_sample("reg", role=Role.REGULARISATION), _sample("val", role=Role.VALIDATION))
    samples = _samples(40, num_repeats=3, source="museum") + others
    found = split_validation(samples, 0.5)
    assert found[-2:] == others
    assert tuple(replace(s, role=Role.TRAIN) for s in found[:-2]) == samples[:-2]
    assert {s.role for s in found[:-2]} == {Role.TRAIN, Role.VALIDATION}


def test_without_a_fraction_or_training_pictures_nothing_is_held_out() -> None:
    assert split_validation(_samples(5), 0) == _samples(5)
    regularisation = _samples(5, role=Role.REGULARISATION)
    assert split_validation(regularisation, 0.5) == regularisation


def test_a_split_that_leaves_none_to_train_on_is_refused() -> None:
    words = r"^validation_fraction 0.1 would take every training picture \(1\) .* Set it to 0"
    with pytest.raises(AtelierError, match=words):
        split_validation(_samples(1), 0.1)


@pytest.mark.parametrize("fraction", [-0.1, 0.91, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(AtelierError, match="^validation_fraction is .* 0 = off, 0.1 is usual"):
        split_validation(_samples(5), fraction)
