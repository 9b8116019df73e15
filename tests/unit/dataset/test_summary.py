"""What a node says of a dataset."""

from __future__ import annotations

from dataclasses import replace

from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.samples import ImageDataset, Mask, Problem, Role, Sample
from lora_atelier.training.dataset.summary import left_out, summary


def _sample(name: str, *captions: str, **fields) -> Sample:
    return Sample(ImageFile(name, (64, 64)), name, captions or ("a fox",), **fields)


def test_it_counts_pictures_and_shows_a_caption() -> None:
    dataset = ImageDataset((_sample("a", "a red fox", num_repeats=3), _sample("b", "a cat")))
    assert summary(dataset) == '2 pictures, 4 an epoch, 512 px\nfirst caption: "a red fox"'


def test_it_counts_roles_and_masks_and_names_every_resolution() -> None:
    dataset = ImageDataset(
        (
            _sample("a", fit=FitOptions((768, 512)), num_repeats=2, mask=Mask.ALPHA),
            _sample("b", role=Role.VALIDATION),
            _sample("c", role=Role.REGULARISATION),
            _sample("d", role=Role.REGULARISATION),
        )
    )
    assert summary(dataset).splitlines()[0] == (
        "4 pictures, 4 an epoch, 2 for regularisation, 1 for validation, 1 with a mask, "
        "512 + 768 px"
    )


def test_it_counts_pictures_without_a_caption() -> None:
    dataset = ImageDataset((_sample("a", ""), _sample("b", "", "a fox"), _sample("c", "a cat")))
    assert summary(dataset).startswith("3 pictures, 3 an epoch, 1 without a caption, 512 px\n")


def test_a_long_caption_is_cut_and_others_are_counted() -> None:
    dataset = ImageDataset((_sample("a", "x" * 300, "b", "c"),))
    line = summary(dataset).splitlines()[1]
    assert line == f'first caption: "{"x" * 200} …" (and 2 more of this picture)'


def test_files_left_out_are_named_with_their_reasons() -> None:
    dataset = ImageDataset((_sample("a"),))
    assert left_out(dataset) == []
    one = replace(dataset, problems=(Problem("b.png", '"b.png" is empty.'),))
    assert left_out(one) == ["1 file left out: b.png", '"b.png" is empty.']
    many = replace(
        dataset, problems=tuple(Problem(f"{i}.png", f'"{i}.png" is cut.') for i in range(7))
    )
    assert left_out(many) == [
        "7 files left out: 0.png, 1.png, 2.png and 4 more",
        *(f'"{i}.png" is cut.' for i in range(5)),
        "and 2 more",
    ]
    lines = summary(many).splitlines()
    assert lines[1] == left_out(many)[0]  # where it is seen without drawing the node larger
    assert lines[3:] == left_out(many)[1:]
