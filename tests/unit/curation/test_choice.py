"""A choice as text, and laid over what the rule decides."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_atelier.training.curation.choice import (
    DROPPED,
    KEPT,
    LONGEST,
    Choice,
    apply_choice,
    key_of,
    parse_choice,
)
from lora_atelier.training.curation.reasons import Cause, Reason
from lora_atelier.training.curation.report import report_text, short_text
from lora_atelier.training.curation.selection import Decision
from lora_atelier.training.dataset.pictures import ImagePixels
from lora_atelier.training.dataset.samples import ImageDataset, Problem, Sample
from lora_atelier.training.errors import AtelierError

KEEP = Decision(True, None)
BLUR = Decision(False, Reason(Cause.SCORE_RANK, {"rank": 9, "count": 9, "score": "sharpness"}))
A, B, C, D = (letter * 64 for letter in "abcd")
"""Digests."""

keys = st.text("0123456789abcdef", min_size=16, max_size=16)
texts = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1).map(tuple)


def pictures(count: int) -> ImageDataset:
    """Named 0.png and so on, with the captions "caption 0" and so on."""
    one = ImagePixels(np.zeros((2, 2, 3), np.uint8))
    return ImageDataset(tuple(Sample(one, f"{i}.png", (f"caption {i}",)) for i in range(count)))


def keep(*digests: str, **rest: Any) -> Choice:
    return Choice(keep=frozenset(map(key_of, digests)), **rest)


def drop(*digests: str) -> Choice:
    return Choice(drop=frozenset(map(key_of, digests)))


def kept_names(curated: Any) -> list[str]:
    return [sample.name for sample in curated.dataset.samples]


# As text


@given(st.frozensets(keys), st.frozensets(keys), st.dictionaries(keys, texts))
def test_what_is_written_is_what_is_read(keep, drop, captions) -> None:
    choice = Choice(keep - drop, drop, captions)
    assert parse_choice(choice.text()) == choice


def test_the_text_can_be_read_by_a_person_and_does_not_depend_on_the_order() -> None:
    captions = {key_of(B): ("狐狸", "a fox"), key_of(A): ("x",)}
    text = Choice(frozenset(map(key_of, (C, B, A))), drop(D).drop, captions).text()
    facts = json.loads(text)
    assert facts["version"] == 1 and facts["keep"] == sorted(facts["keep"])
    assert list(facts["captions"]) == [key_of(A), key_of(B)]
    assert "狐狸" in text and max(map(len, text.splitlines())) < 60
    assert Choice().text() == ""


def test_empty_and_blank_say_nothing() -> None:
    assert parse_choice("") == parse_choice(" \n") == Choice()


def test_as_the_gallery_writes_it() -> None:
    key = key_of(A)
    text = json.dumps({"version": 1, "keep": [key], "drop": [], "captions": {key: []}})
    assert parse_choice(text) == Choice(frozenset([key]), captions={key: ("",)})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "choice cannot be read as JSON"),
        ("[" * 100_000, "choice cannot be read as JSON"),
        ("[]", "choice is no JSON object"),
        ("{}", "choice has the version None"),
        ('{"version": 2}', "choice has the version 2.*Update LoRA Atelier"),
        ('{"version": true}', "choice has the version True"),
        ('{"version": 1, "kept": []}', r"choice holds \['kept'\]"),
        ('{"version": 1, "keep": "0123456789abcdef"}', "keep must be a list"),
        ('{"version": 1, "keep": ["fox.png"]}', r"keep holds \['fox.png'\]"),
        ('{"version": 1, "drop": ["0123456789ABCDEF"]}', "drop holds"),
        ('{"version": 1, "drop": [["0123456789abcdef"]]}', "drop holds"),
        ('{"version": 1, "captions": []}', "captions must be an object"),
        ('{"version": 1, "captions": {"x": ["a"]}}', 'captions holds "x"'),
        ('{"version": 1, "captions": {"0123456789abcdef": "a"}}', "a list of texts"),
        ('{"version": 1, "captions": {"0123456789abcdef": [1]}}', "a list of texts"),
        (
            '{"version": 1, "keep": ["0123456789abcdef"], "drop": ["0123456789abcdef"]}',
            "both keeps and drops .*0123456789abcdef",
        ),
        (" " * (LONGEST + 1), "8,388,609 characters"),
    ],
)
def test_what_is_no_choice_is_told_by_widget(text: str, told: str) -> None:
    with pytest.raises(AtelierError, match=told) as refusal:
        parse_choice(text)
    assert str(refusal.value).startswith("choice") and len(str(refusal.value)) < 400


def test_half_a_sign_becomes_a_question_mark() -> None:
    text = '{"version": 1, "captions": {"0123456789abcdef": ["a \\ud83e b"]}}'
    assert parse_choice(text).captions == {"0123456789abcdef": ("a ? b",)}


# Laid over the rule


def test_named_pictures_follow_the_choice_and_the_others_the_rule() -> None:
    choice = replace(keep(B), drop=drop(A).drop)
    curated = apply_choice(pictures(4), [A, B, C, D], [KEEP, BLUR, KEEP, BLUR], choice)
    assert kept_names(curated) == ["1.png", "2.png"]
    assert [decision.reason for decision in curated.decisions] == [
        DROPPED,
        KEPT,
        None,
        BLUR.reason,
    ]
    assert (curated.unnamed, curated.edited, curated.strangers) == (2, 0, 0)


def test_an_empty_choice_changes_nothing() -> None:
    given = pictures(3)
    curated = apply_choice(given, [A, B, C], [KEEP] * 3, Choice())
    assert curated.dataset == given and curated.decisions == (KEEP,) * 3


def test_captions_are_replaced_also_where_the_rule_decides() -> None:
    captions = {key_of(A): ("one", "two"), key_of(B): ("gone",)}
    choice = Choice(captions=captions)
    curated = apply_choice(pictures(3), [A, B, C], [KEEP, BLUR, KEEP], choice)
    assert [s.captions for s in curated.dataset.samples] == [("one", "two"), ("caption 2",)]
    assert curated.edited == 1


def test_the_same_content_twice_is_judged_alike() -> None:
    choice = replace(keep(A, captions={key_of(A): ("both",)}), drop=drop(B).drop)
    curated = apply_choice(pictures(4), [A, B, A, B], [KEEP, KEEP, BLUR, BLUR], choice)
    assert kept_names(curated) == ["0.png", "2.png"]
    assert [s.captions for s in curated.dataset.samples] == [("both",)] * 2


def test_no_choice_brings_a_broken_picture_back() -> None:
    broken = Problem("1.png", '"1.png" is damaged')
    damaged = Reason(Cause.BROKEN, {"why": "it is damaged"})
    decisions = [KEEP, Decision(False, damaged), Decision(False, damaged)]
    gone = Problem("2.png", '"2.png" is gone')
    curated = apply_choice(pictures(3), [A, B, None], decisions, keep(A, B), [broken, gone])
    assert kept_names(curated) == ["0.png"]
    assert curated.dataset.problems == (broken, gone)
    assert curated.decisions[1].reason == damaged


def test_nothing_left_is_refused_with_the_reason() -> None:
    with pytest.raises(AtelierError, match="All 2 pictures are dropped: dropped in the gallery"):
        apply_choice(pictures(2), [A, B], [KEEP] * 2, drop(A, B))


def test_pictures_that_are_not_there_any_more_are_counted() -> None:
    choice = replace(keep(A, C), captions={key_of(C): ("x",), key_of(D): ("y",)})
    assert apply_choice(pictures(2), [A, B], [KEEP] * 2, choice).strangers == 2


# In words


def test_the_text_gives_before_and_after_and_the_reasons() -> None:
    decisions = [
        KEEP,
        Decision(False, Reason(Cause.DUPLICATE, {"name": "0.png"})),
        Decision(False, Reason(Cause.DUPLICATE, {"name": "4: rank 3.png"})),
        BLUR,
        KEEP,
    ]
    digests = [c * 64 for c in "abcde"]
    choice = replace(keep(A, captions={key_of(A): ("x",)}), drop=drop("e" * 64, "f" * 64).drop)
    curated = apply_choice(pictures(5), digests, decisions, choice)
    assert short_text(pictures(5), curated, choice).splitlines() == [
        "5 pictures → 1 kept, 4 dropped",
        "2 near duplicate, 1 beyond keep_best, 1 dropped in the gallery",
        "1 with captions from the gallery",
        "3 not named in choice, so the rule decides about them",
        "1 named in choice are not in this dataset",
    ]
    assert "- 3.png: rank 9 of 9 by sharpness" in report_text(pictures(5), curated, choice)


def test_the_text_says_when_there_is_no_saved_choice() -> None:
    curated = apply_choice(pictures(1), [A], [KEEP], Choice())
    assert "No choice is saved" in short_text(pictures(1), curated, Choice())
    assert "hoice" not in short_text(pictures(1), curated, None)
