"""A dataset saved as a folder of ordinary files."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from lora_atelier.training.dataset.folder import FolderOptions, MaskSource, load_folder
from lora_atelier.training.dataset.pictures import ImageFile, ImagePixels, Picture, open_picture
from lora_atelier.training.dataset.samples import ImageDataset, Mask, Role, Sample
from lora_atelier.training.dataset.save import IfExists, file_stems, save_dataset
from lora_atelier.training.errors import AtelierError

NEW, STOP, REPLACE = IfExists.NEW_FOLDER, IfExists.STOP, IfExists.REPLACE


def noise(seed: int, *shape: int) -> ImagePixels:
    return ImagePixels(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def file(path: Path, seed: int = 0, **options) -> ImageFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, 24, 32, 3).pixels).save(path, **options)
    return ImageFile(str(path), (32, 24))


def dataset(*samples: Sample | Picture) -> ImageDataset:
    return ImageDataset(
        tuple(
            s if isinstance(s, Sample) else Sample(s, f"{i}.png", (f"caption {i}",))
            for i, s in enumerate(samples)
        ),
        "mine",
    )


def metadata(folder: Path) -> list[dict]:
    lines = (folder / "metadata.jsonl").read_text("utf-8").removesuffix("\n").split("\n")
    return [json.loads(line) for line in lines]


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names(folder)}


# What is written


def test_files_of_pictures_are_copied_byte_for_byte(tmp_path: Path) -> None:
    jpeg = file(tmp_path / "from" / "fox.JPG", quality=30)
    broken = tmp_path / "from" / "cut.png"
    broken.write_bytes(Path(file(broken).path).read_bytes()[:200])
    samples = [
        Sample(jpeg, "sub/fox.JPG", ("a fox",)),
        Sample(ImageFile(str(broken), (32, 24)), "cut.png"),
    ]
    saved = save_dataset(dataset(*samples), tmp_path / "to", STOP)
    assert (saved.folder, saved.pictures, saved.replaced, saved.others) == (
        tmp_path / "to",
        2,
        0,
        (),
    )
    assert names(tmp_path / "to") == [
        "cut.png",
        "cut.txt",
        "metadata.jsonl",
        "sub/fox.JPG",
        "sub/fox.txt",
    ]
    for sample in samples:
        copy = tmp_path / "to" / sample.name
        assert copy.read_bytes() == Path(sample.image.path).read_bytes()


@pytest.mark.parametrize("channels", [3, 4])
def test_pictures_in_memory_are_written_without_loss(tmp_path: Path, channels: int) -> None:
    picture = noise(1, 24, 32, channels)
    save_dataset(dataset(Sample(picture, "made_0001", ("a",))), tmp_path / "to", STOP)
    written = Image.open(tmp_path / "to" / "made_0001.png")
    assert np.array_equal(np.asarray(written), picture.pixels)


def test_metadata_holds_all_that_is_said_of_a_picture(tmp_path: Path) -> None:
    plain = Sample(file(tmp_path / "a.png"), "a.png", ("a fox",))
    full = Sample(
        noise(1, 24, 32, 4),
        "b/c.png",
        ('a "bear", 熊',),
        num_repeats=7,
        role=Role.VALIDATION,
        loss_weight=0.25,
        mask=Mask.ALPHA,
        source="museum",
        license="CC0",
        class_tokens="bear",
    )
    save_dataset(dataset(plain, full), tmp_path / "to", STOP)
    assert metadata(tmp_path / "to") == [
        {
            "file_name": "a.png",
            "text": "a fox",
            "num_repeats": 1,
            "role": "train",
            "loss_weight": 1.0,
            "source": "",
            "license": "",
            "mask": None,
            "class_tokens": "",
        },
        {
            "file_name": "b/c.png",
            "text": 'a "bear", 熊',
            "num_repeats": 7,
            "role": "validation",
            "loss_weight": 0.25,
            "source": "museum",
            "license": "CC0",
            "mask": "alpha",
            "class_tokens": "bear",
        },
    ]
    assert "熊" in (tmp_path / "to" / "metadata.jsonl").read_text("utf-8")


def test_several_captions_are_a_line_each_and_one_type_in_the_metadata(tmp_path: Path) -> None:
    one = Sample(noise(0, 8, 8, 3), "one.png", ("a fox",))
    two = Sample(noise(1, 8, 8, 3), "two.png", ("a bear", "a brown\nbear "))
    save_dataset(dataset(one, two), tmp_path / "to", STOP)
    assert (tmp_path / "to" / "one.txt").read_text("utf-8") == "a fox\n"
    assert (tmp_path / "to" / "two.txt").read_text("utf-8") == "a bear\na brown bear\n"
    told = [entry["text"] for entry in metadata(tmp_path / "to")]
    assert told == [["a fox"], ["a bear", "a brown bear"]]


def test_a_line_of_metadata_is_one_to_every_reader(tmp_path: Path) -> None:
    source = "a\x85b\u2028c\u2029d\x0be\nf"
    sample = Sample(noise(0, 8, 8, 3), "a.png", ("a fox",), source=source)
    save_dataset(dataset(sample), tmp_path / "to", STOP)
    text = (tmp_path / "to" / "metadata.jsonl").read_text("utf-8")
    assert len(text.splitlines()) == 1
    assert json.loads(text)["source"] == source


def test_masks_lie_beside_their_pictures(tmp_path: Path) -> None:
    grey = noise(1, 24, 32)
    png = file(tmp_path / "from" / "m.png", 2)
    jpeg = file(tmp_path / "from" / "m.jpg", 3)
    samples = [
        Sample(noise(i, 24, 32, 3), f"{i}.webp", ("a",), mask=m)
        for i, m in enumerate((grey, png, jpeg))
    ]
    save_dataset(dataset(*samples), tmp_path / "to", STOP)
    folder = tmp_path / "to"
    assert [m["mask"] for m in metadata(folder)] == ["0.mask.png", "1.mask.png", "2.mask.png"]
    assert np.array_equal(np.asarray(Image.open(folder / "0.mask.png")), grey.pixels)
    assert (folder / "1.mask.png").read_bytes() == Path(png.path).read_bytes()
    decoded, written = Image.open(jpeg.path), Image.open(folder / "2.mask.png")
    assert written.format == "PNG"
    assert np.array_equal(np.asarray(written), np.asarray(decoded))


def test_ticks_once_a_picture(tmp_path: Path) -> None:
    ticks: list[None] = []
    save_dataset(
        dataset(noise(0, 8, 8, 3), noise(1, 8, 8, 3)),
        tmp_path / "to",
        STOP,
        lambda: ticks.append(None),
    )
    assert len(ticks) == 2


# Names


def stems(*sample_names: str) -> list[str]:
    picture = noise(0, 8, 8, 3)
    return file_stems([Sample(picture, name) for name in sample_names])


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("fox.png", "fox"),
        ("styles/glossy/fox.JPEG", "styles/glossy/fox"),
        ("fox v1.5", "fox v1.5"),
        ('a<b>c:d"e|f?g*h\\i.png', "a_b_c_d_e_f_g_h_i"),
        ("../../etc/passwd.png", "_/_/etc/passwd"),
        ("/etc/passwd", "_/etc/passwd"),
        ("aux.png", "_aux"),
        ("COM1.fox.png", "_COM1.fox"),
        (".hidden/.fox.png", "hidden/fox"),
        ("fox. .png", "fox"),
        ("tab\tnew\nline\0.png", "tab_new_line_"),
        ("fox.mask.png", "fox_mask"),
        ("sub.png/fox.png", "sub_png/fox"),
        ("10_red fox/3_a/img_1.png", "10_red fox/3_a/img_1"),
        ("Fu\u0308chslein 狐.png", "F\u00fcchslein 狐"),
        ("\ud800.png", "_"),
        (".png", "png"),
        ("...", "_"),
        ("", "_"),
    ],
)
def test_names_are_made_safe_for_every_system(name: str, stem: str) -> None:
    assert stems(name) == [stem]


def test_names_stay_apart_without_case_and_without_suffix() -> None:
    given = ("fox.png", "FOX.png", "fox.jpg", "fox_2.png", "sub/fox.png", "Sub/fox.png")
    assert stems(*given) == ["fox", "FOX_3", "fox_4", "fox_2", "sub/fox", "Sub/fox_2"]


def test_long_names_are_cut_between_letters() -> None:
    first, second = stems("狐" * 300 + ".png", "狐" * 301 + ".png")
    assert first == "狐" * 60 and second == "狐" * 60 + "_2"


any_name = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    ["a.png", "A.png", "a.jpg", "a.mask.png", "a_2", "a/b", "a/B.png", "a.png/b", "nul", ".", ".."]
)


@given(st.lists(any_name, min_size=1, max_size=12, unique=True))
def test_no_two_files_ever_meet(given: list[str]) -> None:
    found = stems(*given)
    written = [
        f"{stem}{suffix}".casefold() for stem in found for suffix in (".png", ".txt", ".mask.png")
    ]
    assert len(set(written)) == len(written)
    folders = {str(parent) for stem in found for parent in PurePosixPath(stem.casefold()).parents}
    assert not folders & {*written, "metadata.jsonl"}
    for stem in found:
        for part in PurePosixPath(stem).parts:
            assert part.encode() and len(part.encode()) < 240
            assert part[0] != "." and part[-1] not in " ." and not set(part) & set('<>:"|?*\\\0')
        assert not stem.startswith("/") and ".." not in PurePosixPath(stem).parts


@given(st.lists(any_name, min_size=1, max_size=4, unique=True))
def test_every_name_can_be_written(tmp_path_factory, given: list[str]) -> None:
    folder = tmp_path_factory.mktemp("names")
    picture = noise(0, 2, 2, 3)
    samples = [Sample(picture, name, ("a",), mask=noise(1, 2, 2)) for name in given]
    save_dataset(dataset(*samples), folder / "to", STOP)
    assert len(names(folder / "to")) == 3 * len(given) + 1
    for entry in metadata(folder / "to"):
        assert (folder / "to" / entry["file_name"]).is_file()
        assert (folder / "to" / entry["mask"]).is_file()


# Read again


def reload(folder: Path, **options: Any) -> ImageDataset:
    return load_folder(folder, FolderOptions(mask=MaskSource.FILES, **options))


def same_picture(one: Picture | Mask | None, other: Picture | Mask | None) -> bool:
    if one is None or other is None or isinstance(one, Mask):
        return one is other
    return open_picture(one).tobytes() == open_picture(other).tobytes()


def said_of(sample: Sample) -> tuple:
    return (
        sample.captions,
        sample.num_repeats,
        sample.role,
        sample.loss_weight,
        sample.source,
        sample.license,
        sample.class_tokens,
    )


lines = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
captions = st.lists(lines, min_size=1, max_size=3).map(tuple)


@st.composite
def samples(draw: st.DrawFn) -> list[Sample]:
    given = draw(st.lists(any_name, min_size=1, max_size=5, unique=True))
    return [
        Sample(
            noise(draw(st.integers(0, 99)), 2, 3, draw(st.sampled_from([3, 4]))),
            name,
            draw(captions),
            draw(st.integers(1, 10_000)),
            draw(st.sampled_from(Role)),
            draw(st.floats(0, 100)),
            draw(st.sampled_from([None, Mask.ALPHA, noise(1, 2, 3)])),
            draw(lines),
            draw(lines),
            class_tokens=draw(lines),
        )
        for name in given
    ]


@given(samples())
@example([Sample(noise(0, 2, 3, 3), "a", ("\ufeffa\0b", "\ufeffc"), license="\ufeff")])
def test_what_was_saved_is_what_is_loaded(tmp_path_factory, given: list[Sample]) -> None:
    folder = tmp_path_factory.mktemp("round trip") / "to"
    saved = save_dataset(dataset(*given), folder, STOP)
    loaded = {sample.name: sample for sample in reload(saved.folder).samples}
    stems = file_stems(given)
    assert set(loaded) == {f"{stem}.png" for stem in stems}
    for stem, old in zip(stems, given, strict=True):
        new = loaded[f"{stem}.png"]
        assert same_picture(new.image, old.image)
        assert same_picture(new.mask, old.mask)
        assert said_of(new) == said_of(replace(old, captions=written(old.captions)))


def written(captions: tuple[str, ...]) -> tuple[str, ...]:
    """As a caption file can hold them: on one line each, none empty unless it is alone."""
    texts = (caption.replace("\0", " ").replace("\ufeff", "") for caption in captions)
    lines = (" ".join(map(str.strip, text.splitlines())).strip() for text in texts)
    return tuple(line for line in lines if line) or ("",)


@pytest.mark.parametrize(
    "caption",
    ["a fox", "ein Füchslein, 狐狸 🦊", '"quoted", \\, {a|b}', "two  spaces", "a" * 5000],
)
def test_a_caption_comes_back_as_it_was(tmp_path: Path, caption: str) -> None:
    one = Sample(noise(0, 8, 8, 3), "a.png", (caption,))
    save_dataset(dataset(one), tmp_path / "to", STOP)
    assert reload(tmp_path / "to").samples[0].captions == (caption,)
    (tmp_path / "to" / "a.txt").unlink()  # the metadata alone says the same
    assert reload(tmp_path / "to").samples[0].captions == (caption,)


def test_what_no_file_can_hold_is_written_as_a_question_mark(tmp_path: Path) -> None:
    sample = Sample(noise(0, 8, 8, 3), "a.png", ("half \ud83e of a sign",), source="\udd8a")
    save_dataset(dataset(sample), tmp_path / "to", STOP)
    (loaded,) = reload(tmp_path / "to").samples
    assert (loaded.captions, loaded.source) == (("half ? of a sign",), "?")


def test_a_dataset_of_a_kohya_folder_keeps_its_repeats_however_often_it_is_saved(
    tmp_path: Path,
) -> None:
    file(tmp_path / "from" / "10_red fox" / "a.png")
    loaded = reload(tmp_path / "from", num_repeats=2)
    assert [(s.num_repeats, s.caption) for s in loaded.samples] == [(20, "red fox")]
    for place in ("once", "twice"):
        loaded = reload(save_dataset(loaded, tmp_path / place, STOP).folder)
        assert [(s.num_repeats, s.caption) for s in loaded.samples] == [(20, "red fox")]
    assert [s.name for s in loaded.samples] == ["10_red fox/a.png"]


def test_saved_roles_are_not_drawn_again(tmp_path: Path) -> None:
    for i in range(10):
        file(tmp_path / "from" / f"{i}.png")
    loaded = reload(tmp_path / "from", validation_fraction=0.3)
    saved = reload(save_dataset(loaded, tmp_path / "to", STOP).folder)
    assert Role.VALIDATION in {s.role for s in loaded.samples}
    assert [(s.name, s.role) for s in saved.samples] == [(s.name, s.role) for s in loaded.samples]


# A folder that is there already


def test_new_folder_takes_the_next_free_name(tmp_path: Path) -> None:
    made = [
        save_dataset(dataset(noise(i, 8, 8, 3)), tmp_path / "to", NEW).folder.name for i in range(3)
    ]
    assert made == ["to", "to_2", "to_3"]
    pixels = [np.asarray(Image.open(tmp_path / name / "0.png")) for name in made]
    assert all(np.array_equal(p, noise(i, 8, 8, 3).pixels) for i, p in enumerate(pixels))


@pytest.mark.parametrize("what", ["folder", "file", "dead link"])
def test_stop_refuses_before_anything_is_written(tmp_path: Path, what: str) -> None:
    target = tmp_path / "to"
    {
        "folder": target.mkdir,
        "file": lambda: target.write_text("mine"),
        "dead link": lambda: target.symlink_to("nowhere"),
    }[what]()
    ticks: list[None] = []
    with pytest.raises(AtelierError, match='to" exists already.*new_folder or replace'):
        save_dataset(dataset(noise(0, 8, 8, 3)), target, STOP, lambda: ticks.append(None))
    assert ticks == [] and os.listdir(tmp_path) == ["to"]


def test_replace_changes_files_of_the_same_name_and_tells_of_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "to"
    save_dataset(dataset(noise(0, 8, 8, 3), noise(1, 8, 8, 3)), folder, STOP)
    for name in ("notes.md", "sub/other.png", ".hidden"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"mine")
    edited = Sample(noise(5, 8, 8, 3), "0.png", ("edited",))
    saved = save_dataset(dataset(edited), folder, REPLACE)
    assert (saved.pictures, saved.replaced) == (1, 3)  # picture, caption, metadata
    assert saved.others == ("1.png", "1.txt", "notes.md", "sub/other.png")
    assert (folder / "0.txt").read_text() == "edited\n"
    assert np.array_equal(np.asarray(Image.open(folder / "0.png")), noise(5, 8, 8, 3).pixels)
    assert (folder / "sub" / "other.png").read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["to"]
    text = saved.summary("output/to")
    assert "1 pictures → output/to" in text and "3 files replaced" in text
    assert "4 other files stay there: 1.png, 1.txt, notes.md, sub/other.png" in text


def test_replace_keeps_the_metadata_of_pictures_that_stay(tmp_path: Path) -> None:
    folder = tmp_path / "to"
    samples = [
        Sample(noise(i, 8, 8, 3), f"{i}.png", (f"old {i}",), num_repeats=i + 1) for i in range(3)
    ]
    save_dataset(dataset(*samples), folder, STOP)
    (folder / "2.png").unlink()
    save_dataset(dataset(Sample(noise(5, 8, 8, 3), "0.png", ("new",))), folder, REPLACE)
    told = {m["file_name"]: (m["text"], m["num_repeats"]) for m in metadata(folder)}
    assert told == {"1.png": ("old 1", 2), "0.png": ("new", 1)}


def test_a_dataset_can_be_saved_over_its_own_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    pictures = [file(folder / f"{i}.png", i) for i in range(2)]
    before = [Path(p.path).read_bytes() for p in pictures]
    samples = [Sample(p, f"{i}.png", (f"new {i}",)) for i, p in enumerate(pictures)]
    saved = save_dataset(dataset(*samples), folder, REPLACE)
    assert (saved.replaced, saved.others, saved.own) == (0, (), True)
    assert "take Edit Captions out before the next run" in saved.summary("mine")
    assert [Path(p.path).read_bytes() for p in pictures] == before
    assert names(folder) == ["0.png", "0.txt", "1.png", "1.txt", "metadata.jsonl"]


def test_what_is_saved_unchanged_over_its_own_folder_stays_untouched(tmp_path: Path) -> None:
    """Else the graph would see a changed folder and train again at every queue."""
    folder = tmp_path / "mine"
    for name in ("10_fox/x.png", "v1.5/q.png", "y.png", "y_2.png"):
        file(folder / name, len(name))
        (folder / name).with_suffix(".txt").write_text(f"{Path(name).stem}\n")
    options = {"num_repeats": 3, "loss_weight": 0.5}
    save_dataset(reload(folder, **options), folder, REPLACE)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    for _ in range(3):
        loaded = reload(folder, **options)
        assert [(s.name, s.num_repeats, s.loss_weight) for s in loaded.samples] == [
            ("10_fox/x.png", 30, 0.5),
            ("v1.5/q.png", 3, 0.5),
            ("y.png", 3, 0.5),
            ("y_2.png", 3, 0.5),
        ]
        assert save_dataset(loaded, folder, REPLACE).replaced == 0
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_a_picture_that_needs_another_name_takes_none_that_is_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    foreign = file(folder / "y_2.png", 9)
    content = Path(foreign.path).read_bytes()
    samples = [
        Sample(noise(i, 8, 8, 3), name, (f"of {name}",))
        for i, name in enumerate(("y.jpg", "y.png", "y_3.png"))
    ]
    save_dataset(dataset(*samples), folder, REPLACE)
    assert Path(foreign.path).read_bytes() == content
    told = {m["file_name"]: m["text"] for m in metadata(folder)}
    assert told == {"y.png": "of y.jpg", "y_4.png": "of y.png", "y_3.png": "of y_3.png"}


def test_replace_writes_a_folder_that_is_not_there(tmp_path: Path) -> None:
    saved = save_dataset(dataset(noise(0, 8, 8, 3)), tmp_path / "a" / "b", REPLACE)
    assert saved.replaced == 0 and names(saved.folder) == ["0.png", "0.txt", "metadata.jsonl"]


def test_replace_follows_no_link_out_of_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "to", tmp_path / "outside"
    folder.mkdir(), outside.mkdir()
    (outside / "precious").write_bytes(b"mine")
    (folder / "sub").symlink_to(outside, target_is_directory=True)
    (folder / "b.png").symlink_to(outside / "precious")
    first = dataset(Sample(noise(0, 8, 8, 3), "sub/a.png", ("a",)))
    with pytest.raises(AtelierError, match='sub" is a link that leads out of'):
        save_dataset(first, folder, REPLACE)
    save_dataset(dataset(Sample(noise(0, 8, 8, 3), "b.png", ("a",))), folder, REPLACE)
    assert contents(outside) == {"precious": b"mine"}
    assert not (folder / "b.png").is_symlink()


def test_a_folder_in_the_place_of_a_file_is_told_before_anything_is_replaced(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "to"
    save_dataset(dataset(noise(0, 8, 8, 3)), folder, STOP)
    (folder / "1.txt").mkdir()
    before = contents(folder)
    with pytest.raises(AtelierError, match='1.txt" is a folder'):
        save_dataset(dataset(noise(1, 8, 8, 3), noise(2, 8, 8, 3)), folder, REPLACE)
    assert contents(folder) == before and os.listdir(tmp_path) == ["to"]


@pytest.mark.parametrize("text", ["no json", "[1]", '{"file": "a.png"}', '"a.png"'])
def test_foreign_metadata_is_not_destroyed(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "to"
    folder.mkdir()
    (folder / "metadata.jsonl").write_text(text)
    with pytest.raises(AtelierError, match=r"metadata.jsonl.* holds something else than"):
        save_dataset(dataset(noise(0, 8, 8, 3)), folder, REPLACE)
    assert contents(folder) == {"metadata.jsonl": text.encode()}


# When it goes wrong


class Cancelled(Exception):
    """What the host raises after a press on Cancel."""


def _cancel_at(picture: int) -> Callable[[], None]:
    left = iter(range(picture - 1))

    def tick() -> None:
        if next(left, None) is None:
            raise Cancelled

    return tick


@pytest.mark.parametrize("if_exists", [NEW, REPLACE])
@pytest.mark.parametrize("there", [True, False])
def test_cancel_leaves_everything_as_it_was(
    tmp_path: Path, if_exists: IfExists, there: bool
) -> None:
    folder = tmp_path / "to"
    if there:
        save_dataset(dataset(noise(0, 8, 8, 3)), folder, STOP)
    before = contents(tmp_path)
    with pytest.raises(Cancelled):
        save_dataset(
            dataset(noise(1, 8, 8, 3), noise(2, 8, 8, 3)), folder, if_exists, _cancel_at(2)
        )
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == (["to"] if there else [])


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Writing more than `size` bytes into a file fails, as on a full disk."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("kind", ["copied", "in memory"])
def test_a_disk_that_is_full_leaves_nothing_half_done(tmp_path: Path, kind: str) -> None:
    large = noise(1, 128, 128, 3)
    if kind == "copied":
        path = tmp_path / "large.png"
        Image.fromarray(large.pixels).save(path)
        large = ImageFile(str(path), (128, 128))
    folder = tmp_path / "all" / "to"
    with files_up_to(10_000), pytest.raises(AtelierError, match="could not be written") as refusal:
        save_dataset(dataset(noise(0, 8, 8, 3), large), folder, NEW)
    assert os.strerror(errno.EFBIG) in str(refusal.value)
    assert os.listdir(tmp_path / "all") == []


def test_a_picture_that_is_gone_is_named(tmp_path: Path) -> None:
    picture = file(tmp_path / "from" / "fox.png")
    Path(picture.path).unlink()
    with pytest.raises(AtelierError, match=r'fox.png" cannot be read.*was there when'):
        save_dataset(dataset(noise(0, 8, 8, 3), picture), tmp_path / "all" / "to", NEW)
    assert os.listdir(tmp_path / "all") == []
