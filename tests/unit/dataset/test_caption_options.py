"""What training makes of a caption: kohya's rules, from a bounded number of texts per picture."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_atelier.training.dataset.caption_options import (
    CaptionOptions,
    caption_variant,
    caption_variants,
    count_variants,
)
from lora_atelier.training.errors import AtelierError
from lora_atelier.training.random_streams import generator

SHUFFLE = CaptionOptions(shuffle_caption=True, caption_variants=64)
DROP = CaptionOptions(caption_tag_dropout_rate=0.5, caption_variants=64)
WILD = CaptionOptions(enable_wildcard=True, caption_variants=64)


def _texts(caption: str, options: CaptionOptions, key: str = "fox.png") -> set[str]:
    return set(caption_variants((caption,), options, key))


class Random:
    """The three draws the rules need, from a generator."""

    def __init__(self, rng: torch.Generator) -> None:
        self.rng = rng

    def choice(self, values: list[str]) -> str:
        return values[int(torch.randint(len(values), (1,), generator=self.rng))]

    def shuffled(self, values: list[str]) -> list[str]:
        order = torch.randperm(len(values), generator=self.rng)
        return [values[int(i)] for i in order]

    def kept(self, values: list[str], rate: float) -> list[str]:
        chances = torch.rand(len(values), generator=self.rng)
        return [v for v, chance in zip(values, chances, strict=True) if float(chance) >= rate]


def _as_kohya(caption: str, options: CaptionOptions, random: Random) -> str:
    """ALGORITHMS D9 read aloud, with our two differences: no empty tags, no ||| in the result."""
    mark, separator = options.keep_tokens_separator, options.caption_separator
    if options.enable_wildcard:
        caption = caption.replace("{{", "\x01").replace("}}", "\x02")
        rest, caption = caption, ""
        while True:
            opening = re.search(r"\{([^}]+)\}", rest)
            if opening is None:
                break
            caption += rest[: opening.start()] + random.choice(opening.group(1).split("|"))
            rest = rest[opening.end() :]
        caption = (caption + rest).replace("\x01", "{").replace("\x02", "}")
    if not options.shuffle_caption and options.caption_tag_dropout_rate == 0:
        if mark and mark in caption:
            parts = [part.strip(f" {separator}") for part in caption.split(mark)]
            caption = ", ".join(part for part in parts if part)
        return caption

    def cut(text: str) -> list[str]:
        return [tag.strip() for tag in text.split(separator) if tag.strip()]

    suffix: list[str] = []
    if mark and mark in caption:
        fixed_text, flexible_text = caption.split(mark, 1)
        if mark in flexible_text:
            flexible_text, suffix_text = flexible_text.split(mark, 1)
            suffix = cut(suffix_text.replace(mark, separator))
        fixed, flexible = cut(fixed_text), cut(flexible_text)
    else:
        tags = cut(caption)
        fixed, flexible = tags[: options.keep_tokens], tags[options.keep_tokens :]
    if options.shuffle_caption:
        flexible = random.shuffled(flexible)
    if options.caption_tag_dropout_rate > 0:
        flexible = random.kept(flexible, options.caption_tag_dropout_rate)
    return ", ".join(fixed + flexible + suffix)


words = st.sampled_from(["a", "fox", "red hat", "{x|y}", "{{z}}", "{p, q|r}", "{", "}", "", " "])
captions = st.lists(st.tuples(words, st.sampled_from([",", ", ", "|||", " ||| "])), max_size=8).map(
    lambda parts: (
        "".join(word + end for word, end in parts[:-1]) + "".join(w for w, _ in parts[-1:])
    )
)
all_options = st.builds(
    CaptionOptions,
    shuffle_caption=st.booleans(),
    keep_tokens=st.integers(0, 3),
    keep_tokens_separator=st.sampled_from(["|||", ""]),
    caption_tag_dropout_rate=st.sampled_from([0.0, 0.3]),
    enable_wildcard=st.booleans(),
    caption_variants=st.integers(1, 5),
)


@given(st.lists(captions, min_size=1, max_size=3), all_options, st.text(max_size=5))
@settings(max_examples=400)
def test_every_text_is_what_the_written_out_rules_give(alternatives, options, key) -> None:
    alternatives = tuple(alternatives)
    texts = caption_variants(alternatives, options, key)
    for k, text in enumerate(texts):
        random = Random(generator(0, "caption variant", key, k))
        assert text == _as_kohya(alternatives[k % len(alternatives)], options, random)
        assert "|||" not in text or options.keep_tokens_separator == ""


@given(st.lists(captions, min_size=1, max_size=4), all_options)
@settings(max_examples=200)
def test_each_alternative_has_the_same_number_of_texts(alternatives, options) -> None:
    texts = caption_variants(tuple(alternatives), options, "fox.png")
    assert len(texts) % len(alternatives) == 0
    most = math.ceil(options.caption_variants / len(alternatives)) * len(alternatives)
    assert len(texts) in (len(alternatives), most)


@pytest.mark.parametrize(
    ("alternatives", "options", "count"),
    [
        (("a, b",), CaptionOptions(), 1),
        (("a", "b", "c"), CaptionOptions(), 3),
        (("a, b", "c, d", "e"), CaptionOptions(shuffle_caption=True, caption_variants=8), 9),
        (("a, b",), CaptionOptions(shuffle_caption=True, caption_variants=8), 8),
        (("a, b",) * 5, CaptionOptions(shuffle_caption=True, caption_variants=2), 5),
        (("a", "b"), CaptionOptions(shuffle_caption=True), 2),  # one tag: nothing to shuffle
        (("a, b",), CaptionOptions(shuffle_caption=True, keep_tokens=1), 1),
        (("a",), CaptionOptions(caption_tag_dropout_rate=0.1), 8),
        (("a",), CaptionOptions(caption_tag_dropout_rate=0.1, keep_tokens=1), 1),
        (("a fox", "b"), CaptionOptions(enable_wildcard=True), 2),
        (("a {red|grey} fox",), CaptionOptions(enable_wildcard=True), 8),
        (("a {red|grey} fox",), CaptionOptions(caption_variants=8), 1),
        (("",), CaptionOptions(shuffle_caption=True, caption_tag_dropout_rate=0.1), 1),
        (("a",), CaptionOptions(caption_dropout_rate=0.5), 1),  # not a matter of texts
    ],
)
def test_as_many_texts_as_something_varies(alternatives, options, count: int) -> None:
    assert count_variants(alternatives, options) == count
    assert len(caption_variants(alternatives, options, "fox.png")) == count


@pytest.mark.parametrize(
    "caption", ["A fox, asleep.", " a ,b,, c ", "{a|b} {{c}}", "a\nb", "a || b", "", "1,000"]
)
def test_by_default_a_caption_trains_as_it_stands(caption: str) -> None:
    assert caption_variants((caption,), CaptionOptions(), "fox.png") == (caption,)


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("sks fox ||| red, snow", "sks fox, red, snow"),
        ("sks fox, |||red, snow ||| best", "sks fox, red, snow, best"),
        ("||| red |||", "red"),
        ("a|||b|||c|||d", "a, b, c, d"),
        (
            "A fox.|||It sleeps,  dreaming of 1,000 hens.",
            "A fox., It sleeps,  dreaming of 1,000 hens.",
        ),
    ],
)
def test_the_mark_of_what_to_keep_is_never_encoded(caption: str, text: str) -> None:
    assert _texts(caption, CaptionOptions()) == {text}
    assert _texts(caption, replace(WILD, caption_variants=2)) == {text}


def test_another_separator_takes_the_place_of_the_mark() -> None:
    options = CaptionOptions(caption_separator="; ", keep_tokens_separator="@@")
    assert _texts("slips; @@ ; sleds|||; ", options) == {"slips; sleds|||"}


@pytest.mark.parametrize(
    ("caption", "options", "front", "moving", "end"),
    [
        ("a, b, c", SHUFFLE, "", "abc", ""),
        ("t, a, b, c", replace(SHUFFLE, keep_tokens=1), "t", "abc", ""),
        ("t, u, a, b", replace(SHUFFLE, keep_tokens=2), "tu", "ab", ""),
        ("t ||| a, b, c", SHUFFLE, "t", "abc", ""),
        ("t, u ||| a, b ||| y, z", replace(SHUFFLE, keep_tokens=1), "tu", "ab", "yz"),
        ("t|||a,b,|||y|||z", SHUFFLE, "t", "ab", "yz"),
        ("||| a, b ||| z", SHUFFLE, "", "ab", "z"),
        ("t;a;b", replace(SHUFFLE, keep_tokens=1, caption_separator=";"), "t", "ab", ""),
    ],
)
def test_every_order_of_the_others_comes_and_kept_tags_never_move(
    caption: str, options: CaptionOptions, front: str, moving: str, end: str
) -> None:
    """With 64 texts the chance that one of 6 orders is missing is 6·(5/6)⁶⁴ < 1e-4."""
    expected = {", ".join([*front, *order, *end]) for order in permutations(moving)}
    assert _texts(caption, options) == expected


def test_without_its_meaning_the_mark_is_part_of_a_tag() -> None:
    options = replace(SHUFFLE, keep_tokens_separator="")
    assert _texts("a ||| b, c", options) == {"a ||| b, c", "c, a ||| b"}
    assert _texts("a ||| b", CaptionOptions(keep_tokens_separator="")) == {"a ||| b"}


def test_orders_come_equally_often() -> None:
    """600 texts, 6 orders: 100 each expected, deviation 9.1."""
    options = CaptionOptions(shuffle_caption=True, caption_variants=600)
    counts = Counter(caption_variants(("a, b, c",), options, "fox.png"))
    assert len(counts) == 6
    assert all(abs(count - 100) < 40 for count in counts.values())


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_tags_are_left_out_at_their_rate_in_their_order_and_kept_ones_never(rate: float) -> None:
    options = CaptionOptions(caption_tag_dropout_rate=rate, caption_variants=1000)
    texts = caption_variants(("t ||| a, b, c ||| z",), options, "fox.png")
    middles = [text.split(", ")[1:-1] for text in texts]
    assert {(text[0], text[-1]) for text in texts} == {("t", "z")}
    assert all(middle == sorted(middle) for middle in middles)
    deviation = math.sqrt(1000 * rate * (1 - rate))
    for tag in "abc":
        left_out = sum(tag not in middle for middle in middles)
        assert abs(left_out - 1000 * rate) < 5 * deviation
    both = sum("a" not in middle and "b" not in middle for middle in middles)
    assert abs(both - 1000 * rate**2) < 5 * math.sqrt(1000 * rate**2 * (1 - rate**2))


def test_a_rate_of_one_leaves_only_what_is_kept() -> None:
    options = replace(DROP, caption_tag_dropout_rate=1.0)
    assert _texts("t, a, b", replace(options, keep_tokens=1)) == {"t"}
    assert _texts("a, b", options) == {""}


@pytest.mark.parametrize(
    ("caption", "texts"),
    [
        ("a {red|grey} fox", {"a red fox", "a grey fox"}),
        ("{a|b} {c|d}", {"a c", "a d", "b c", "b d"}),
        ("{red, large|small} fox", {"red, large fox", "small fox"}),
        ("{very |}big", {"very big", "big"}),
        ("{only}", {"only"}),
        ("{{a|b}}", {"{a|b}"}),
        ("{{{a|b}", {"{a", "{b"}),
        ("a }} b {{", {"a } b {"}),
        ("{} {|.}", {"{} ", "{} ."}),
        ("a | b", {"a | b"}),
    ],
)
def test_wildcards_give_each_of_their_choices(caption: str, texts: set[str]) -> None:
    assert _texts(caption, WILD) == texts


def test_choices_of_a_wildcard_come_equally_often() -> None:
    """600 texts, 3 choices: 200 each expected, deviation 11.5."""
    options = CaptionOptions(enable_wildcard=True, caption_variants=600)
    counts = Counter(caption_variants(("{a|b|c}",), options, "fox.png"))
    assert set(counts) == {"a", "b", "c"}
    assert all(abs(count - 200) < 55 for count in counts.values())


def test_wildcards_are_filled_in_before_tags_are_looked_at() -> None:
    texts = _texts("t, {a, b|c}", replace(WILD, shuffle_caption=True, keep_tokens=1))
    assert texts == {"t, a, b", "t, b, a", "t, c"}
    assert _texts("{t{{|u}, a", replace(WILD, keep_tokens=1)) == {"t{, a", "u, a"}


def test_a_picture_s_texts_depend_on_nothing_but_itself() -> None:
    captions = ("a, b, c, d, e",)
    texts = caption_variants(captions, SHUFFLE, "fox.png")
    torch.manual_seed(5)
    caption_variants(captions, SHUFFLE, "bear.png")
    assert caption_variants(captions, SHUFFLE, "fox.png") == texts
    assert caption_variants(captions, SHUFFLE, "bear.png") != texts


def test_more_texts_leave_the_first_ones_as_they_are() -> None:
    """So that what was encoded for 4 still serves for 16."""
    few, many = (
        caption_variants(("a, b, c, d", "e, f"), replace(SHUFFLE, caption_variants=n), "fox.png")
        for n in (4, 16)
    )
    assert many[:4] == few
    assert caption_variant(("a, b, c, d", "e, f"), SHUFFLE, "fox.png", 3) == few[3]


def test_a_hundred_thousand_plain_captions_take_a_moment() -> None:
    captions = [(f"a fox, number {i}, red, snow",) for i in range(100_000)]
    begin = time.process_time()
    for alternatives in captions:
        caption_variants(alternatives, CaptionOptions(), "fox.png")
    assert time.process_time() - begin < 50


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("keep_tokens", -1),
        ("keep_tokens", math.nan),
        ("caption_tag_dropout_rate", 1.1),
        ("caption_tag_dropout_rate", math.nan),
        ("caption_dropout_rate", -0.1),
        ("caption_dropout_every_n_epochs", -1),
        ("caption_variants", 0),
        ("caption_variants", 1001),
        ("caption_separator", ""),
        ("keep_tokens_separator", " "),
        ("keep_tokens_separator", ","),
    ],
)
def test_values_out_of_range_are_refused_by_the_name_of_the_widget(field: str, value) -> None:
    with pytest.raises(AtelierError, match=f"^{field} is "):
        CaptionOptions(**{field: value})


def test_a_mark_inside_the_separator_is_refused() -> None:
    with pytest.raises(AtelierError, match='^keep_tokens_separator is "," and caption_separator'):
        CaptionOptions(keep_tokens_separator=",", caption_separator=", ")
    assert CaptionOptions(keep_tokens_separator="").keep_tokens_separator == ""
