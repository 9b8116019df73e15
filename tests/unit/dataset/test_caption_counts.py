"""What captions have in common."""

from __future__ import annotations

from dataclasses import replace

from lora_atelier.training.dataset.caption_counts import CaptionCounts, count_captions
from lora_atelier.training.dataset.caption_options import CaptionOptions
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.samples import Role, Sample


def samples(*captions: str | tuple[str, ...], **fields) -> list[Sample]:
    texts = [(c,) if isinstance(c, str) else c for c in captions]
    return [
        Sample(ImageFile(f"{i}", (64, 64)), f"{i}", text, **fields) for i, text in enumerate(texts)
    ]


def counted(*captions: str | tuple[str, ...], **fields) -> CaptionCounts:
    return count_captions(samples(*captions, **fields))


def test_tags_are_counted_once_a_picture_the_most_frequent_first() -> None:
    found = counted("fox, red fur, fox", "cat,  Red   Fur", "Fox")
    assert list(found.counts.items()) == [("fox", 2), ("red fur", 2), ("cat", 1)]
    assert not found.prose
    assert found.once == ["cat"]


def test_tags_that_all_captioned_pictures_have_are_named() -> None:
    assert counted("sks, fox", "sks, cat", "").in_all == ["sks"]
    assert counted("sks, fox").in_all == []  # of one picture everything would be in all


def test_the_marks_of_edit_captions_are_no_tags() -> None:
    options = CaptionOptions(keep_tokens_separator="|||", caption_separator=";")
    found = counted("sks ||| fox; red, furry", caption_options=options)
    assert set(found.counts) == {"sks", "fox", "red, furry"}


def test_alternative_captions_count_as_one_picture() -> None:
    found = counted(("fox, red", "fox, tail"), ("cat", ""))
    assert found.counts["fox"] == 1
    assert found.captioned == 2
    assert found.partly_empty == (1,)
    assert found.empty == ()


def test_pictures_without_words_are_found_whatever_their_role() -> None:
    with_and_without = samples("fox", "", "  ", ("", ""))
    with_and_without[2] = replace(with_and_without[2], role=Role.VALIDATION)
    found = count_captions(with_and_without)
    assert found.empty == (1, 2, 3)
    assert found.captioned == 1


def test_only_training_pictures_are_counted() -> None:
    mixed = samples("fox", "cat", "dog")
    mixed[1] = replace(mixed[1], role=Role.REGULARISATION)
    mixed[2] = replace(mixed[2], role=Role.VALIDATION)
    assert dict(count_captions(mixed).counts) == {"fox": 1}


def test_captions_of_several_pictures_are_named_with_their_number() -> None:
    found = counted("a fox", "a cat", "a fox ", "a cat", "a dog", "a fox")
    assert found.shared == (("a fox", 3), ("a cat", 2))


def test_sentences_are_told_from_tags_and_their_words_are_counted() -> None:
    found = counted(
        "A red fox is standing in the snow, with its tail up.",
        "The fox's cub sits on a stone in the snow.",
    )
    assert found.prose
    assert found.counts["snow"] == 2
    assert found.counts["fox's"] == 1
    assert not {"a", "the", "is", "in", "its"} & set(found.counts)
    assert not counted("fox", "cat", "a red panda").prose
    assert not counted("1girl, solo, long hair, looking at viewer, standing").prose


def test_a_tag_that_nearly_all_have_is_missing_where_it_is_missing() -> None:
    found = counted(*["sks, fox"] * 3, "cat", "sks, dog")
    assert found.forgotten == (("sks", (3,)),)
    assert counted(*["sks, fox"] * 3, "cat", "dog").forgotten == ()  # 3 of 5 is not nearly all
    assert counted(*["sks, fox"] * 5).forgotten == ()
    assert counted("sks", "sks", "sks", "cat").forgotten == ()  # too few to say


def test_nothing_is_counted_of_nothing() -> None:
    found = counted("", "")
    assert (found.captioned, found.counts, found.in_all, found.once) == (0, {}, [], [])
    assert not found.prose
