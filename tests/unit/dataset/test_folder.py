"""A folder of pictures and captions as a dataset."""

from __future__ import annotations

import gc
import json
import os
import random
import re
from pathlib import Path

import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngImageFile

from lora_atelier.training.dataset.fit import FitOptions
from lora_atelier.training.dataset.folder import (
    CaptionLines,
    CaptionSource,
    FolderOptions,
    MaskSource,
    UnusableFiles,
    folder_fingerprint,
    kohya_folder,
    load_folder,
)
from lora_atelier.training.dataset.samples import ImageDataset, Mask, Role, Sample
from lora_atelier.training.errors import AtelierError

STRICT = FolderOptions(unusable_files=UnusableFiles.STOP)


def _picture(path: Path, caption: str | None = "a fox") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


class Listed(list):
    """What ``os.scandir`` gives."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


def _load(folder: Path, **options) -> ImageDataset:
    return load_folder(folder, FolderOptions(**options))


def _captions(folder: Path, **options) -> list[str]:
    return [sample.caption for sample in _load(folder, **options).samples]


def _names(folder: Path, **options) -> list[str]:
    return [sample.name for sample in _load(folder, **options).samples]


def _sample(folder: Path, name: str, **options) -> Sample:
    return next(s for s in _load(folder, **options).samples if s.name == name)


def _problems(folder: Path, **options) -> dict[str, str]:
    return {p.name: p.reason for p in _load(folder, **options).problems}


@pytest.mark.parametrize("extension", [".txt", ".caption"])
def test_a_caption_lies_beside_its_picture(tmp_path: Path, extension: str) -> None:
    path = _picture(tmp_path / "a.png", None)
    path.with_suffix(extension).write_text("ein Füchslein, 狐狸", encoding="utf-8")
    assert _captions(tmp_path) == ["ein Füchslein, 狐狸"]


def test_of_captions_that_differ_in_case_alone_the_lower_one_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _picture(tmp_path / "a.png", "lower")
    if path.with_suffix(".TXT").exists():
        pytest.skip("this disk does not tell them apart")
    path.with_suffix(".TXT").write_text("upper")
    scandir = os.scandir
    for backwards in (False, True):

        def ordered(path: str, backwards: bool = backwards) -> Listed:
            return Listed(sorted(scandir(path), key=lambda e: e.name, reverse=backwards))

        monkeypatch.setattr(os, "scandir", ordered)
        assert _captions(tmp_path) == ["lower"]


def test_every_picture_has_its_own_caption(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        _picture(tmp_path / f"{name}.png", f"letter {name}")
    dataset = load_folder(tmp_path)
    assert [(s.name, s.caption) for s in dataset.samples] == [
        ("a.png", "letter a"),
        ("b.png", "letter b"),
        ("c.png", "letter c"),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be with mark"])
def test_a_caption_is_read_in_the_encoding_it_names(tmp_path: Path, encoding: str) -> None:
    path = _picture(tmp_path / "a.png", None)
    text = "ein Füchslein, 狐狸 🦊"
    if encoding.endswith("mark"):
        content = b"\xfe\xff" + text.encode("utf-16-be")
    else:
        content = text.encode(encoding)
    path.with_suffix(".txt").write_bytes(content)
    assert _captions(tmp_path) == [text]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "gb18030", "latin-1"])
def test_a_caption_in_another_encoding_is_named(tmp_path: Path, encoding: str) -> None:
    _picture(tmp_path / "whole.png")
    path = _picture(tmp_path / "a.png", None)
    text = {"gb18030": "狐狸", "latin-1": "Füchse"}.get(encoding, "a fox")
    path.with_suffix(".txt").write_bytes(text.encode(encoding))
    assert _problems(tmp_path) == {"a.png": '"a.txt" is not UTF-8 text. Save it as UTF-8.'}
    assert _names(tmp_path) == ["whole.png"]
    with pytest.raises(AtelierError, match='a.txt" is not UTF-8 text. Save it as UTF-8'):
        load_folder(tmp_path, STRICT)


@pytest.mark.parametrize(
    "text", ["a fox\nsecond line", "a fox\r\nsecond line", "\n  a fox  \n\n second line\n"]
)
def test_several_lines_are_alternatives_or_all_but_the_first_are_passed_over(
    tmp_path: Path, text: str
) -> None:
    path = _picture(tmp_path / "a.png", None)
    path.with_suffix(".txt").write_bytes(text.encode())
    assert _sample(tmp_path, "a.png").captions == ("a fox", "second line")
    first = CaptionLines.FIRST
    assert _sample(tmp_path, "a.png", caption_lines=first).captions == ("a fox",)
    both = ("sks, a fox", "sks, second line")
    assert _sample(tmp_path, "a.png", class_tokens="sks").captions == both


@pytest.mark.parametrize(
    ("trigger", "caption", "expected"),
    [
        ("sks", "a fox, snow", "sks, a fox, snow"),
        ("sks", "sks, a fox", "sks, a fox"),
        ("sks", "a fox, sks, snow", "sks, a fox, snow"),
        ("sks", "sksy, a fox", "sks, sksy, a fox"),
        ("sks", "a photo of sks fox", "sks, a photo of sks fox"),
        ("glossy, 3d", "glossy, 3d, a fox", "glossy, 3d, a fox"),
        ("glossy, 3d", "a fox, 3d", "glossy, 3d, a fox"),
        (" sks, ", "a fox", "sks, a fox"),
        ("sks", "", "sks"),
        ("sks", "sks", "sks"),
        ("", "a fox,snow", "a fox,snow"),
    ],
)
def test_the_trigger_word_comes_first_and_once(
    tmp_path: Path, trigger: str, caption: str, expected: str
) -> None:
    _picture(tmp_path / "a.png", caption)
    assert _captions(tmp_path, class_tokens=trigger) == [expected]


def test_a_trigger_word_stands_in_for_missing_captions(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png", None)
    assert _captions(tmp_path, class_tokens="sks fox") == ["sks fox"]


def test_a_picture_knows_the_trigger_word_that_it_was_given_or_came_with(tmp_path: Path) -> None:
    folder = tmp_path / "2_sks dog"
    for name in ("a.png", "b.png"):
        _picture(folder / name, None)
    _picture(folder / "c.png", "a dog asleep")
    _metadata(folder, {"file_name": "b.png", "text": "rex, a dog", "class_tokens": "rex"})
    assert [s.class_tokens for s in _load(folder).samples] == ["sks dog", "rex", ""]
    given = _load(folder, class_tokens=" toby ").samples
    assert [s.class_tokens for s in given] == ["toby"] * 3
    assert given[1].captions == ("toby, rex, a dog",)


def test_without_caption_file_a_picture_may_be_called_by_its_name(tmp_path: Path) -> None:
    _picture(tmp_path / "red_fox.png", None)
    _picture(tmp_path / "empty.png", "  \n")
    _picture(tmp_path / "wolf.png", "a wolf")
    assert _captions(tmp_path) == ["", "", "a wolf"]
    named = {"captions": CaptionSource.FILES_OR_NAME}
    assert _captions(tmp_path, **named) == ["empty", "red fox", "a wolf"]
    assert _captions(tmp_path, **named, class_tokens="sks")[1] == "sks, red fox"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("10_red fox/a.png", (10, "red fox")),
        ("10_red fox/sub/a.png", (10, "red fox")),
        ("10_fox/3_cat/a.png", (3, "cat")),
        ("10_/a.png", (10, "")),
        ("fox/a.png", (1, "")),
        ("10_a.png", (1, "")),
        ("0_fox/a.png", (1, "")),
        ("2023_summer/a.png", (1, "")),
        ("x10_fox/a.png", (1, "")),
        ("1.5_fox/a.png", (1, "")),
    ],
)
def test_kohya_folders_give_repeats_and_a_name(name: str, expected: tuple[int, str]) -> None:
    assert kohya_folder(name) == expected


def test_a_kohya_folder_may_itself_be_chosen(tmp_path: Path) -> None:
    (
        _picture(tmp_path / "10_red fox" / "a.png", None),
        _picture(tmp_path / "10_red fox/2_cub/b.png", None),
    )
    samples = _load(tmp_path / "10_red fox").samples
    assert [(s.num_repeats, s.caption) for s in samples] == [(2, "cub"), (10, "red fox")]


def test_a_mask_of_another_shape_leaves_its_picture_out(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png"), _picture(tmp_path / "b.png")
    Image.new("L", (8, 4)).save(tmp_path / "a.mask.png")
    Image.new("L", (16, 16)).save(tmp_path / "b.mask.png")
    assert _names(tmp_path, mask=MaskSource.FILES) == ["b.png"]
    told = _problems(tmp_path, mask=MaskSource.FILES)["a.png"]
    assert told.startswith('"a.mask.png" is 8×4 px, its picture "a.png" 8×8 px.')


def test_kohya_and_plain_folders_lie_side_by_side(tmp_path: Path) -> None:
    for name in ("10_red fox/a.png", "10_red fox/b.png", "plain/c.png", "d.png"):
        _picture(tmp_path / name, None if "a.png" in name else "written")
    samples = _load(tmp_path, num_repeats=2).samples
    assert [(s.name, s.num_repeats, s.caption) for s in samples] == [
        ("10_red fox/a.png", 20, "red fox"),
        ("10_red fox/b.png", 20, "written"),
        ("d.png", 2, "written"),
        ("plain/c.png", 2, "written"),
    ]


def _metadata(folder: Path, *lines: dict | str) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


def test_a_metadata_file_describes_pictures_as_hugging_face_lays_it_out(tmp_path: Path) -> None:
    for name in ("a.png", "sub/b.png", "sub/c.png"):
        _picture(tmp_path / name, None)
    _metadata(
        tmp_path,
        {"file_name": "a.png", "text": "a fox", "source": "zoo", "license": "CC0"},
        {"file_name": "sub/b.png", "text": ["one", "two"], "num_repeats": 3, "loss_weight": 0.5},
    )
    _metadata(tmp_path / "sub", {"file_name": "c.png", "role": "regularisation", "other": [1]})
    a, b, c = _load(tmp_path, num_repeats=2, source="net", loss_weight=2.0).samples
    assert (a.captions, a.source, a.license, a.num_repeats) == (("a fox",), "zoo", "CC0", 2)
    assert (b.captions, b.num_repeats, b.loss_weight) == (("one", "two"), 3, 0.5)
    assert (b.source, c.role, c.captions) == ("net", Role.REGULARISATION, ("",))


def test_a_caption_file_comes_before_the_metadata(tmp_path: Path) -> None:
    """People edit the text file; the metadata may be left from an export."""
    _picture(tmp_path / "a.png", "edited by hand")
    _metadata(tmp_path, {"file_name": "a.png", "text": "as exported"})
    assert _captions(tmp_path) == ["edited by hand"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{no json", "line 2 is no JSON"),
        ("[1]", "line 2 is no JSON object"),
        ({"text": "x"}, "line 2 has no file_name"),
        ({"file_name": "../b.png"}, 'line 2: "../b.png" leads out of the folder'),
        ({"file_name": "/etc/passwd"}, "leads out of the folder"),
        ({"file_name": "C:\\b.png"}, "leads out of the folder"),
        ("[" * 100_000, "line 2 is no JSON"),
        ({"file_name": "gone.png"}, "tells of pictures that are not there: gone.png"),
    ],
)
def test_a_line_of_metadata_that_fits_no_picture_is_named(
    tmp_path: Path, line: dict | str, told: str
) -> None:
    _picture(tmp_path / "a.png", None)
    _metadata(tmp_path, "", line, {"file_name": "a.png", "text": "a fox"})
    assert _captions(tmp_path) == ["a fox"]
    (problem,) = _problems(tmp_path).items()
    assert problem[0] == "metadata.jsonl" and re.search(told, problem[1])
    with pytest.raises(AtelierError, match=told):
        load_folder(tmp_path, STRICT)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"mask": "../../m.png"}, '"../../m.png" leads out of the folder'),
        ({"num_repeats": 0}, "num_repeats is 0"),
        ({"num_repeats": True}, "num_repeats is True"),
        ({"num_repeats": 1.5}, "num_repeats is 1.5: it must be a whole number"),
        ({"num_repeats": 10_001}, "num_repeats is 10001"),
        ({"loss_weight": -1}, "loss_weight is -1"),
        ({"loss_weight": float("inf")}, "loss_weight is inf"),
        ({"loss_weight": float("nan")}, "loss_weight is nan"),
        ({"role": "test"}, "role is 'test': .*train, regularisation"),
        ({"text": 5}, "text is 5"),
        ({"text": ["a", 5]}, "text is .'a', 5."),
        ({"source": 5}, "source is 5: it must be a text"),
    ],
)
def test_a_picture_of_which_the_metadata_says_something_impossible_is_left_out(
    tmp_path: Path, fields: dict, told: str
) -> None:
    for name in "ab":
        _picture(tmp_path / f"{name}.png", None)
    _metadata(tmp_path, {"file_name": "a.png", **fields}, {"file_name": "b.png", "text": "a fox"})
    assert [(s.name, s.caption) for s in _load(tmp_path).samples] == [("b.png", "a fox")]
    (problem,) = _problems(tmp_path).items()
    assert problem[0] == "a.png" and re.search(f'"metadata.jsonl" line 1: {told}', problem[1])
    with pytest.raises(AtelierError, match=told):
        load_folder(tmp_path, STRICT)


def test_a_line_of_metadata_ends_where_json_says(tmp_path: Path) -> None:
    """Python takes U+2028 and others for the end of a line as well."""
    _picture(tmp_path / "a.png", None)
    line = json.dumps({"file_name": "a.png", "source": "x\u2028y\x85z"}, ensure_ascii=False)
    _metadata(tmp_path, line + "\r", "")
    assert _sample(tmp_path, "a.png").source == "x\u2028y\x85z"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_metadata_may_begin_with_a_mark(tmp_path: Path, encoding: str) -> None:
    _picture(tmp_path / "a.png", None)
    text = json.dumps({"file_name": "a.png", "text": "Füchslein"}, ensure_ascii=False)
    (tmp_path / "Metadata.JSONL").write_text(text, encoding=encoding)
    assert _captions(tmp_path) == ["Füchslein"]


def test_metadata_in_another_encoding_is_named(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "F\xfcchse.png"}')
    assert "is not UTF-8 text" in _problems(tmp_path)["metadata.jsonl"]


def test_the_role_on_the_node_comes_before_that_in_the_metadata(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    _metadata(tmp_path, {"file_name": "a.png", "role": "validation"})
    assert _sample(tmp_path, "a.png").role is Role.VALIDATION
    assert _sample(tmp_path, "a.png", role=Role.REGULARISATION).role is Role.REGULARISATION


def test_masks_lie_beside_the_pictures_and_are_no_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        _picture(tmp_path / name)
    for name in ("a.mask.png", "b.MASK.webp"):
        _picture(tmp_path / name, None)
    assert _names(tmp_path) == ["a.png", "b.jpg"]
    assert [s.mask for s in _load(tmp_path).samples] == [None, None]
    assert {s.mask for s in _load(tmp_path, mask=MaskSource.ALPHA).samples} == {Mask.ALPHA}
    masks = [Path(s.mask.path).name for s in _load(tmp_path, mask=MaskSource.FILES).samples]
    assert masks == ["a.mask.png", "b.MASK.webp"]


def test_masks_may_lie_in_a_folder_of_their_own(tmp_path: Path) -> None:
    """Inside the dataset's folder its pictures are not taken for samples."""
    for name in ("a.png", "sub/b.png", "c.png"):
        _picture(tmp_path / "set" / name)
    for name in ("a.jpg", "sub/b.png"):
        _picture(tmp_path / "set" / "masks" / name, None)
        _picture(tmp_path / "elsewhere" / name, None)
    for folder in (tmp_path / "set" / "masks", tmp_path / "elsewhere"):
        options = {"mask": MaskSource.FILES, "mask_folder": folder}
        dataset = load_folder(tmp_path / "set", FolderOptions(**options), within=[tmp_path])
        found = {
            s.name: s.mask and Path(s.mask.path).relative_to(folder).as_posix()
            for s in dataset.samples
        }
        if folder.name == "elsewhere":
            found = {n: m for n, m in found.items() if not n.startswith("masks")}
        assert found == {"a.png": "a.jpg", "c.png": None, "sub/b.png": "sub/b.png"}


def test_a_mask_named_in_the_metadata_is_used_and_no_picture(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png"), _picture(tmp_path / "cover.png", None)
    _metadata(tmp_path, {"file_name": "a.png", "mask": "cover.png"})
    (sample,) = _load(tmp_path, mask=MaskSource.FILES).samples
    assert Path(sample.mask.path).name == "cover.png"


def test_a_mask_in_the_metadata_that_is_not_there_is_named(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png"), _picture(tmp_path / "b.png")
    _metadata(tmp_path, {"file_name": "a.png", "mask": "cover.png"})
    assert _problems(tmp_path) == {}
    assert "cover.png" in _problems(tmp_path, mask=MaskSource.FILES)["a.png"]


def test_the_metadata_may_say_that_the_mask_is_in_the_picture(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png"), _picture(tmp_path / "a.mask.png", None)
    _metadata(tmp_path, {"file_name": "a.png", "mask": "alpha"})
    assert _sample(tmp_path, "a.png").mask is None
    assert _sample(tmp_path, "a.png", mask=MaskSource.FILES).mask is Mask.ALPHA


def test_of_two_masks_that_of_the_same_extension_is_taken(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.png"):
        _picture(tmp_path / "set" / name)
        _picture(tmp_path / "masks" / name.replace("b.png", "b.webp"), None)
    options = FolderOptions(mask=MaskSource.FILES, mask_folder=tmp_path / "masks")
    samples = load_folder(tmp_path / "set", options, within=[tmp_path]).samples
    assert [Path(s.mask.path).name for s in samples] == ["a.jpg", "a.png", "b.webp"]


def test_masks_in_the_folder_are_no_pictures_even_when_they_are_not_used(tmp_path: Path) -> None:
    _picture(tmp_path / "set" / "a.png"), _picture(tmp_path / "set" / "masks" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for folder in (tmp_path / "set", tmp_path / "link"):
        assert _names(tmp_path / "set", mask_folder=folder / "masks") == ["a.png"]
    with pytest.raises(AtelierError, match="mask_folder is the folder of the pictures itself"):
        _load(tmp_path / "set", mask_folder=tmp_path / "link")


def test_masks_lie_in_folders_that_may_be_read(tmp_path: Path) -> None:
    _picture(tmp_path / "set" / "a.png"), _picture(tmp_path / "masks" / "a.png", None)
    _picture(tmp_path / "private" / "b.png", None)
    (tmp_path / "masks" / "b.png").symlink_to(tmp_path / "private" / "b.png")
    options = FolderOptions(mask=MaskSource.FILES, mask_folder=tmp_path / "masks")
    roots = [tmp_path / "set", tmp_path / "masks"]
    (problem,) = load_folder(tmp_path / "set", options, within=roots).problems
    assert problem.name == "b.png" and "leads out" in problem.reason
    with pytest.raises(AtelierError, match="masks.* lies outside the folders this pack may read"):
        load_folder(tmp_path / "set", options, within=roots[:1])
    with pytest.raises(AtelierError, match="mask_folder: there is no folder"):
        load_folder(
            tmp_path / "set",
            FolderOptions(mask=MaskSource.FILES, mask_folder=tmp_path / "none"),
        )


def test_a_broken_mask_leaves_its_picture_out(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png"), _picture(tmp_path / "b.png")
    (tmp_path / "a.mask.png").write_text("no picture")
    assert _names(tmp_path, mask=MaskSource.FILES) == ["b.png"]
    assert "a.mask.png" in _problems(tmp_path, mask=MaskSource.FILES)["a.png"]


def test_a_link_to_a_caption_or_metadata_elsewhere_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("password")
    for name in ("a.png", "b.png"):
        _picture(tmp_path / "set" / name, None)
    (tmp_path / "set" / "a.txt").symlink_to(secret)
    (tmp_path / "set" / "metadata.jsonl").symlink_to(secret)
    dataset = _load(tmp_path / "set")
    assert [s.captions for s in dataset.samples] == [("",), ("",)]
    assert [p.name for p in dataset.problems] == ["a.txt", "metadata.jsonl"]
    assert all("leads out" in problem.reason for problem in dataset.problems)


def test_a_large_text_is_no_caption(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png"), _picture(tmp_path / "b.png")
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(3_000_000_000)  # no disk space is taken, but the memory would be
    assert _problems(tmp_path) == {
        "a.png": '"a.txt" has 3000 MB, too much for captions. Remove it.'
    }


def test_no_pixels_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        _picture(tmp_path / f"{i}.png"), _picture(tmp_path / f"{i}.mask.png", None)

    def decoded(*_):
        pytest.fail("pixels were decoded")

    for kind in (Image.Image, ImageFile.ImageFile, PngImageFile):
        monkeypatch.setattr(kind, "load", decoded)
    assert len(_load(tmp_path, mask=MaskSource.FILES).samples) == 4


def test_the_work_may_be_ended_at_any_picture(tmp_path: Path) -> None:
    for i in range(4):
        _picture(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_text("no picture")
    ticks = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_folder(tmp_path, tick=tick)
    assert gc.isenabled()
    ticks = [1] * 3
    load_folder(tmp_path, tick=tick)
    assert len(ticks) == 7


def test_a_folder_may_be_named_from_where_one_is(tmp_path: Path, monkeypatch) -> None:
    _picture(tmp_path / "foxes" / "a.png")
    monkeypatch.chdir(tmp_path / "foxes")
    dataset = load_folder(Path("."))
    assert dataset.name == "foxes"
    assert dataset.samples[0].image.path == str(tmp_path / "foxes" / "a.png")


def test_a_part_is_set_aside_for_validation(tmp_path: Path) -> None:
    for i in range(40):
        _picture(tmp_path / f"{i}.png")
    roles = [s.role for s in _load(tmp_path, validation_fraction=0.25).samples]
    assert 4 <= roles.count(Role.VALIDATION) <= 18
    assert {s.role for s in _load(tmp_path, role=Role.REGULARISATION).samples} == {
        Role.REGULARISATION
    }


def test_names_are_sorted_as_people_count(tmp_path: Path) -> None:
    names = ["img1.png", "img2.png", "img10.png", "Img11.png", "sub/img3.png"]
    for name in random.Random(0).sample(names, len(names)):
        _picture(tmp_path / name)
    assert _names(tmp_path) == names


def test_names_that_count_the_same_have_an_order_too(tmp_path: Path, monkeypatch) -> None:
    """Else the order, and with it the LoRA, would depend on the disk."""
    names = ["img01.png", "img1.png"]
    for name in names:
        _picture(tmp_path / name)
    orders, scandir = set(), os.scandir

    orders.add(tuple(_names(tmp_path)))
    monkeypatch.setattr(os, "scandir", lambda path: Listed(list(scandir(path))[::-1]))
    orders.add(tuple(_names(tmp_path)))
    assert orders == {tuple(names)}


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    for name in ("a.png", ".b.png", ".cache/c.png", "sub/.d/e.png", "sub/f.png"):
        _picture(tmp_path / name)
    assert _names(tmp_path) == ["a.png", "sub/f.png"]


def test_a_dataset_may_itself_lie_in_a_hidden_folder(tmp_path: Path) -> None:
    _picture(tmp_path / ".data" / "a.png")
    assert _names(tmp_path / ".data") == ["a.png"]


def test_extensions_may_be_upper_case_and_other_files_are_passed_over(tmp_path: Path) -> None:
    for name in ("A.PNG", "b.Jpeg"):
        _picture(tmp_path / name)
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    assert _names(tmp_path) == ["A.PNG", "b.Jpeg"]


def test_every_broken_picture_is_named_and_the_others_are_there(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    (tmp_path / "c.png").write_bytes(b"")
    assert _names(tmp_path) == ["a.png"]
    told = _problems(tmp_path)
    assert list(told) == ["b.png", "c.png"]
    assert "is not an image" in told["b.png"] and "is empty" in told["c.png"]
    assert not any(str(tmp_path) in reason for reason in told.values())
    with pytest.raises(AtelierError, match="^2 files .*b.png.*c.png.*unusable_files to skip"):
        load_folder(tmp_path, STRICT)
    assert [s.may_be_skipped for s in _load(tmp_path).samples] == [True]


def test_of_many_broken_files_three_are_told_in_full(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(AtelierError) as alone:
        load_folder(tmp_path, STRICT)
    assert str(alone.value) == (
        '1 file of the folder cannot be used: "b.png" is empty (0 bytes). Remove it or copy it '
        "again. Mend or remove them, or set unusable_files to skip."
    )
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(AtelierError, match=r'^5 files .*"0.png".*"1.png".*"2.png".* And 2 more\.'):
        load_folder(tmp_path, STRICT)


def test_when_every_picture_is_broken_the_first_reason_is_told(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(AtelierError, match='holds no pictures. "b.png" is not an image'):
        load_folder(tmp_path)


def test_a_picture_too_narrow_for_its_steps_is_left_out_and_named(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    Image.new("RGB", (100, 100)).save(tmp_path / "b.png")
    fit = FitOptions((512,), bucket_no_upscale=True)
    assert _names(tmp_path, fit=fit) == ["b.png"]
    assert "too narrow" in _problems(tmp_path, fit=fit)["a.png"]


def test_a_missing_folder_and_an_empty_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(AtelierError, match="there is no folder .*nowhere"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(AtelierError, match="holds no pictures .*.png"):
        load_folder(tmp_path)


def test_what_was_asked_for_is_in_the_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "foxes"
    _picture(folder / "a.png"), _picture(folder / "b.png")
    fit = FitOptions((256,))
    dataset = _load(folder, fit=fit, num_repeats=3, source="own photos", license="CC0")
    assert dataset.name == "foxes"
    assert (dataset.sources, dataset.licenses) == ("own photos", "CC0")
    assert dataset.images_per_epoch == 6
    assert {sample.fit for sample in dataset.samples} == {fit}


@pytest.mark.parametrize("fraction", [-0.1, 0.95, float("nan")])
def test_a_validation_fraction_out_of_range_is_refused_before_anything_is_read(
    fraction: float,
) -> None:
    with pytest.raises(AtelierError, match=f"validation_fraction is {fraction}"):
        FolderOptions(validation_fraction=fraction)


@pytest.mark.parametrize("num_repeats", [0, -1, 10_001])
def test_repeats_out_of_range_are_refused(tmp_path: Path, num_repeats: int) -> None:
    with pytest.raises(AtelierError, match=f"num_repeats is {num_repeats}"):
        _load(tmp_path, num_repeats=num_repeats)


def _edit_caption(folder: Path) -> None:
    (folder / "a.txt").write_text("a wolf")


def _edit_at_the_same_length(folder: Path) -> None:
    (folder / "a.txt").write_text("a cat")
    os.utime(folder / "a.txt", ns=(1, 1))


def _touch_picture(folder: Path) -> None:
    os.utime(folder / "a.png", ns=(2, 2))


def _add(folder: Path) -> None:
    _picture(folder / "sub" / "b.png", None)


def _remove_caption(folder: Path) -> None:
    (folder / "a.txt").unlink()


def _rename(folder: Path) -> None:
    (folder / "a.png").rename(folder / "b.png")


def _add_mask(folder: Path) -> None:
    _picture(folder / "a.mask.png", None)


def _add_link_out(folder: Path) -> None:
    """It is no picture of the set, but told on the node."""
    (folder / "b.png").symlink_to("/")


def _add_metadata(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text("")


@pytest.mark.parametrize(
    "change",
    [
        _add_link_out,
        _edit_caption,
        _edit_at_the_same_length,
        _touch_picture,
        _add,
        _remove_caption,
        _rename,
        _add_mask,
        _add_metadata,
    ],
)
def test_a_change_of_the_folder_changes_its_fingerprint(tmp_path: Path, change) -> None:
    _picture(tmp_path / "a.png")
    before = folder_fingerprint(tmp_path)
    change(tmp_path)
    assert folder_fingerprint(tmp_path) != before


def test_a_change_of_the_mask_folder_changes_the_fingerprint(tmp_path: Path) -> None:
    _picture(tmp_path / "set" / "a.png"), _picture(tmp_path / "masks" / "a.png")
    prints = [folder_fingerprint(tmp_path / "set", tmp_path / "masks")]
    os.utime(tmp_path / "masks" / "a.png", ns=(3, 3))
    prints.append(folder_fingerprint(tmp_path / "set", tmp_path / "masks"))
    prints.append(folder_fingerprint(tmp_path / "set"))
    assert len(set(prints)) == 3


def test_a_change_behind_a_link_that_is_followed_changes_the_fingerprint(tmp_path: Path) -> None:
    _picture(tmp_path / "set" / "a.png")
    _picture(tmp_path / "elsewhere" / "b.png"), _picture(tmp_path / "elsewhere" / "c.png")
    (tmp_path / "set" / "b.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "set" / "more").symlink_to(tmp_path / "elsewhere")

    def now() -> tuple[str, str]:
        folder = tmp_path / "set"
        return folder_fingerprint(folder, None, [tmp_path]), folder_fingerprint(folder)

    prints = [now()]
    for name in ("b.png", "c.png"):
        os.utime(tmp_path / "elsewhere" / name, ns=(3, 3))
        prints.append(now())
    assert len({followed for followed, _ in prints}) == 3
    assert len({not_followed for _, not_followed in prints}) == 1


@pytest.mark.parametrize(
    "name",
    [
        "notes.md",
        "notes.txt",
        "history.jsonl",
        ".hidden.png",
        ".cache/thumb.png",
        "a.png.bak",
        "sub/nothing.doc",
    ],
)
def test_what_is_no_part_of_the_dataset_leaves_the_fingerprint(tmp_path: Path, name: str) -> None:
    _picture(tmp_path / "a.png")
    before = folder_fingerprint(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("anything")
    load_folder(tmp_path)
    assert folder_fingerprint(tmp_path) == before
