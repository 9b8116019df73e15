"""Factors for blocks: the rows of LoRA Block Weight, and names."""

from __future__ import annotations

import pytest

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.results.block_weights import Blocks, parse_block_weights, short_name

NAMES = (
    *(f"input_blocks.{i}" for i in range(12)),
    "middle_block",
    *(f"output_blocks.{i}" for i in range(12)),
)
ATTENDING = tuple(
    name
    for name in NAMES
    if short_name(name)
    in "IN01 IN02 IN04 IN05 IN07 IN08 MID OUT03 OUT04 OUT05 OUT06 OUT07 OUT08 OUT09 OUT10 OUT11"
)
SD15 = Blocks(NAMES, ATTENDING, ("time_embed", "out"), ("clip_l",))
FLUX_NAMES = tuple(f"{kind}_blocks.{i}" for kind in ("double", "single") for i in range(3))
FLUX = Blocks(FLUX_NAMES, FLUX_NAMES, ("img_in",), ("clip_l", "t5xxl"))


def factors(text: str, blocks: Blocks = SD15) -> dict[str, float]:
    return parse_block_weights(text).factors(blocks)


@pytest.mark.parametrize("text", ["", "  \n ", ",".join(["1"] * 26)])
def test_nothing_said_is_one_for_all(text: str) -> None:
    found = factors(text)
    assert set(found) == {*NAMES, "time_embed", "out", "clip_l"}
    assert set(found.values()) == {1.0}


def test_seventeen_numbers_are_those_of_lora_block_weight() -> None:
    found = factors(",".join(str(i / 2) for i in range(17)))
    named = {short_name(name): value for name, value in found.items()}
    assert named["clip_l"] == 0
    assert (named["IN01"], named["IN04"], named["IN08"]) == (0.5, 1.5, 3)
    assert (named["MID"], named["OUT03"], named["OUT11"]) == (3.5, 4, 8)
    assert {named[name] for name in ("IN00", "IN03", "OUT00", "OUT02")} == {0.0}
    assert named["time_embed"] == named["out"] == 1


def test_a_row_may_have_line_breaks_and_a_comma_at_its_end() -> None:
    assert factors("0, .5,1\n1,1,1,-2,\n", FLUX) == {
        **{"clip_l": 0, "t5xxl": 0, "img_in": 1},
        **dict(zip(FLUX_NAMES, (0.5, 1, 1, 1, 1, -2), strict=True)),
    }


def test_names_are_short_or_long_and_later_ones_win() -> None:
    found = factors("OUT*=0, out03 = 0.5\ninput_blocks.4=2\nBASE=0.25,time_embed=-1, MID=3")
    expected = dict.fromkeys(found, 1.0)
    expected |= {f"output_blocks.{i}": 0.0 for i in range(12)} | {"out": 0.0}
    expected |= {"output_blocks.3": 0.5, "input_blocks.4": 2, "middle_block": 3}
    assert found == expected | {"clip_l": 0.25, "time_embed": -1}
    assert factors("t5xxl=0", FLUX)["t5xxl"] == 0
    assert factors("t5xxl=0", FLUX)["clip_l"] == 1


def test_the_text_encoders_may_be_missing() -> None:
    assert factors("BASE=0", Blocks(("a.0",), ("a.0",))) == {"a.0": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,0,1", "has 3 numbers, .* must have 17 or 26: first the text encoders, then IN01, IN02"),
        ("1,0,one", 'number 3 is "one", which is no number'),
        ("1,,1", 'number 2 is "", which is no number'),
        ("IN04=, MID=1", 'IN04 is "", which is no number'),
        ("IN04=1, 0.5", '"0.5" is not name=number'),
        ("=1", '"=1" is not name=number'),
        ("IN04=11", "block_weights: IN04 is 11.0: it must be a number from -10 to 10"),
        ("IN04=nan", "IN04 is nan"),
        ("IN44=1", 'no part of this model is called "IN44". There is: BASE, IN00'),
    ],
)
def test_mistakes_are_explained(text: str, words: str) -> None:
    with pytest.raises(AtelierError, match=words):
        factors(text)
