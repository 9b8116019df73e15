"""From probabilities to captions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_atelier.training.dataset.caption_options import CaptionOptions
from lora_atelier.training.dataset.pictures import ImagePixels
from lora_atelier.training.dataset.samples import Sample
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.tagging.tag_options import (
    ExistingCaptions,
    TagOptions,
    TagOrder,
    without_underscores,
)
from lora_atelier.training.tagging.tag_table import TagTable

TABLE = TagTable(
    ("general", "explicit", "1girl", "long_hair", "red_fox", ">_<", "saber_(fate)", "artist_x"),
    (9, 9, 0, 0, 0, 0, 4, 1),
)
FOUND = ((0, 0.3), (1, 0.6), (2, 0.4), (3, 0.9), (4, 0.35), (5, 0.5), (6, 0.84), (7, 0.36))


def tags(found: Any = FOUND, **options: Any) -> list[str]:
    return TagOptions(**options).tags(found, TABLE)


def captions(given: tuple[str, ...], new: list[str], how: str, **options: Any) -> tuple[str, ...]:
    kept = CaptionOptions(**options.pop("caption_options", {}))
    picture = ImagePixels(np.zeros((8, 8, 3), np.uint8))
    sample = Sample(picture, "a.png", given, caption_options=kept)
    return TagOptions(existing_captions=ExistingCaptions(how), **options).captions(sample, new)


def test_the_thresholds_are_the_least_that_counts() -> None:
    assert tags() == ["long hair", ">_<", "1girl", "artist x", "red fox"]
    assert tags(general_threshold=0.36) == ["long hair", ">_<", "1girl", "artist x"]
    assert tags(general_threshold=1, character_threshold=0.84) == ["saber (fate)"]


def test_most_tags_are_the_surest_in_every_order() -> None:
    assert tags(max_tags=2) == ["long hair", ">_<"]
    assert tags(max_tags=3, order=TagOrder.AS_IN_TABLE) == ["1girl", "long hair", ">_<"]
    assert tags(max_tags=3, order=TagOrder.ALPHABETICAL) == ["1girl", ">_<", "long hair"]


def test_equal_scores_are_in_the_order_of_the_table() -> None:
    assert tags([(4, 0.5), (2, 0.5), (3, 0.5)]) == ["1girl", "long hair", "red fox"]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("long hair", [">_<", "1girl", "artist x", "red fox"]),
        ("Long_Hair,\n 1girl", [">_<", "artist x", "red fox"]),
        ("*_fox", ["long hair", ">_<", "1girl", "artist x"]),
        ("* hair, a*x, >_<", ["1girl", "red fox"]),
        ("*", []),
        ("hair, fox, girl", ["long hair", ">_<", "1girl", "artist x", "red fox"]),
        ("1gir., [a-z]*", ["long hair", ">_<", "1girl", "artist x", "red fox"]),
    ],
)
def test_excluded_tags_are_left_out(exclude: str, left: list[str]) -> None:
    assert tags(exclude_tags=exclude) == left


def test_an_excluded_tag_takes_no_place_of_the_most() -> None:
    assert tags(exclude_tags="long_hair", max_tags=2) == [">_<", "1girl"]


def test_the_likeliest_rating_comes_last_and_no_rating_otherwise() -> None:
    assert tags(add_rating=True)[-1] == "explicit"
    assert tags([(0, 0.3), (3, 0.9)], add_rating=True, max_tags=1) == ["long hair", "general"]
    assert tags([(1, 0.99)]) == []
    assert tags([(1, 0.9), (3, 0.9)], add_rating=True, exclude_tags="Explicit") == ["long hair"]


@pytest.mark.parametrize(
    "kaomoji",
    ["0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9"]
    + [">_o", "@_@", "^_^", "o_o", "u_u", "x_x", "|_|", "||_||"],
)
def test_kaomoji_keep_their_underscores(kaomoji: str) -> None:
    assert without_underscores(kaomoji) == kaomoji


@pytest.mark.parametrize(
    ("name", "text"),
    [("long_hair", "long hair"), ("d-pad_(x)", "d-pad (x)"), ("no_8", "no 8"), (":d", ":d")],
)
def test_other_tags_do_not(name: str, text: str) -> None:
    assert without_underscores(name) == text


def test_underscores_stay_when_they_are_to() -> None:
    assert tags(replace_underscores=False)[0] == "long_hair"


# Captions that are there


NEW = ["long hair", "fox"]


@pytest.mark.parametrize(
    ("how", "there", "after"),
    [
        ("append", ("a girl",), ("a girl, long hair, fox",)),
        ("append", ("fox, a girl",), ("fox, a girl, long hair",)),
        ("append", ("Long_Hair, FOX",), ("Long_Hair, FOX",)),
        ("append", ("",), ("long hair, fox",)),
        ("append", ("a", " ", "fox"), ("a, long hair, fox", "long hair, fox", "fox, long hair")),
        ("append", ("1,000 foxes",), ("1,000 foxes, long hair, fox",)),
        ("prepend", ("a girl",), ("long hair, fox, a girl",)),
        ("prepend", ("fox, a girl", ""), ("long hair, fox, a girl", "long hair, fox")),
        ("replace", ("a girl", "another"), ("long hair, fox",)),
        ("only_empty", ("a girl", " "), ("a girl", "long hair, fox")),
    ],
)
def test_tags_meet_captions(how: str, there: tuple[str, ...], after: tuple[str, ...]) -> None:
    assert captions(there, NEW, how) == after


@pytest.mark.parametrize(
    ("how", "there", "after"),
    [
        (
            "append",
            ("a girl", ""),
            ("sks, x y, a girl, long hair, fox", "sks, x y, long hair, fox"),
        ),
        ("append", ("a girl, sks",), ("sks, x y, a girl, long hair, fox",)),
        ("prepend", ("a girl",), ("sks, x y, long hair, fox, a girl",)),
        ("replace", ("a girl",), ("sks, x y, long hair, fox",)),
        ("only_empty", ("a girl", ""), ("a girl", "sks, x y, long hair, fox")),
    ],
)
def test_what_is_always_included_stands_in_front(
    how: str, there: tuple[str, ...], after: tuple[str, ...]
) -> None:
    assert captions(there, NEW, how, always_include="sks, x y") == after


def test_without_any_tags_captions_stay_and_what_is_always_included_is_all() -> None:
    for how in ExistingCaptions:
        assert captions(("",), [], how.value) == ("",)
        assert captions(("",), [], how.value, always_include="sks") == ("sks",)
    assert captions(("a girl",), [], "append") == ("a girl",)


def test_captions_are_cut_as_their_options_say() -> None:
    semicolons = {"caption_options": {"caption_separator": ";"}}
    assert captions(("fox; a, b",), NEW, "append", **semicolons) == ("fox; a, b; long hair",)
    front = ("sks ||| a ||| end",)
    assert captions(front, NEW, "append") == ("sks ||| a, long hair, fox ||| end",)


def test_only_pictures_that_may_get_tags_are_looked_at() -> None:
    picture = ImagePixels(np.zeros((8, 8, 3), np.uint8))
    full, half = Sample(picture, "a", ("x",)), Sample(picture, "b", ("x", " "))
    fill = TagOptions(existing_captions=ExistingCaptions.ONLY_EMPTY)
    assert not fill.concerns(full) and fill.concerns(half) and TagOptions().concerns(full)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"general_threshold": 0.0}, "general_threshold is 0.0.*from 0.01 to 1"),
        ({"character_threshold": 1.5}, "character_threshold is 1.5.*0.85 is usual"),
        ({"max_tags": -1}, "max_tags is -1.*0 = all"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(AtelierError, match=match):
        TagOptions(**options)


@given(
    st.lists(st.tuples(st.integers(0, 7), st.floats(0.01, 1)), unique_by=lambda t: t[0]),
    st.sampled_from(TagOrder),
    st.integers(0, 4),
)
def test_every_order_gives_the_same_tags(found: list, order: TagOrder, most: int) -> None:
    given = tags(found, order=order, max_tags=most)
    assert sorted(given) == sorted(tags(found, max_tags=most))
    assert len(given) == len(set(given)) <= (most or 8)
