"""A dataset of pictures that the graph made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.from_images import captions_for, dataset_from_images
from lora_atelier.training.dataset.samples import Role
from lora_atelier.training.errors import AtelierError


def batch(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_a_list_of_batches_gives_every_picture_at_its_own_size() -> None:
    images = [batch(2, 24, 32, 3), batch(1, 8, 16, 4, seed=1)]
    dataset = dataset_from_images(images, ["a", "b", "c"], name="made")
    assert [s.name for s in dataset.samples] == [f"made_000{i}.png" for i in (1, 2, 3)]
    assert [s.image.size for s in dataset.samples] == [(32, 24), (32, 24), (16, 8)]
    assert [s.captions for s in dataset.samples] == [("a",), ("b",), ("c",)]
    members = [*images[0], *images[1]]
    for sample, pixels in zip(dataset.samples, members, strict=True):
        assert np.array_equal(sample.image.pixels, (pixels * 255).round().to(torch.uint8).numpy())
    assert dataset.name == "made"


def test_values_are_rounded_and_clamped() -> None:
    values = torch.tensor([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.7])
    (sample,) = dataset_from_images([values.view(1, 1, 2, 3)], ["a"]).samples
    assert sample.image.pixels.flatten().tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_are_taken(dtype: torch.dtype) -> None:
    (sample,) = dataset_from_images([torch.ones(1, 4, 4, 3, dtype=dtype)], ["a"]).samples
    assert (sample.image.pixels == 255).all()


def test_all_that_was_asked_for_is_in_the_samples() -> None:
    (sample,) = dataset_from_images(
        [batch(1, 8, 8, 3)],
        ["a fox"],
        resolution=256,
        num_repeats=3,
        class_tokens="sks",
        source="made here",
        license="CC0",
        role=Role.REGULARISATION,
        loss_weight=0.5,
    ).samples
    assert (sample.captions, sample.class_tokens) == (("sks, a fox",), "sks")
    assert (sample.num_repeats, sample.role, sample.loss_weight) == (3, Role.REGULARISATION, 0.5)
    assert (sample.source, sample.license) == ("made here", "CC0")
    assert sample.fit == FitOptions((256,)) and not sample.may_be_skipped


def test_the_wires_tensors_stay_as_they_are_and_inference_tensors_are_taken() -> None:
    with torch.inference_mode():
        image, mask = batch(1, 8, 8, 3) * 2, batch(1, 4, 4)
        before = image.clone(), mask.clone()
        dataset = dataset_from_images([image], ["a"], [mask])
        assert torch.equal(image, before[0]) and torch.equal(mask, before[1])
    assert not np.shares_memory(dataset.samples[0].image.pixels, image.numpy())


# Captions


@pytest.mark.parametrize(
    ("pictures", "texts", "expected"),
    [
        (3, ["a fox"], ["a fox"] * 3),
        (3, ["a fox\n"], ["a fox"] * 3),
        (2, ["a fox", "a bear"], ["a fox", "a bear"]),
        (2, ["a fox\na bear"], ["a fox", "a bear"]),
        (2, ["a fox\r\na bear\n"], ["a fox", "a bear"]),
        (2, ["\n\na fox\na bear\n\n"], ["a fox", "a bear"]),
        (2, ["a fox\n"], ["a fox", "a fox"]),
        (3, ["a fox\n\na bear"], ["a fox", "", "a bear"]),
        (1, ["a fox.\n\nIt sits."], ["a fox. It sits."]),
        (2, ["a fox.\nIt sits.", " a bear "], ["a fox. It sits.", "a bear"]),
        (2, [""], ["", ""]),
    ],
)
def test_one_caption_for_all_or_one_each(
    pictures: int, texts: list[str], expected: list[str]
) -> None:
    assert captions_for(pictures, texts) == expected


@pytest.mark.parametrize(
    ("pictures", "texts", "count"),
    [(3, ["a", "b"], 2), (1, ["a", "b"], 2), (3, ["a\nb"], 2), (2, ["a\nb\nc"], 3), (2, [], 0)],
)
def test_other_counts_of_captions_are_refused_with_both_numbers(
    pictures: int, texts: list[str], count: int
) -> None:
    with pytest.raises(AtelierError, match=rf"captions: there are {count} for {pictures} pictures"):
        captions_for(pictures, texts)


def test_the_trigger_word_stands_in_for_missing_captions() -> None:
    dataset = dataset_from_images([batch(3, 8, 8, 3)], ["a\n\nb"], class_tokens="sks")
    assert [s.caption for s in dataset.samples] == ["sks, a", "sks", "sks, b"]
    assert dataset_from_images([batch(1, 8, 8, 3)], [""]).samples[0].captions == ("",)


# Masks


def test_masks_go_to_their_pictures_in_order() -> None:
    images, masks = [batch(2, 8, 8, 3), batch(1, 4, 8, 3)], [batch(1, 8, 8), batch(1, 8, 8, seed=1)]
    masks.append(batch(1, 4, 8, seed=2))
    dataset = dataset_from_images(images, ["a"], masks)
    for sample, mask in zip(dataset.samples, masks, strict=True):
        expected = (mask[0] * 255).round().to(torch.uint8).numpy()
        assert np.array_equal(sample.mask.pixels, expected)


def test_one_mask_serves_all_pictures() -> None:
    dataset = dataset_from_images([batch(3, 8, 8, 3)], ["a"], [batch(1, 8, 8)])
    assert len({s.mask.digest for s in dataset.samples}) == 1


def test_a_mask_of_another_size_is_scaled_to_its_picture() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[:, :, 4:] = 1
    (sample,) = dataset_from_images([batch(1, 64, 64, 3)], ["a"], [mask]).samples
    assert sample.mask.size == (64, 64)
    assert (sample.mask.pixels[:, :24] == 0).all() and (sample.mask.pixels[:, 40:] == 255).all()
    (odd,) = dataset_from_images([batch(1, 33, 65, 3)], ["a"], [torch.ones(1, 17, 33)]).samples
    assert odd.mask.size == (65, 33)


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        ([torch.ones(2, 8, 8)], "there are 2 for 3 pictures"),
        ([torch.ones(1, 8, 16)], r"mask 1 is 16×8 px, its picture 8×8 px"),
        ([torch.zeros(1, 64, 64)], "mask 1 is black all over.*Invert Mask"),
        ([torch.full((1, 8, 8), torch.nan)], "mask 1 .* no numbers"),
        ([torch.ones(1, 8, 8, 3)], r"mask 1 has the shape \(8, 8, 3\)"),
    ],
)
def test_masks_that_cannot_be_meant_are_refused(masks: list[Tensor], reason: str) -> None:
    with pytest.raises(AtelierError, match=f"^masks: .*{reason}"):
        dataset_from_images([batch(3, 8, 8, 3)], ["a"], masks)


# Pictures that cannot be used


def _holed(value: float) -> Tensor:
    image = batch(2, 8, 8, 3)
    image[1, 3, 3, 1] = value
    return image


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ([_holed(torch.nan)], "picture 2 holds values that are no numbers .*fp32-vae"),
        ([_holed(torch.inf)], "picture 2 holds values that are no numbers"),
        ([batch(1, 8, 8, 1)], r"picture 1 has the shape \(8, 8, 1\)"),
        ([batch(8, 8, 3)], r"picture 1 has the shape \(8, 3\)"),
        ([batch(1, 0, 8, 3)], r"picture 1 has the shape \(0, 8, 3\)"),
        ([batch(0, 8, 8, 3)], "the batch is empty"),
        ([], "the batch is empty"),
    ],
)
def test_pictures_that_cannot_be_used_are_refused(images: list[Tensor], reason: str) -> None:
    with pytest.raises(AtelierError, match=f"^images: .*{reason}"):
        dataset_from_images(images, ["a"])


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"resolution": 500}, "resolution is 500"),
        ({"num_repeats": 0}, "num_repeats is 0"),
        ({"loss_weight": -1.0}, "loss_weight is -1"),
    ],
)
def test_numbers_out_of_range_are_refused(choices: dict, reason: str) -> None:
    with pytest.raises(AtelierError, match=reason):
        dataset_from_images([batch(1, 8, 8, 3)], ["a"], **choices)


def test_ticks_once_a_picture() -> None:
    ticks: list[None] = []
    dataset_from_images([batch(3, 8, 8, 3)], ["a"], tick=lambda: ticks.append(None))
    assert len(ticks) == 3
