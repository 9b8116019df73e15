"""What a model said becomes a caption."""

from __future__ import annotations

import pytest

from lora_atelier.training.captioning.wording import (
    HABITS,
    ExistingCaptions,
    cleaned,
    joined,
    merged,
    phrases,
)

USUAL = phrases("\n".join(HABITS))


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("a picture of a red fox", "a red fox"),
        ("The image shows a red fox in the snow.", "a red fox in the snow."),
        ("there is a picture of a fox", "a fox"),  # one behind the other
        ("arafed fox in the snow", "fox in the snow"),
        ("  a fox\n in   the snow ", "a fox in the snow"),
        ("A fox. The image shows it twice.", "A fox. The image shows it twice."),
        ("The image is: a fox", "a fox"),
        ("thisis a fox", "thisis a fox"),
        ("a photo officer", "a photo officer"),  # whole words only
        ("a photo of", ""),
    ],
)
def test_habits_go_and_words_stay(answer: str, caption: str) -> None:
    assert cleaned(answer, USUAL) == caption


def test_an_opening_with_a_comma_is_one() -> None:
    assert cleaned("In this image, a fox", USUAL) == "a fox"


def test_without_phrases_only_the_spaces_change() -> None:
    assert cleaned(" a picture of\ta fox ", phrases(" \n\n")) == "a picture of a fox"


def test_phrases_are_text_and_no_expression() -> None:
    assert cleaned("a (fox)", phrases("a (")) == "a (fox)"  # "(" stands against a letter
    assert cleaned("a.b fox", phrases("a.b")) == "fox"
    assert cleaned("axb fox", phrases("a.b")) == "axb fox"


@pytest.mark.parametrize(
    ("existing", "captions"),
    [
        ("replace", ("a fox",)),
        ("append", ("sks, red, a fox", "It sits. a fox", "a fox")),
        ("prepend", ("a fox, sks, red", "a fox, It sits.", "a fox")),
        ("only_empty", ("sks, red", "It sits.", "a fox")),
    ],
)
def test_what_becomes_of_captions_that_are_there(existing: str, captions: tuple[str, ...]) -> None:
    assert merged(("sks, red", "It sits.", ""), "a fox", ExistingCaptions(existing)) == captions


def test_a_silent_model_leaves_what_it_is_added_to() -> None:
    old = ("sks, red", "")
    for existing in ("append", "prepend", "only_empty"):
        assert merged(old, "", ExistingCaptions(existing)) == old
    assert joined("", "a") == joined("a", " ") == "a"
