"""Which previews are possible, and after which steps they are due."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.results.preview_spec import PreviewSpec, due, parse_prompts, parse_seeds
from lora_atelier.training.runs.batches import BatchPlan

SPEC = PreviewSpec(("a fox",))


def due_steps(spec: PreviewSpec, last: int, batches_per_epoch: int, accumulation: int) -> list[int]:
    """As the orchestration finds them: one after the other."""
    steps = [0]
    while (step := due(spec, steps[-1], batches_per_epoch, accumulation)) <= last:
        assert step > steps[-1]
        steps.append(step)
    return steps[1:]


def epoch_ends(plan: BatchPlan, every: int, accumulation: int, last: int) -> list[int]:
    """Steps that take in the last batch of every `every`-th epoch, read off the plan itself."""
    found = []
    for step in range(1, last + 1):
        for micro_step in range((step - 1) * accumulation, step * accumulation):
            epoch, following = (plan.batch(m)[0].epoch for m in (micro_step, micro_step + 1))
            if following > epoch and (epoch + 1) % every == 0 and step not in found:
                found.append(step)
    return found


def test_previews_are_due_every_so_many_steps() -> None:
    assert due_steps(PreviewSpec(("a",), every_n_steps=50), 200, 7, 1) == [50, 100, 150, 200]
    assert due(PreviewSpec(("a",), every_n_steps=50), 120, 7, 1) == 150  # a resumed run


@given(
    pictures=st.integers(1, 7),
    batch=st.integers(1, 3),
    accumulation=st.integers(1, 6),
    every=st.integers(1, 3),
)
def test_epochs_end_where_the_plan_ends_them(
    pictures: int, batch: int, accumulation: int, every: int
) -> None:
    plan = BatchPlan((1,) * pictures, (0,) * pictures, batch, seed=3)
    spec = PreviewSpec(("a",), every_n_steps=0, every_n_epochs=every)
    found = due_steps(spec, 12, plan.batches_per_epoch, accumulation)
    assert found == epoch_ends(plan, every, accumulation, 12)


def test_steps_and_epochs_may_both_be_set() -> None:
    spec = PreviewSpec(("a",), every_n_steps=4, every_n_epochs=1)
    assert due_steps(spec, 12, batches_per_epoch=6, accumulation=1) == [4, 6, 8, 12]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": ()}, "prompts is empty"),
        ({"prompts": ("  ",)}, "prompts is empty"),
        ({"seeds": ()}, "seeds is empty"),
        ({"seeds": (-1,)}, "seeds: -1"),
        ({"seeds": (2**64,)}, "seeds: 18446744073709551616"),
        ({"prompts": ("a",) * 13, "seeds": (1, 2, 3, 4, 5)}, "65 pictures each time: at most 64"),
        ({"width": 500}, "width is 500: it must be a multiple of 8. Take 496"),
        ({"height": 56}, "height is 56"),
        ({"steps": 0}, "steps is 0"),
        ({"cfg": float("nan")}, "cfg is nan"),
        ({"guidance": -1.0}, "guidance is -1"),
        ({"every_n_steps": -1}, "every_n_steps is -1"),
        ({"every_n_epochs": -1}, "every_n_epochs is -1"),
        ({"every_n_steps": 0}, "every_n_steps and every_n_epochs are both 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(AtelierError, match=message):
        PreviewSpec(**{"prompts": ("a fox",), **change})


def test_what_is_usual_and_what_is_just_possible_passes() -> None:
    assert SPEC.columns == [(0, 1)]
    most = PreviewSpec(("a",) * 16, seeds=(0, 1, 2, 2**64 - 1), width=64, height=16384, cfg=0.0)
    assert len(most.columns) == 64


def test_columns_are_prompt_by_prompt() -> None:
    assert PreviewSpec(("a", "b"), seeds=(5, 3)).columns == [(0, 5), (0, 3), (1, 5), (1, 3)]


def test_prompts_are_the_lines_that_say_something() -> None:
    assert parse_prompts(" a fox, (red:1.2) \n\n  \r\nzwei Füchse\n") == (
        "a fox, (red:1.2)",
        "zwei Füchse",
    )
    assert parse_prompts(" \n ") == ()


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("1", (1,)), ("1, 2", (1, 2)), (" 2 1\n0 ", (2, 1, 0)), ("3，4、3", (3, 4)), ("", ())],
)
def test_seeds_are_read_with_any_mark_between_them(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["one", "1.5", "-1", "1, x", "²", "1e3", "9" * 21])
def test_seeds_that_are_no_whole_numbers_are_refused(text: str) -> None:
    with pytest.raises(AtelierError, match="seeds: .* is no whole number"):
        parse_seeds(text)
