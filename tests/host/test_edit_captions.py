"""Edit Captions as ComfyUI meets it: its widgets, their defaults, what it refuses and returns."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest
from comfy_api.latest import io

from lora_atelier.nodes.dataset.captions import EditCaptions
from lora_atelier.training.dataset.caption_edits import CaptionEdits
from lora_atelier.training.dataset.caption_options import CaptionOptions
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.samples import ImageDataset, Sample
from lora_atelier.training.errors import AtelierError

DATASET = ImageDataset(
    tuple(
        Sample(ImageFile(f"/{i}.png", (64, 64)), f"{i}.png", (text,))
        for i, text in enumerate(["fox, red", "a fox, asleep"])
    )
)


def _widgets() -> list[io.WidgetInput]:
    return EditCaptions.define_schema().inputs[1:]


def _defaults() -> dict[str, Any]:
    return {widget.id: widget.default for widget in _widgets()}


def _run(dataset: ImageDataset = DATASET, **values: Any) -> tuple[ImageDataset, str]:
    return EditCaptions.execute(dataset, **_defaults() | values).result


def test_the_widgets_are_the_fields_with_their_defaults() -> None:
    """Edits first, then what training does."""
    known = {f.name: f.default for kind in (CaptionEdits, CaptionOptions) for f in fields(kind)}
    assert list(_defaults().items()) == list(known.items())


def test_the_ends_of_a_widget_are_allowed_and_what_is_beyond_is_refused() -> None:
    numbers = [w for w in _widgets() if isinstance(w, (io.Int.Input, io.Float.Input))]
    assert len(numbers) == 6
    for widget in numbers:
        for value in (widget.min, widget.max):
            assert _judged(class_tokens="sks", **{widget.id: value}) is True
        for value in (widget.min - 1, widget.max + 1, float("nan")):
            assert f"{widget.id} is {value}: it must be a number" in str(
                _judged(class_tokens="sks", **{widget.id: value})
            )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"find": "(", "use_regex": True}, 'find is "(", which is no regular expression'),
        ({"replace_with": "cat"}, 'replace_with is "cat", but find is empty'),
        ({"absorb_above": 0.9}, "absorb_above is 0.9, but class_tokens is empty"),
        ({"caption_separator": ""}, "caption_separator is empty"),
    ],
)
def test_values_are_judged_before_the_queue_starts(values: dict[str, Any], message: str) -> None:
    assert str(_judged(**values)).startswith(message)


@pytest.mark.parametrize(
    ("linked", "others"),
    [
        ("class_tokens", {"find": "(", "use_regex": True}),
        ("absorb_above", {"keep_tokens": -1}),
        ("find", {"keep_tokens": -1}),
        ("use_regex", {"keep_tokens": -1}),
        ("keep_tokens", {"replace_with": "cat"}),
        ("caption_separator", {"absorb_above": 0.9}),
    ],
)
def test_a_linked_value_is_judged_later_and_the_others_now(linked: str, others: dict) -> None:
    assert _judged(**{linked: None}) is True
    assert isinstance(_judged(**others, **{linked: None}), str)


def test_by_default_the_dataset_comes_out_as_it_went_in() -> None:
    edited, preview = _run()
    assert edited == DATASET
    assert preview.startswith("0 of 2 captions changed\n")


def test_captions_change_and_the_preview_tells_it() -> None:
    edited, preview = _run(class_tokens="sks", sort_tags="alphabetical", shuffle_caption=True)
    assert [s.caption for s in edited.samples] == ["sks, fox, red", "sks, a fox, asleep"]
    assert {s.caption_options for s in edited.samples} == {CaptionOptions(shuffle_caption=True)}
    assert "2 of 2 captions changed" in preview and "tags shuffled" in preview
    assert [s.caption for s in DATASET.samples] == ["fox, red", "a fox, asleep"]


def test_a_second_node_with_default_options_keeps_those_of_the_first() -> None:
    first, _ = _run(shuffle_caption=True, keep_tokens=1)
    second, preview = _run(first, class_tokens="sks")
    assert {s.caption_options for s in second.samples} == {
        CaptionOptions(shuffle_caption=True, keep_tokens=1)
    }
    assert "tags shuffled, the first 1 kept" in preview
    third, _ = _run(second, caption_dropout_rate=0.1)
    assert {s.caption_options for s in third.samples} == {CaptionOptions(caption_dropout_rate=0.1)}


def test_an_order_that_is_no_choice_is_refused() -> None:
    with pytest.raises(AtelierError, match="^sort_tags is 'backwards': it must be one of as_wri"):
        _run(sort_tags="backwards")


def _judged(**values: Any) -> bool | str:
    names = inspect.signature(EditCaptions.validate_inputs).parameters
    return EditCaptions.validate_inputs(
        **{name: value for name, value in _defaults().items() if name in names} | values
    )
