"""Captions change as they were told to, and stay with their pictures."""

from __future__ import annotations

import math
import re
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_atelier.training.dataset import find_replace
from lora_atelier.training.dataset.caption_edits import (
    CaptionEdits,
    SortTags,
    edit_and_report,
    edit_captions,
)
from lora_atelier.training.dataset.caption_options import CaptionOptions
from lora_atelier.training.dataset.combine import combine
from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.samples import ImageDataset, Problem, Role, Sample
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.runs.examples import captions

PROSE = "A fox with 1,000 hairs,  asleep; it dreams. "


def _dataset(*texts: str | tuple[str, ...], name: str = "foxes", **said) -> ImageDataset:
    """A picture for each caption, or for each group of alternatives."""
    return ImageDataset(
        tuple(
            Sample(
                ImageFile(f"/{name}/{i}.png", (64, 64)),
                f"{i}.png",
                (text,) if isinstance(text, str) else text,
                **said,
            )
            for i, text in enumerate(texts)
        ),
        name,
    )


def _edit(text: str, options: CaptionOptions | None = None, **edits) -> str:
    return edit_captions(_dataset(text), CaptionEdits(**edits), options).samples[0].caption


def _all(dataset: ImageDataset, **edits) -> list[str]:
    edited = edit_captions(dataset, CaptionEdits(**edits))
    return [text for sample in edited.samples for text in sample.captions]


@pytest.mark.parametrize("text", ["a, b", "a,b,, c ,", PROSE, "", " ", "{a|b}, ||| c|||", "a\\b"])
def test_by_default_nothing_changes(text: str) -> None:
    dataset = _dataset(text)
    edited, report = edit_and_report(dataset, CaptionEdits())
    assert edited == dataset
    assert (report.changed, report.captions, report.notes) == (0, 1, ())


UNTOUCHED = [
    {"remove_tags": "cat, dog*"},
    {"find": "cat", "replace_with": "dog"},
    {"find": r"\bcat\b", "use_regex": True},
    {"deduplicate": True},
    {"add_tags": "Asleep; it dreams."},
]


@pytest.mark.parametrize("edits", UNTOUCHED, ids=str)
def test_a_sentence_that_nothing_applies_to_keeps_every_character(edits: dict) -> None:
    assert _edit(PROSE, **edits) == PROSE


@pytest.mark.parametrize(
    ("edits", "text"),
    [
        ({"class_tokens": "sks fox"}, "sks fox, A fox with 1,000 hairs,  asleep; it dreams."),
        ({"add_tags": "night"}, "A fox with 1,000 hairs,  asleep; it dreams., night"),
        ({"caption_prefix": "photo:"}, "photo: A fox with 1,000 hairs,  asleep; it dreams."),
        ({"find": "asleep", "replace_with": "awake"}, PROSE.replace("asleep", "awake")),
        ({"remove_tags": "Asleep; it dreams."}, "A fox with 1,000 hairs"),
    ],
)
def test_what_applies_to_a_sentence_leaves_the_rest_of_it(edits: dict, text: str) -> None:
    assert _edit(PROSE, **edits) == text


@pytest.mark.parametrize(
    ("text", "trigger", "expected"),
    [
        ("fox, red", "sks", "sks, fox, red"),
        ("", "sks", "sks"),
        (" ", "sks", "sks"),
        ("sks, fox,red", "sks", "sks, fox,red"),  # there already: not a character changes
        ("fox, Sks , red", "sks", "sks, fox, red"),
        ("Sks fox, red", "sks  fox", "sks  fox, red"),
        ("sks, fox, sks", "sks", "sks, fox"),
        ("photo of sks fox", "sks", "sks, photo of sks fox"),  # no tag of its own
        ("red, b, a", "a, b", "a, b, red"),
        ("b, a, red", "a, b", "a, b, red"),
        ("fox ||| red", "sks", "sks, fox ||| red"),
        ("sks ||| red", "sks", "sks ||| red"),
        ("fox ||| red, sks ||| end", "sks", "sks, fox ||| red ||| end"),
        ("||| sks, red", "sks", "sks ||| red"),
        ("|||red", "sks", "sks ||| red"),
        ("fox, red", " , ", "fox, red"),
    ],
)
def test_the_trigger_word_stands_first_and_once(text: str, trigger: str, expected: str) -> None:
    assert _edit(text, class_tokens=trigger) == expected


def test_pictures_of_the_class_in_general_go_without_the_trigger_word() -> None:
    train = _dataset("fox, red", "fox, grey", "fox")
    others = _dataset("fox, old", name="any", role=Role.REGULARISATION)
    held_out = _dataset("fox, wild", name="held", role=Role.VALIDATION)
    dataset = combine([train, others, held_out])
    edits = CaptionEdits("sks", add_tags="day", absorb_above=0.9)
    edited, report = edit_and_report(dataset, edits)
    texts = [sample.caption for sample in edited.samples]
    assert texts == [
        "sks, red, day",
        "sks, grey, day",
        "sks, day",
        "fox, old, day",
        "sks, wild, day",
    ]
    assert "for regularisation, which stay without the trigger word: 1" in report.text()
    assert _all(others, class_tokens="fox") == ["fox, old"]
    assert _all(others, class_tokens="animal") == ["animal, fox, old"]  # nothing else to put it on


@pytest.mark.parametrize(
    ("text", "edits", "expected"),
    [
        ("fox", {"caption_prefix": " photo of "}, "photo of fox"),
        ("fox", {"caption_suffix": "in snow"}, "fox in snow"),
        ("fox", {"caption_suffix": ", best"}, "fox, best"),
        ("fox", {"caption_prefix": "a", "caption_suffix": "."}, "a fox."),
        ("", {"caption_prefix": "photo", "caption_suffix": "of fur"}, "photo of fur"),
        ("", {"caption_suffix": "fur"}, "fur"),
        ("fox", {"caption_prefix": "photo of", "class_tokens": "sks"}, "sks, photo of fox"),
        ("a ||| b", {"caption_prefix": "p", "caption_suffix": "s"}, "p a ||| b s"),
    ],
)
def test_prefix_and_suffix_are_text_around_the_caption(text, edits, expected) -> None:
    assert _edit(text, **edits) == expected


@pytest.mark.parametrize(
    ("text", "added", "expected"),
    [
        ("fox", "red, snow", "fox, red, snow"),
        ("fox,red", "Red, snow", "fox,red, snow"),
        ("", "red", "red"),
        ("a ||| b ||| c", "d", "a ||| b, d ||| c"),
        ("a |||b", "d, a", "a ||| b, d"),
        ("a, |||", "d", "a ||| d"),
        ("fox", " ,, ", "fox"),
    ],
)
def test_added_tags_come_behind_the_others_if_they_are_not_there(text, added, expected) -> None:
    assert _edit(text, add_tags=added) == expected


@pytest.mark.parametrize(
    ("text", "unwanted", "expected"),
    [
        ("fox, red, snow", "red", "fox, snow"),
        ("Fox,  RED hat , snow", "red  hat", "Fox, snow"),
        ("red fox, red", "red", "red fox"),  # whole tags
        ("blue eyes, red_eyes, eyes", "*eyes", ""),
        ("blue_eyes, red_eyes_, eyes", "*_eyes", "red_eyes_, eyes"),
        ("artist:x, art", "artist:*, nothing", "art"),
        ("a.c, abc", "a.c", "abc"),  # * is the only special character
        ("(x), [y]", "(x)", "[y]"),
        ("[y], y, a?, ab", "[y], a?", "y, ab"),
        ("a, b ||| b, c ||| b", "b", "a ||| c |||"),
        ("a,b,,c", "b", "a,c"),
        ("a, b", "*", ""),
        ("", "*", ""),
    ],
)
def test_blacklisted_tags_go(text: str, unwanted: str, expected: str) -> None:
    assert _edit(text, remove_tags=unwanted) == expected


@pytest.mark.parametrize(
    ("text", "find", "new", "use_regex", "expected"),
    [
        ("a fox, foxes", "fox", "dog", False, "a dog, doges"),
        ("a.c, abc", "a.c", "x", False, "x, abc"),
        ("a.c, abc", "a.c", "x", True, "x, x"),
        ("red fox", r"(\w+) (\w+)", r"\2, \1", True, "fox, red"),
        ("red fox", r"(?P<colour>red)", r"dark \g<colour>", True, "dark red fox"),
        ("Fox fox", r"(?i)\bfox$", "cat", True, "Fox cat"),
        ("a, red, b", "red", "", False, "a, b"),  # no gap stays
        ("red, b", "red", "", False, "b"),
        ("a,, b, red", "red", "", False, "a, b"),
        ("a ||| red ||| b", "red", "", False, "a |||  ||| b"),
        ("a fox", " ", "\n", False, "a fox"),  # captions are lines of a file
        ("a fox", " ", r"\n", True, "a fox"),
        (r"a\b", "\\", "/", False, "a/b"),
    ],
)
def test_text_is_found_and_replaced(text, find, new, use_regex, expected) -> None:
    assert _edit(text, find=find, replace_with=new, use_regex=use_regex) == expected


@pytest.mark.parametrize(
    ("find", "place"),
    [("(", 2), ("fox)", 4), ("a**", 3), ("[b", 3), ("*", 1)],
)
def test_a_bad_regular_expression_is_refused_with_the_place(find: str, place: int) -> None:
    message = (
        f'^find is "{re.escape(find)}", which is no regular expression: .* at character {place}'
    )
    with pytest.raises(AtelierError, match=message):
        CaptionEdits(find=find, use_regex=True)
    assert CaptionEdits(find=find).find == find  # plain text may be anything


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (r"\2", "invalid group reference"),
        (r"\g<name>", "unknown group"),
        ("\\", "bad escape"),
        (r"\q", "bad escape"),
    ],
)
def test_a_bad_replacement_is_refused(new: str, reason: str) -> None:
    with pytest.raises(AtelierError, match=f"^replace_with is .* does not fit find: {reason}"):
        CaptionEdits(find="(fox)", replace_with=new, use_regex=True)


def test_a_regular_expression_is_tried_on_long_captions_too() -> None:
    edits = {"find": "fox", "replace_with": "cat"}
    assert _edit("fox " * 5000, **edits, use_regex=True) == "cat " * 5000


def test_an_expression_that_would_take_forever_ends_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It tries 1.6 to the power of 60 ways; the bound is lowered."""
    monkeypatch.setattr(find_replace, "MOST_SECONDS", 0.2)
    begin = time.perf_counter()
    with pytest.raises(AtelierError, match=r'^find: ".*" takes more than 0.2 s'):
        _all(_dataset("a" * 60 + "?"), find="(a|aa)+b", use_regex=True)
    assert time.perf_counter() - begin < 20


@pytest.mark.parametrize("find", ["(a+)+b", "(a|a)*b", r"^(\w*)*!$", "(.*a){20}c"])
def test_what_holds_up_python_s_own_engine_does_not_hold_up_this_one(find: str) -> None:
    assert _edit("a" * 60 + "?", find=find, use_regex=True) == "a" * 60 + "?"


def test_the_bound_is_on_all_captions_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_replace, "MOST_SECONDS", 0.2)
    slow = ["a" * 21 + "?"] * 2000
    with pytest.raises(AtelierError, match="takes more than 0.2 s"):
        _all(_dataset(*slow), find="(a|aa)+b", use_regex=True)


def test_something_must_be_found_to_be_replaced() -> None:
    with pytest.raises(AtelierError, match='^replace_with is "cat", but find is empty'):
        CaptionEdits(replace_with="cat")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a, b, A,  b , c", "a, b, c"),
        ("red fox, red  Fox", "red fox"),
        ("a, b ||| b, c ||| a, d", "a, b ||| c ||| d"),
        ("a,, b,,", "a,, b,,"),  # nothing twice: not a character changes
    ],
)
def test_of_equal_tags_the_first_stays(text: str, expected: str) -> None:
    assert _edit(text, deduplicate=True) == expected


FREQUENT = ("c, b, a", "b, a", "B,c", "b, d", "x ||| d, b ||| a")


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (SortTags.AS_WRITTEN, list(FREQUENT)),
        # b 5, a 3, c 2, d 2, x 1
        (SortTags.MOST_FREQUENT_FIRST, ["b, a, c", "b, a", "B,c", "b, d", "x ||| b, d ||| a"]),
        (SortTags.RAREST_FIRST, ["c, a, b", "a, b", "c, B", "d, b", "x ||| d, b ||| a"]),
        (SortTags.ALPHABETICAL, ["a, b, c", "a, b", "B,c", "b, d", "x ||| b, d ||| a"]),
    ],
)
def test_tags_are_sorted_between_front_and_end(order: SortTags, expected: list[str]) -> None:
    assert _all(_dataset(*FREQUENT), sort_tags=order) == expected


def test_equally_frequent_tags_keep_their_order() -> None:
    dataset = _dataset("z, y, x", "x, z, y")
    assert _all(dataset, sort_tags=SortTags.MOST_FREQUENT_FIRST) == ["z, y, x", "x, z, y"]


def test_only_training_captions_are_counted() -> None:
    train = _dataset("a, b", "b")
    rest = _dataset(*["a, b"] * 5, name="any", role=Role.REGULARISATION)
    dataset = combine([train, rest])
    assert _all(dataset, sort_tags=SortTags.MOST_FREQUENT_FIRST) == ["b, a", "b"] + ["b, a"] * 5
    absorbed = _all(dataset, class_tokens="sks", absorb_above=0.5)
    assert absorbed == ["sks, a", "sks"] + ["a, b"] * 5


def test_tags_that_nearly_all_have_are_left_to_the_trigger_word() -> None:
    dataset = _dataset("Fur, tail, red", "fur, tail, snow", "fur , tail", "fur, night", "")
    edited, report = edit_and_report(dataset, CaptionEdits("sks", absorb_above=0.75))
    assert [s.caption for s in edited.samples] == [
        "sks, tail, red",
        "sks, tail, snow",
        "sks, tail",  # in 3 of the 4 that have a caption: not more than 0.75
        "sks, night",
        "sks",
    ]
    assert report.absorbed == (("fur", 1.0),)
    assert "left to the trigger word: fur (100%)" in report.text()
    both = edit_and_report(dataset, CaptionEdits("sks", absorb_above=0.74))[1]
    assert both.absorbed == (("fur", 1.0), ("tail", 0.75))


def test_a_tag_of_a_single_caption_is_never_absorbed() -> None:
    assert _all(_dataset("fur, red"), class_tokens="sks", absorb_above=0.5) == ["sks, fur, red"]


def test_the_trigger_word_itself_is_never_absorbed() -> None:
    dataset = _dataset("fur, Sks fox, red", "fur, sks fox", "sks fox, fur")
    edits = {"class_tokens": "sks fox, fur", "absorb_above": 0.5}
    edited, report = edit_and_report(dataset, CaptionEdits(**edits))
    assert [s.caption for s in edited.samples] == ["sks fox, fur, red"] + ["sks fox, fur"] * 2
    assert report.absorbed == ()
    assert "absorb_above: no tag is in more than 0.5 of" in report.text()


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(AtelierError, match=f"^absorb_above is {share}: it must be a number from 0"):
        CaptionEdits("sks", absorb_above=share)


@pytest.mark.parametrize("trigger", ["", " , "])
def test_without_a_trigger_word_nothing_can_be_absorbed(trigger: str) -> None:
    with pytest.raises(AtelierError, match="^absorb_above is 0.9, but class_tokens is empty"):
        CaptionEdits(trigger, absorb_above=0.9)


def test_those_who_get_the_trigger_word_know_it() -> None:
    of_class = replace(_dataset("a dog").samples[0], name="r", role=Role.REGULARISATION)
    named = replace(_dataset("rex, a dog").samples[0], name="n", class_tokens="rex")
    dataset = ImageDataset((*_dataset("a dog").samples, of_class, named))

    def known(edits: CaptionEdits) -> list[str]:
        return [sample.class_tokens for sample in edit_captions(dataset, edits).samples]

    assert known(CaptionEdits(class_tokens=" sks dog ")) == ["sks dog", "", "sks dog"]
    assert known(CaptionEdits(add_tags="fur")) == ["", "", "rex"]


def test_edits_come_in_the_order_that_is_written_down() -> None:
    dataset = _dataset("bad cat, cat, red, fur", "fur, signature, cat", "fur, cat, red")
    edits = CaptionEdits(
        class_tokens="sks",
        caption_prefix="photo of",
        caption_suffix="by me",
        find="cat",
        replace_with="fox",  # what is found is removed, counted, sorted as what it has become
        remove_tags="bad fox, sign*, day",
        add_tags="day, fox, fur, day",  # after removing and absorbing: comes back
        absorb_above=0.9,
        deduplicate=True,
        sort_tags=SortTags.ALPHABETICAL,
    )
    assert [s.caption for s in edit_captions(dataset, edits).samples] == [
        "sks, photo of day, fox, fur, red by me",
        "sks, photo of day, fox, fur by me",
        "sks, photo of day, fox, fur, red by me",
    ]


def test_alternatives_are_edited_one_by_one() -> None:
    dataset = _dataset(("a, b", "b", "b"), "b")
    edited, report = edit_and_report(dataset, CaptionEdits(remove_tags="a", class_tokens="b"))
    assert edited.samples[0].captions == ("b", "b", "b")  # equal ones stay: they are drawn as often
    assert (report.captions, report.changed, report.removed) == (4, 1, (("a", 1),))


def test_commas_inside_a_wildcard_part_no_tags() -> None:
    options = CaptionOptions(enable_wildcard=True)
    text = "z, {{b, {red, big|small ||| b} fox, a"
    edits = {"sort_tags": SortTags.ALPHABETICAL, "remove_tags": "big|small ||| b} fox, {{b"}
    assert _edit(text, options, **edits) == "a, z, {red, big|small ||| b} fox"
    assert _edit("{red, a|b}", sort_tags=SortTags.ALPHABETICAL) == "a|b}, {red"  # plain braces


def test_captions_are_cut_where_their_options_say() -> None:
    options = CaptionOptions(caption_separator=";", keep_tokens_separator="@")
    assert _edit("a, b; c@d", options, remove_tags="c", class_tokens="t") == "t; a, b @ d"
    spaces = CaptionOptions(caption_separator=" ")
    assert _edit("red fox red", spaces, add_tags="snow") == "red fox red snow"
    assert _edit("red fox red", spaces, deduplicate=True) == "red fox"
    without = CaptionOptions(keep_tokens_separator="")
    assert _edit("b, b ||| a", without, sort_tags=SortTags.ALPHABETICAL) == "b, b ||| a"


def test_options_are_put_on_every_sample_and_none_leaves_them_their_own() -> None:
    own = CaptionOptions(shuffle_caption=True)
    dataset = combine([_dataset("a"), _dataset("b", caption_options=own)])
    kept = edit_captions(dataset, CaptionEdits("sks"))
    assert [s.caption_options for s in kept.samples] == [CaptionOptions(), own]
    new = CaptionOptions(caption_dropout_rate=0.1)
    assert {s.caption_options for s in edit_captions(dataset, CaptionEdits(), new).samples} == {new}
    assert [s.caption for s in edit_captions(dataset, CaptionEdits(), new).samples] == ["a", "b"]


tags = st.sampled_from(["a", "A", "b", "red fox", "c d", "sks", "1girl", "(x)"])
texts = st.lists(st.tuples(tags, st.sampled_from([", ", ",", " ||| "])), max_size=6).map(
    lambda parts: "".join(f"{tag}{end}" for tag, end in parts)
)
edits = st.builds(
    CaptionEdits,
    class_tokens=st.sampled_from(["sks", "sks, b"]),
    add_tags=st.sampled_from(["", "b, new"]),
    remove_tags=st.sampled_from(["", "a, c*"]),
    deduplicate=st.booleans(),
    sort_tags=st.sampled_from(SortTags),
    absorb_above=st.sampled_from([0.0, 0.6]),
)


@given(
    st.lists(
        st.tuples(st.lists(texts, min_size=1, max_size=3), st.sampled_from(Role)),
        min_size=1,
        max_size=8,
    ),
    st.lists(edits, min_size=1, max_size=3),
    st.data(),
)
@settings(max_examples=200)
def test_captions_stay_with_their_pictures(said, several, data) -> None:
    """Each caption carries a tag of its picture through edits, filters, orders and combination."""
    dataset = ImageDataset(
        tuple(
            Sample(
                ImageFile(f"/foxes/{i}.png", (64, 64)),
                f"{i}.png",
                tuple(f"{text}, of {i} {k}" for k, text in enumerate(alternatives)),
                num_repeats=i + 1,
                role=role,
                loss_weight=i / 10,
                source=f"museum {i}",
                fit=FitOptions((64 * (i + 1),)),
                may_be_skipped=i % 2 == 0,
            )
            for i, (alternatives, role) in enumerate(said)
        ),
        problems=(Problem("bad.png", "broken"),),
    )
    originals = {sample.image: sample for sample in dataset.samples}
    for one in several:
        edited = edit_captions(dataset, one)
        assert [s.image for s in edited.samples] == [s.image for s in dataset.samples]
        samples = data.draw(st.permutations(edited.samples))
        dataset = edited.changed(samples[: data.draw(st.integers(1, len(samples)))])
        dataset = combine([dataset, _dataset("other", name="others")])
        dataset = dataset.changed(s for s in dataset.samples if s.image in originals)
    for sample in dataset.samples:
        original = originals[sample.image]
        number = original.name.removesuffix(".png")
        assert replace(sample, captions=original.captions, class_tokens="") == original
        assert len(sample.captions) == len(original.captions)
        for k, text in enumerate(sample.captions):
            assert re.findall(r"of \d+ \d+", text) == [f"of {number} {k}"]


@given(texts, edits)
@settings(max_examples=300)
def test_editing_again_changes_nothing_more(text: str, once: CaptionEdits) -> None:
    """But white space: sorting moves the trigger word, and it comes back."""
    once = replace(once, absorb_above=0)
    edited = edit_captions(_dataset(text), once)
    again = edit_captions(edited, once)
    assert re.sub(r"\s", "", again.samples[0].caption) == re.sub(
        r"\s", "", edited.samples[0].caption
    )


@given(texts, edits)
@settings(max_examples=300)
def test_no_tag_is_lost_that_was_not_to_go(text: str, some: CaptionEdits) -> None:
    some = replace(some, absorb_above=0, remove_tags="")
    before = {t.strip().casefold() for t in re.split(r",|\|\|\|", text)} - {""}
    edited = edit_captions(_dataset(text), some).samples[0].caption
    after = {t.strip().casefold() for t in re.split(r",|\|\|\|", edited)} - {""}
    added = {t.strip() for t in f"{some.class_tokens},{some.add_tags}".split(",")} - {""}
    assert after == before | added


def test_the_report_counts_what_changed_and_shows_some_of_it() -> None:
    dataset = _dataset("a, sign", ("b", "Sign"), "sign, c, old", "old", "d")
    report = edit_and_report(dataset, CaptionEdits(remove_tags="sign, old"))[1]
    assert (report.captions, report.changed, report.emptied) == (6, 4, 2)
    blank = edit_and_report(_dataset(" "), CaptionEdits(find=" "))[1]
    assert (blank.changed, blank.emptied) == (1, 0)
    assert report.removed == (("sign", 3), ("old", 2))
    assert report.text() == (
        "4 of 6 captions changed\n"
        "removed: sign (3), old (2)\n"
        "2 captions left without any words\n"
        "0.png:\n- a, sign\n+ a\n"
        "1.png:\n- Sign\n+ (empty)\n"
        "2.png:\n- sign, c, old\n+ c\n"
        "in training: captions as they stand\n"
        "5 distinct texts to encode, counting the empty one"
    )


def test_the_report_tells_how_many_texts_will_be_encoded() -> None:
    dataset = combine(
        [_dataset("a, b", "b, a", "c"), _dataset("x, y", name="v", role=Role.VALIDATION)]
    )
    options = CaptionOptions(shuffle_caption=True, caption_variants=64)
    edited, report = edit_and_report(dataset, CaptionEdits(), options)
    assert report.distinct_texts == len(captions(edited)) == 5  # "", a b, b a, c; x y
    assert "5 distinct texts to encode" in report.text()


def test_long_captions_and_lists_are_cut_in_the_report() -> None:
    many = ", ".join(f"tag {i}" for i in range(40))
    text = edit_and_report(_dataset(many), CaptionEdits(remove_tags="tag*"))[1].text()
    assert "tag 11 (1) and 28 more" in text
    assert f"- {many[:160]} …" in text and many not in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (CaptionOptions(), "captions as they stand"),
        (CaptionOptions(keep_tokens=1), "captions as they stand"),
        (
            CaptionOptions(shuffle_caption=True, keep_tokens=1),
            "tags shuffled, the first 1 kept, 8 texts of each picture",
        ),
        (
            CaptionOptions(caption_tag_dropout_rate=0.1, enable_wildcard=True, caption_variants=4),
            "10% of the tags left out, wildcards filled in, 4 texts of each picture",
        ),
        (
            CaptionOptions(caption_dropout_rate=0.055, caption_dropout_every_n_epochs=5),
            "5.5% of the captions left out, no captions in epochs 5, 10, …",
        ),
    ],
)
def test_options_are_told_in_words(options: CaptionOptions, words: str) -> None:
    text = edit_and_report(_dataset("a, b"), CaptionEdits(), options)[1].text()
    assert f"in training: {words}\n" in text


@pytest.mark.parametrize(
    ("edits", "note"),
    [
        ({"find": "cat"}, 'find: no caption changed by replacing "cat"'),
        ({"find": "fox", "replace_with": "fox"}, 'find: no caption changed by replacing "fox"'),
        ({"remove_tags": "cat"}, "remove_tags: no caption has any of them"),
        ({"class_tokens": "a", "absorb_above": 0.9}, "absorb_above: no tag is in more than 0.9 of"),
    ],
)
def test_edits_that_find_nothing_say_so(edits: dict, note: str) -> None:
    assert note in edit_and_report(_dataset("a fox"), CaptionEdits(**edits))[1].text()


@pytest.mark.parametrize(
    ("text", "trigger", "options", "loose"),
    [
        ("a, b", "sks", CaptionOptions(shuffle_caption=True), True),
        ("a, b", "sks", CaptionOptions(caption_tag_dropout_rate=0.1), True),
        ("a, b", "sks, fox", CaptionOptions(shuffle_caption=True, keep_tokens=1), True),
        ("a, b", "sks", CaptionOptions(shuffle_caption=True, keep_tokens=1), False),
        ("a ||| b", "sks", CaptionOptions(shuffle_caption=True), False),
        ("a, b", "sks", CaptionOptions(), False),
        ("a, b", "", CaptionOptions(shuffle_caption=True), False),
    ],
)
def test_a_trigger_word_that_may_be_shuffled_away_is_told(text, trigger, options, loose) -> None:
    report = edit_and_report(_dataset(text), CaptionEdits(trigger), options)[1]
    number = len(trigger.split(","))
    assert (f"set keep_tokens to {number}." in report.text()) is loose


def test_pictures_without_trigger_word_need_not_keep_it() -> None:
    others = _dataset("x, y", name="any", role=Role.REGULARISATION)
    options = CaptionOptions(shuffle_caption=True)
    dataset = combine([_dataset("a ||| b"), others])
    assert "keep_tokens" not in edit_and_report(dataset, CaptionEdits("sks"), options)[1].text()


def test_a_blacklist_with_many_stars_is_matched_quickly() -> None:
    """Trying every place for each star would take years."""
    begin = time.process_time()
    text = "a b " * 1000
    assert _edit(text, remove_tags="*a*b" * 20 + "*c") == text
    assert time.process_time() - begin < 20


def test_ten_thousand_captions_are_edited_quickly() -> None:
    dataset = _dataset(
        *(", ".join(f"tag{i * 7 % 50 + k}" for k in range(15)) for i in range(10_000))
    )
    edits = CaptionEdits(
        "sks", "p", "s", "x", "tag1*", "tag4", "t", True, True, SortTags.RAREST_FIRST
    )
    begin = time.process_time()
    edit_captions(dataset, replace(edits, absorb_above=0.9))
    assert time.process_time() - begin < 40
