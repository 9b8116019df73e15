"""What people type for an optimizer or a schedule is read, and held to the function's signature."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.optimizers.arguments import (
    check_arguments,
    fits,
    parameters,
    parse_arguments,
    parse_numbers,
)


def example(
    params: Any,
    rate: float = 0.1,
    warm: bool = False,
    betas: tuple[float, float] = (0.9, 0.99),
    mode: str = "linear",
    *,
    limit: float | None = None,
    **rest: Any,
) -> None:
    """A signature like those of optimizers, which often end in `**kwargs`."""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("-2", -2),
        ("1e-4", 1e-4),
        ("True", True),
        ("false", False),
        ("None", None),
        ("inf", math.inf),
        ("(0.9, 0.99)", (0.9, 0.99)),
        ("[1, 2, 3]", (1, 2, 3)),
        ("linear", "linear"),
        ("1-sqrt", "1-sqrt"),
        ('"two words"', "two words"),
    ],
)
def test_a_value_has_the_type_it_looks_like(text: str, value: Any) -> None:
    (found,) = parse_arguments("args", f"name={text}").values()
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("between", [" ", "\n", ", ", ";", "  ,\n ", ","])
def test_pairs_may_be_parted_in_many_ways(between: str) -> None:
    text = between.join(["a=1", "b = (2, 3)", "c=x"])
    assert parse_arguments("args", text) == {"a": 1, "b": (2, 3), "c": "x"}


def test_an_empty_text_holds_no_arguments() -> None:
    assert parse_arguments("args", " \n ") == {}


@pytest.mark.parametrize("text", ["momentum", "a=1 b", "=3", "a==3", "a=(1, 2", "a=1 --b=2"])
def test_what_is_no_pair_is_refused_in_words(text: str) -> None:
    with pytest.raises(AtelierError, match="args: .* is not of the form name=value"):
        parse_arguments("args", text)


def test_a_name_is_given_once() -> None:
    with pytest.raises(AtelierError, match="args: a is given twice"):
        parse_arguments("args", "a=1 b=2 a=1")


@given(st.dictionaries(st.from_regex(r"[a-z_]\w{0,8}", fullmatch=True), st.floats(-1e9, 1e9)))
def test_numbers_come_back_as_they_were_written(values: dict[str, float]) -> None:
    text = " ".join(f"{name}={value!r}" for name, value in values.items())
    assert parse_arguments("args", text) == values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("  ", None),
        ("1e-8", 1e-8),
        ("0.9, 0.999", (0.9, 0.999)),
        ("(0.9 0.99 0.999)", (0.9, 0.99, 0.999)),
    ],
)
def test_rows_of_numbers(text: str, value: Any) -> None:
    assert parse_numbers("betas", text, "0.9, 0.999") == value


@pytest.mark.parametrize("text", ["0,9; x", "nan", "0.9 inf", "beta"])
def test_what_is_no_row_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(AtelierError, match='betas is ".*": write numbers such as 0.9, 0.999'):
        parse_numbers("betas", text, "0.9, 0.999")


def test_what_fits_passes() -> None:
    arguments = {"rate": 1, "warm": True, "betas": (0, 1), "mode": "cosine", "limit": 3}
    check_arguments("args", "Example", example, arguments, ("params",))


def test_a_typo_names_what_there_is_even_where_the_function_takes_anything() -> None:
    with pytest.raises(AtelierError) as error:
        check_arguments("args", "Example", example, {"wram": True}, ("params", "rate"))
    assert str(error.value) == (
        "args: Example has no argument wram. Did you mean warm? It takes: betas, limit, mode, warm."
    )


def test_what_has_a_widget_is_not_typed() -> None:
    with pytest.raises(AtelierError, match="args: rate cannot be set here"):
        check_arguments("args", "Example", example, {"rate": 1.0}, ("params", "rate"))


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ({"warm": "Ture"}, "warm is 'Ture'; Example wants True or False"),
        ({"warm": 1}, "warm is 1; Example wants True or False"),
        ({"rate": "high"}, "rate is 'high'; Example wants a number such as 0.1"),
        ({"rate": True}, "rate is True; Example wants a number"),
        ({"betas": 0.9}, r"betas is 0.9; Example wants 2 numbers such as \(0.9, 0.99\)"),
        ({"betas": (0.9, 0.9, 0.9)}, "Example wants 2 numbers"),
        ({"mode": 3}, "mode is 3; Example wants a word such as linear"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(argument: dict, wanted: str) -> None:
    with pytest.raises(AtelierError, match=wanted):
        check_arguments("args", "Example", example, argument, ("params",))


def test_parameters_are_those_that_can_be_given_by_name() -> None:
    names = ["params", "rate", "warm", "betas", "mode", "limit"]
    assert list(parameters(example)) == names
    assert parameters(example)["params"] is inspect.Parameter.empty


def test_a_default_of_none_tells_nothing_of_the_kind() -> None:
    assert fits(None, "x") and fits(None, (1, 2)) and fits(inspect.Parameter.empty, 3)
