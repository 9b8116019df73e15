"""Prompts and captions from lists: what there are, which are drawn, and what is refused."""

from __future__ import annotations

import random
import re
from collections import Counter
from itertools import combinations, product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.generate.matrix_report import matrix_report
from lora_atelier.training.generate.phrases import Joined, OneOf, Phrase, Plain, SomeOf
from lora_atelier.training.generate.prompt_matrix import (
    MatrixOptions,
    PromptMatrix,
    file_name,
    tidy,
)
from lora_atelier.training.generate.prompts import Prompt, PromptSet
from lora_atelier.training.generate.syntax import parse
from lora_atelier.training.generate.wildcards import Wildcards, folder_state, lines_of

NO_FILES = Wildcards(Path("there-is-no-such-folder"))


def texts(line: str, wildcards: Wildcards = NO_FILES) -> list[str]:
    phrase = parse(line, wildcards.lookup, "subjects")
    return [phrase.text(index) for index in range(phrase.count)]


def matrix(subjects: str, wildcards: Wildcards = NO_FILES, **options) -> PromptMatrix:
    return PromptMatrix(MatrixOptions(subjects, **options), wildcards)


def prompts(subjects: str, wildcards: Wildcards = NO_FILES, **options) -> tuple[Prompt, ...]:
    return matrix(subjects, wildcards, **options).prompts().prompts


@pytest.fixture
def files(tmp_path: Path) -> Wildcards:
    folder = tmp_path / "wildcards"
    (folder / "animals").mkdir(parents=True)
    (folder / "colours.txt").write_text("# warm first\nred\n\n 3::ginger \nred\n", "utf-8")
    (folder / "animals" / "small.txt").write_text("\ufeff__colours__ fox\nmouse\n", "utf-8")
    (tmp_path / "secret.txt").write_text("password", "utf-8")
    return Wildcards(folder)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a fox", ["a fox"]),
        ("a {red|ginger} fox", ["a red fox", "a ginger fox"]),
        ("{a|b}{c|d}", ["ac", "ad", "bc", "bd"]),
        ("{a|{b|c} d}", ["a", "b d", "c d"]),
        ("{red|} fox", ["red fox", " fox"]),
        ("{red|red|blue}", ["red", "blue"]),
        ("{3::red|0.5::blue}", ["red", "blue"]),
        ("{2$$a|b|c}", ["a, b", "a, c", "b, c"]),
        ("{1-2$$ and $$a|b|c}", ["a", "b", "c", "a and b", "a and c", "b and c"]),
        ("{0-1$$a|b}", ["", "a", "b"]),
        ("{2$$$$a|{b|c}}", ["ab", "ac"]),
        (r"\{a\|b\} \__x__ (a:1.2) \(b\)", [r"{a|b} __x__ (a:1.2) \(b\)"]),
        (
            "50% grey, $5, a_b__c, 10::3, a|b, [x] # 1 //",
            ["50% grey, $5, a_b__c, 10::3, a|b, [x] # 1 //"],
        ),
        ("红色{的|色}狐狸", ["红色的狐狸", "红色色狐狸"]),
    ],
)
def test_what_a_line_stands_for(line: str, expected: list[str]) -> None:
    assert texts(line) == expected


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("a {red|blue fox", "has a brace that is never closed"),
        ("a red} fox", "has a closing brace that nothing opens"),
        ("{2$$a}", r"has 2$$ before 1 options"),
        ("{3-1$$a|b|c}", r"has 3-1$$ before 3 options"),
        ("{0::a|b}", "has the weight 0"),
        ("{" * 30 + "a" + "}" * 30, "has braces too deep"),
    ],
)
def test_a_line_that_cannot_be_read_is_quoted(line: str, complaint: str) -> None:
    with pytest.raises(AtelierError, match=re.escape(f"subjects {complaint}")) as error:
        matrix(f"a dog\n{line}")
    assert line in str(error.value)


def phrases() -> st.SearchStrategy[Phrase]:
    leaf = st.text("abc", max_size=2).map(Plain)

    def larger(inner: st.SearchStrategy[Phrase]) -> st.SearchStrategy[Phrase]:
        several = st.lists(inner, min_size=1, max_size=3)
        joined = several.map(Joined)
        one = several.map(lambda options: OneOf(options, [1.0] * len(options)))
        some = st.tuples(several, st.integers(0, 3), st.integers(0, 3)).map(
            lambda t: SomeOf(
                t[0],
                [1.0] * len(t[0]),
                min(t[1], t[2], len(t[0])),
                min(max(t[1], t[2]), len(t[0])),
                "+",
            )
        )
        return st.one_of(joined, one, some)

    return st.recursive(leaf, larger, max_leaves=6)


def every_text(phrase: Phrase) -> list[str]:
    """By plain enumeration."""
    if isinstance(phrase, Plain):
        return [phrase.words]
    if isinstance(phrase, OneOf):
        return [text for option in phrase.options for text in every_text(option)]
    if isinstance(phrase, Joined):
        return ["".join(t) for t in product(*map(every_text, phrase.parts))]
    return [
        phrase.separator.join(chosen)
        for size in range(phrase.low, phrase.high + 1)
        for options in combinations(phrase.options, size)
        for chosen in product(*map(every_text, options))
    ]


@given(phrases(), st.integers(0, 9))
def test_the_numbers_of_a_phrase_are_all_its_texts_once(phrase: Phrase, seed: int) -> None:
    expected = every_text(phrase)
    assert phrase.count == len(expected)
    assert sorted(phrase.text(i) for i in range(phrase.count)) == sorted(expected)
    assert 0 <= phrase.pick(random.Random(seed)) < phrase.count


@pytest.mark.parametrize("line", ["{3::a|b}", "{1$$3::a|b}", "{a|a|2::b|4::a}"])
def test_weights_say_how_often_an_alternative_is_drawn(line: str) -> None:
    phrase, rng = parse(line, NO_FILES.lookup, "subjects"), random.Random(1)
    drawn = Counter(phrase.text(phrase.pick(rng)) for _ in range(4000))
    assert 0.72 < drawn["a"] / 4000 < 0.78


def test_every_choice_of_some_can_be_drawn() -> None:
    phrase, rng = parse("{1-2$$a|{b|c}|d}", NO_FILES.lookup, "subjects"), random.Random(1)
    assert {phrase.pick(rng) for _ in range(500)} == set(range(phrase.count))


def test_wildcard_files_may_lie_in_folders_and_name_each_other(files: Wildcards) -> None:
    assert texts("a __colours__ hat", files) == ["a red hat", "a ginger hat"]
    assert texts("{2$$__animals/small__}", files) == ["red fox, mouse", "ginger fox, mouse"]
    weights = [option.weight for option in files.lookup("colours", 1)]
    assert weights == [1, 3]


@pytest.mark.parametrize(
    "name",
    ["../secret", "animals/../../secret", "{root}/secret", "link", "linked/secret", "//host/x"],
)
def test_no_file_outside_the_folder_is_read(files: Wildcards, name: str) -> None:
    root = files.folder.parent
    (files.folder / "link.txt").symlink_to(root / "secret.txt")
    (files.folder / "linked").symlink_to(root)
    with pytest.raises(AtelierError, match="leads out of") as error:
        files.lookup(name.format(root=root), 1)
    assert "password" not in str(error.value)


def test_a_wildcard_file_that_is_of_no_use_is_named(files: Wildcards) -> None:
    (files.folder / "empty.txt").write_text("# nothing\n", "utf-8")
    (files.folder / "latin.txt").write_bytes("grün".encode("latin-1"))
    (files.folder / "bad.txt").write_text("{a|b", "utf-8")
    for name, complaint in {
        "colors": r'no wildcard file "colors.txt".*It holds: animals/small, bad, colours',
        "empty": r'"empty.txt" is empty',
        "latin": r'"latin.txt" cannot be read.*UTF-8',
        "bad": r'"bad.txt" has a brace that is never closed.*\{a\|b',
    }.items():
        with pytest.raises(AtelierError, match=complaint):
            texts(f"a __{name}__", Wildcards(files.folder))
    with pytest.raises(AtelierError, match="Make that folder"):
        texts("__colours__")


def test_wildcard_files_that_go_round_or_too_deep_are_refused(files: Wildcards) -> None:
    (files.folder / "a.txt").write_text("x __b__", "utf-8")
    (files.folder / "b.txt").write_text("y __a__", "utf-8")
    for i in range(60):
        (files.folder / f"d{i}.txt").write_text(f"{{__d{i + 1}__|x}}", "utf-8")
    with pytest.raises(AtelierError, match="ring: __a__ → __b__ → __a__"):
        texts("__a__", Wildcards(files.folder))
    with pytest.raises(AtelierError, match="too deep"):
        texts("__d0__", Wildcards(files.folder))


def test_the_state_of_the_folder_changes_with_its_files(files: Wildcards) -> None:
    before = folder_state(files.folder)
    assert before == folder_state(files.folder) and "animals/small.txt" in before
    (files.folder / "colours.txt").write_text("blue", "utf-8")
    assert folder_state(files.folder) != before
    assert folder_state(files.folder / "nowhere") == ""


def test_lists_leave_out_comments_blank_and_equal_lines() -> None:
    assert lines_of("a\r\n\n # no\n b \na\nc # d") == ["a", "b", "c # d"]


def test_all_combinations_in_the_order_of_the_lists() -> None:
    made = prompts(
        "fox\n{red|blue} car", styles="ink\noil", templates="[style] of [subject]\n[subject]"
    )
    assert [p.text for p in made] == [
        *("ink of fox", "oil of fox", "fox"),
        *("ink of red car", "oil of red car", "red car"),
        *("ink of blue car", "oil of blue car", "blue car"),
    ]
    assert [p.style for p in made[:3]] == ["ink", "oil", ""]


def test_the_caption_has_the_trigger_and_the_painted_subject_and_not_the_style() -> None:
    made = prompts("a {red|blue} {car|hat}", styles="{flat|plain} ink", class_tokens="flatvec")
    assert len(made) == 8
    for prompt in made:
        assert prompt.text == f"{prompt.style}, a picture of {prompt.subject}"
        assert prompt.caption == f"flatvec, {prompt.subject}"
        assert prompt.class_tokens == "flatvec"
        assert prompt.name == prompt.subject.replace(" ", "_")


@pytest.mark.parametrize(
    ("template", "caption"),
    [
        ("[trigger], [subject]", "sks, fox"),
        ("[subject]", "sks, fox"),
        ("a drawing of [subject], sks", "sks, a drawing of fox"),
        ("[subject] in [trigger] style", "fox in sks style"),
        ("[prompt] ([style])", "sks, ink, a picture of fox (ink)"),
        ("[trigger]", "sks"),
        ("", "sks"),
        ("[trigger], {a|b} [subject] [x]", "sks, {a|b} fox [x]"),
    ],
)
def test_caption_templates(template: str, caption: str) -> None:
    (prompt,) = prompts("fox", styles="ink", class_tokens="sks", caption_template=template)
    assert prompt.caption == caption


def test_what_is_left_empty_leaves_no_commas() -> None:
    (prompt,) = prompts("fox", templates="a, [style], [subject], [style]")
    assert (prompt.text, prompt.caption, prompt.style) == ("a, fox", "fox", "")
    assert tidy(" a ,, b  c , ") == "a, b c"
    assert tidy("1,000 foxes") == "1,000 foxes"


def test_brackets_in_a_subject_stay_as_they_are() -> None:
    (prompt,) = prompts("[style] [subject]", styles="ink")
    assert prompt.text == "ink, a picture of [style] [subject]"


def test_drawing_is_a_function_of_the_seed_and_draws_none_twice() -> None:
    lists = {
        "styles": "ink\noil\n{soft|hard} chalk",
        "templates": "[style] [subject]\n[subject], [style]",
    }
    subjects = "fox\n{red|blue} car\nhat"
    chosen = [prompts(subjects, prompt_count=12, seed=seed, **lists) for seed in (1, 1, 2)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(len({p.text for p in made}) == 12 for made in chosen)
    everything = prompts(subjects, **lists)
    assert [p for p in everything if p in chosen[0]] == list(chosen[0])  # in the order of the lists


def test_drawing_on_ends_with_every_combination() -> None:
    subjects, styles = "fox\n{9::red|blue|1-x|2-y} car", "{100::ink|oil}\nchalk"
    shuffled = prompts(subjects, styles=styles, shuffle=True, prompt_count=50)
    everything = prompts(subjects, styles=styles)
    assert len(everything) == 15 and shuffled != everything
    assert Counter(shuffled) == Counter(everything)
    assert prompts(subjects, styles=styles, prompt_count=50) == everything


def test_a_set_that_grows_keeps_what_it_has() -> None:
    few, more = (
        prompts("fox\n{a|b|c} car", styles="ink\noil", shuffle=True, prompt_count=n) for n in (3, 7)
    )
    assert more[:3] == few


def test_subjects_take_turns_however_many_variants_they_have() -> None:
    digits = "{0|1|2|3|4|5|6|7|8|9}"
    made = prompts(f"fox {digits}\nhat {digits * 30}\ncar", prompt_count=21, styles="ink")
    assert Counter(p.subject[:3] for p in made) == {"fox": 10, "hat": 10, "car": 1}


def test_too_many_are_refused_before_they_are_built_but_can_be_drawn_from() -> None:
    many = "{0|1|2|3|4|5|6|7|8|9}" * 5
    with pytest.raises(
        AtelierError, match=r"make 200,000 prompts, more than 100,000.*prompt_count"
    ):
        matrix(f"{many}\n1 {many}")
    with pytest.raises(AtelierError, match="make more than 10¹⁵ prompts"):
        matrix(many * 1000)
    assert len({p.text for p in prompts(many * 1000, prompt_count=5)}) == 5


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"subjects": " \n# a fox"}, "subjects is empty"),
        ({"templates": ""}, "templates is empty"),
        ({"templates": "[subject]\n[style]"}, r'templates: "\[style\]" has no \[subject\]'),
        ({"templates": "{style}, [subject]"}, r"templates has \{style\}.*Write \[style\]"),
        ({"caption_template": "{subject}"}, r"caption_template has \{subject\}"),
        ({"styles": "ink", "templates": "[subject]"}, r"no template has \[style\]"),
        ({"prompt_count": -1}, "prompt_count is -1"),
        ({"prompt_count": 100_001}, "prompt_count is 100001"),
    ],
)
def test_widgets_that_make_no_sense_are_named(options: dict, complaint: str) -> None:
    with pytest.raises(AtelierError, match=complaint):
        MatrixOptions(**{"subjects": "fox"} | options)


def test_there_is_at_least_one_prompt() -> None:
    with pytest.raises(AtelierError, match="no prompt"):
        PromptSet(())


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ("a red/blue fox: #1?", "a_red_blue_fox_1"),
        ("../../etc", "etc"),
        ("红色狐狸", "红色狐狸"),
        ("???", "picture"),
        ("x" * 60, "x" * 48),
    ],
)
def test_names_are_fit_for_files(subject: str, name: str) -> None:
    assert file_name(subject) == name


def test_the_report_tells_how_many_and_shows_some_from_first_to_last() -> None:
    made = matrix("{a|b|c|d|e|f|g|h|i|j|k}", styles="ink", class_tokens="sks")
    first, blank, *examples = matrix_report(made, made.prompts()).splitlines()
    assert (first, blank) == ("11 prompts from 1 subject, 1 style, 1 template", "")
    assert [e[-1] for e in examples] == list("acegik")
    assert examples[0] == "ink, a picture of a → sks, a"


def test_the_report_tells_what_was_drawn_from() -> None:
    drawn = matrix("{a|b|c}\nd", prompt_count=2, seed=7, caption_template="")
    report = matrix_report(drawn, drawn.prompts())
    assert "2 prompts from 2 subjects, 0 styles" in report
    assert "drawn with seed 7 from 4 combinations" in report
    assert report.endswith("→ (no caption)")
    asked = matrix("a", prompt_count=9)
    assert "prompt_count is 9: there are no more" in matrix_report(asked, asked.prompts())
