"""Poses, angles, framing and expressions in captions."""

from __future__ import annotations

import math

import pytest

from lora_atelier.training.dataset.variety import VOCABULARY, GroupVariety, kinds_in, variety


def test_every_phrase_stands_for_one_kind() -> None:
    phrases = [
        phrase
        for kinds in VOCABULARY.values()
        for listed in kinds.values()
        for phrase in listed.split(", ")
    ]
    assert len(phrases) == len(set(phrases))
    for group, kinds in VOCABULARY.items():
        for kind, listed in kinds.items():
            for phrase in listed.split(", "):
                assert kinds_in(phrase) == {(group, kind)}, phrase


@pytest.mark.parametrize(
    ("caption", "kinds"),
    [
        ("1girl, from_side, full_body", {"side", "full body"}),
        ("A woman is standing; seen from behind, she waves.", {"standing", "behind", "arms up"}),
        ("Looking_At_Viewer, SMILE", {"front", "smile"}),
        ("open-mouth smile", {"laugh"}),
        ("leaning forward", {"leaning"}),
        ("bird’s-eye view", {"above"}),
        ("outstanding smilecore, unhappy-go-lucky, madrid", set()),
        ("a red fox", set()),
        ("", set()),
    ],
)
def test_phrases_are_found_in_tags_and_sentences(caption: str, kinds: set[str]) -> None:
    assert {kind for _, kind in kinds_in(caption)} == kinds


def test_each_picture_counts_once_for_each_kind() -> None:
    found = variety(["standing, stands, smile", "standing", "sitting", "a fox"])["pose"]
    assert found.counts == {"standing": 2, "sitting": 1}
    assert list(found.counts) == ["standing", "sitting"]
    assert found.named == 3


def test_a_picture_may_be_of_several_kinds() -> None:
    found = variety(["smile, blush", "smile"])["expression"]
    assert found.counts == {"smile": 2, "shy": 1}
    assert found.named == 2


def test_evenness_is_the_normalised_entropy() -> None:
    shares = (0.75, 0.25)
    by_hand = -sum(p * math.log2(p) for p in shares) / math.log2(2)
    assert GroupVariety({"front": 3, "side": 1}, 4).evenness == pytest.approx(by_hand)
    assert GroupVariety({"front": 2, "side": 2, "above": 2}, 6).evenness == pytest.approx(1)
    assert GroupVariety({"front": 9}, 9).evenness == 0
    assert GroupVariety({}, 0).evenness == 0


def test_a_group_is_one_sided_from_four_fifths_on_if_enough_is_said() -> None:
    assert GroupVariety({"front": 8, "side": 2}, 10).one_sided == "front"
    assert GroupVariety({"front": 7, "side": 3}, 10).one_sided == ""
    assert GroupVariety({"front": 4}, 4).one_sided == ""
    assert GroupVariety({}, 0).one_sided == ""


def test_twenty_thousand_captions_are_read_through() -> None:
    captions = ["1girl, solo, long hair, blue eyes, standing, from side, smile, outdoors"] * 20_000
    assert variety(captions)["angle"].named == 20_000
