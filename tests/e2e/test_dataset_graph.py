"""Datasets through a real server: loaded, fitted, made, combined, saved and loaded again."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from host import HostServer, Result
from training_graph import DATASET, PICTURES, TRAIN, Prompt, Watched, node, training

pytestmark = pytest.mark.slow

NAMES = ("bear", "fox", "lemon", "pizza")


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in NAMES:
        for extension in (".png", ".txt"):
            shutil.copy(PICTURES / f"{name}{extension}", folder)
    return folder


def load(folder: Any, **widgets: Any) -> dict[str, Any]:
    return node("AtelierLoadDataset", folder=folder, **widgets)


def fit(dataset: list, **widgets: Any) -> dict[str, Any]:
    return node("AtelierFitImages", dataset=dataset, **widgets)


def from_images(images: list, captions: Any, **inputs: Any) -> dict[str, Any]:
    return node("AtelierDatasetFromImages", images=images, captions=captions, **inputs)


def save(dataset: list, folder: str, **widgets: Any) -> dict[str, Any]:
    return node("AtelierSaveDataset", dataset=dataset, folder=folder, **widgets)


def empty_image(width: int = 64, height: int = 64, count: int = 1, colour: int = 0x3060FF):
    return node("EmptyImage", width=width, height=height, batch_size=count, color=colour)


def shown(source: str) -> dict[str, Any]:
    """An output node, so that there is something to run for."""
    return node("PreviewAny", source=[source, 0])


def metadata(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()
    ]


def refused_with(result: Result, *words: str) -> None:
    assert result.status in ("rejected", "error")
    assert [word for word in words if word not in result.message] == [], result.message
    assert "Traceback" not in result.message


# From one node to the next


def test_pictures_of_a_folder_and_of_the_graph_are_combined_saved_and_loaded_again(
    server: HostServer,
) -> None:
    fill(server.base / "input" / "chain")
    prompt = {
        "load": load("chain", class_tokens="sks", num_repeats=3, source="museum"),
        "fit": fit(["load", 0], resolution="64, 128", flip_aug=True),
        "empty": empty_image(48, 96, count=2),
        "made": from_images(["empty", 0], "a blue wall\na wall, blue", license="CC0"),
        "both": node(
            "AtelierCombineDatasets", dataset_1=["fit", 0], dataset_3=["made", 0], name=""
        ),
        "save": save(["both", 0], "sets/chain"),
        "again": load(["save", 0], mask="files"),
        "copy": save(["again", 0], "sets/copy", save_into="input"),
    }
    watched = Watched(server, prompt)
    assert watched.text("load").startswith("4 pictures, 12 an epoch, 64 px\n")
    assert 'first caption: "sks, bear"' in watched.text("load")
    assert watched.text("fit").startswith("2 buckets: 64×64: 4, 128×128: 4")
    assert watched.text("made").startswith("2 pictures, 2 an epoch, 64 px\n")
    assert watched.text("both").startswith("6 pictures, 26 an epoch, 64 + 128 px\n")
    assert watched.text("save") == "6 pictures → output/sets/chain"
    assert watched.text("copy") == "6 pictures → input/sets/copy"
    saved, copy = server.base / "output/sets/chain", server.base / "input/sets/copy"
    told = metadata(saved)
    assert [(m["text"], m["num_repeats"]) for m in told] == [
        *((f"sks, {name}", 3) for name in NAMES),
        ("a blue wall", 1),
        ("a wall, blue", 1),
    ]
    assert metadata(copy) == sorted(told, key=lambda entry: entry["file_name"])
    for name in NAMES:
        assert (copy / f"{name}.png").read_bytes() == (PICTURES / f"{name}.png").read_bytes()
    wall = np.asarray(Image.open(copy / "made_0001.png"))
    assert wall.shape == (96, 48, 3) and (wall == (0x30, 0x60, 0xFF)).all()
    assert str(server.base) not in "".join(watched.texts.values())  # saved with shared graphs


def test_lists_of_core_nodes_keep_each_picture_with_its_caption(server: HostServer) -> None:
    fill(server.base / "input" / "listed")
    prompt = {
        "core": node("LoadImageTextDataSetFromFolder", folder="listed"),
        "made": from_images(["core", 0], ["core", 1], class_tokens="sks"),
        "save": save(["made", 0], "sets/listed"),
    }
    server.free()
    Watched(server, prompt).text("save")
    folder = server.base / "output/sets/listed"
    told = {m["text"]: np.asarray(Image.open(folder / m["file_name"])) for m in metadata(folder)}
    assert sorted(told) == sorted(f"sks, {name}" for name in NAMES)
    for name in NAMES:
        original = Image.open(PICTURES / f"{name}.png").convert("RGB")
        assert np.array_equal(told[f"sks, {name}"], np.asarray(original))


def test_masks_of_the_graph_are_saved_and_a_black_one_is_refused(server: HostServer) -> None:
    opaque = Image.open(PICTURES / "fox.png").convert("RGB")
    opaque.save(server.base / "input" / "opaque.png")
    prompt = {
        "image": node("LoadImage", image="opaque.png"),
        "made": from_images(["image", 0], "a fox", masks=["image", 1]),
        "save": save(["made", 0], "sets/masked"),
    }
    refused_with(server.queue(prompt), "mask 1 is black all over", "Invert Mask")
    prompt["invert"] = node("InvertMask", mask=["image", 1])
    prompt["made"]["inputs"]["masks"] = ["invert", 0]
    assert "1 with a mask" in Watched(server, prompt).text("made")
    mask = np.asarray(Image.open(server.base / "output/sets/masked/made_0001.mask.png"))
    assert mask.shape == (opaque.height, opaque.width) and (mask == 255).all()


def test_a_folder_that_comes_over_a_link_is_read_and_judged_when_it_is_known(
    server: HostServer, tmp_path: Path
) -> None:
    fill(server.base / "input" / "linked set")
    fill(tmp_path / "outside")
    prompt = {
        "name": node("PrimitiveString", value="linked set"),
        "load": load(["name", 0]),
        "end": shown("load"),
    }
    assert Watched(server, prompt).text("load").startswith("4 pictures")
    prompt["name"]["inputs"]["value"] = str(tmp_path / "outside")
    result = server.queue(prompt)
    assert result.status == "error"  # known only when the graph ran
    refused_with(result, "lies outside the folders this pack may read")


def test_a_graph_from_before_there_were_roles_and_masks_still_loads(server: HostServer) -> None:
    fill(server.base / "input" / "old graph")
    prompt = {"load": load("old graph", class_tokens="sks"), "end": shown("load")}
    old = ("folder", "resolution", "num_repeats", "class_tokens", "source", "license")
    prompt["load"]["inputs"] = {name: prompt["load"]["inputs"][name] for name in old}
    assert Watched(server, prompt).text("load").startswith("4 pictures, 4 an epoch, 64 px\n")


# Running again


def _edit_caption(folder: Path) -> None:
    (folder / "fox.txt").write_text("a blue fox")


def _edit_picture(folder: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(folder / "fox.png")


def _add_picture(folder: Path) -> None:
    shutil.copy(folder / "fox.png", folder / "wolf.png")
    (folder / "wolf.txt").write_text("a wolf")


def _remove_picture(folder: Path) -> None:
    (folder / "fox.png").unlink()


def _add_mask(folder: Path) -> None:
    Image.new("L", (64, 64), 255).save(folder / "fox.mask.png")


def _edit_mask_of_the_folder(folder: Path) -> None:
    Image.new("L", (64, 64), 255).save(folder.with_name(f"{folder.name} masks") / "fox.png")


def _edit_behind_a_link(folder: Path) -> None:
    Image.new("RGB", (64, 64), "blue").save(folder.with_name(f"{folder.name} elsewhere.png"))


@pytest.mark.parametrize(
    "change",
    [
        _edit_caption,
        _edit_picture,
        _add_picture,
        _remove_picture,
        _add_mask,
        _edit_mask_of_the_folder,
        _edit_behind_a_link,
    ],
)
def test_load_image_dataset_runs_again_when_its_folder_changed_and_only_then(
    server: HostServer, change: Callable[[Path], None]
) -> None:
    name = f"again{change.__name__}"
    folder = fill(server.base / "input" / name)
    masks = folder.with_name(f"{name} masks")
    masks.mkdir()
    Image.new("L", (64, 64), 128).save(masks / "fox.png")
    elsewhere = fill_one(folder.with_name(f"{name} elsewhere.png"), (64, 64), 0)
    (folder / "linked.png").symlink_to(elsewhere)
    mask_folder = masks.name if change is _edit_mask_of_the_folder else ""
    prompt = {"load": load(name, mask="files", mask_folder=mask_folder)}
    prompt["end"] = shown("load")
    assert Watched(server, prompt).ran("load")
    (folder / "notes.md").write_text("no part of it")
    assert not Watched(server, prompt).ran("load")
    change(folder)
    assert Watched(server, prompt).ran("load")
    assert not Watched(server, prompt).ran("load")


# What is wrong with a folder, a size, a name


def awkward(server: HostServer, name: str) -> None:
    folder = fill(server.base / "input" / name)
    (folder / "empty.png").touch()
    (folder / "page.jpg").write_text("<html>")
    whole = (folder / "fox.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    for bad in ("empty", "page", "cut"):
        (folder / f"{bad}.txt").write_text(f"a {bad} picture")


def test_bad_files_are_left_out_and_named_on_the_node(server: HostServer) -> None:
    awkward(server, "awkward skip")
    watched = Watched(server, {"load": load("awkward skip"), "end": shown("load")})
    text = watched.text("load")
    assert "left out" in text and "empty.png" in text and "page.jpg" in text
    assert str(server.base) not in text


def test_with_stop_bad_files_end_the_run_and_are_named(server: HostServer) -> None:
    awkward(server, "awkward stop")
    prompt = {"load": load("awkward stop", unusable_files="stop"), "end": shown("load")}
    refused_with(server.queue(prompt), "empty.png", "page.jpg")


@pytest.mark.parametrize("way", ["full path", "upwards", "symbolic link"])
def test_a_mask_folder_outside_the_roots_is_refused_before_anything_runs(
    server: HostServer, tmp_path: Path, way: str
) -> None:
    name = f"masked {way}"
    fill(server.base / "input" / name)
    link = server.base / "input" / f"link of {name}"
    link.symlink_to(tmp_path, target_is_directory=True)
    masks = {"full path": str(tmp_path), "upwards": "../..", "symbolic link": link.name}[way]
    prompt = {"load": load(name, mask="files", mask_folder=masks), "end": shown("load")}
    result = server.queue(prompt)
    refused_with(result, "mask_folder", "outside the folders")
    assert result.status == "rejected"


@pytest.mark.parametrize("save_into", ["output", "input"])
@pytest.mark.parametrize("way", ["", ".", "full path", "../out", "symbolic link/set", "a\0b"])
def test_datasets_are_saved_below_the_chosen_folder_only(
    server: HostServer, tmp_path: Path, way: str, save_into: str
) -> None:
    (link := server.base / save_into / "symbolic link").unlink(missing_ok=True)
    link.symlink_to(tmp_path, target_is_directory=True)
    folder = str(tmp_path / "set") if way == "full path" else way
    prompt = {
        "empty": empty_image(),
        "made": from_images(["empty", 0], "a wall"),
        "save": save(["made", 0], folder, save_into=save_into),
    }
    result = server.queue(prompt)
    refused_with(result, "folder", "datasets/glossy")
    assert result.status == "rejected" and list(tmp_path.iterdir()) == []


def _made(**widgets: Any) -> Prompt:
    return {"empty": empty_image(40, 600), "made": from_images(["empty", 0], "a pole", **widgets)}


@pytest.mark.parametrize(
    ("widget", "value", "words"),
    [
        ("resolution", "64x64", ("resolution", "64x64", "512, 768")),
        ("resolution", "500", ("resolution is 500", "multiple of 8")),
        ("resolution", "", ("resolution is empty",)),
        ("bucket_reso_steps", "48", ("bucket_reso_steps is 48", "one of")),
        ("min_bucket_reso", 72, ("min_bucket_reso is 72", "multiple of bucket_reso_steps")),
        ("crop_variants", 0, ("crop_variants is 0", "1 to 64")),
        ("background", "whitish", ("background", "whitish", "#ffffff")),
    ],
)
def test_fit_images_refuses_bad_values_before_anything_runs(
    server: HostServer, widget: str, value: Any, words: tuple[str, ...]
) -> None:
    prompt = {**_made(), "fit": fit(["made", 0], **{widget: value}), "end": shown("fit")}
    result = server.queue(prompt)
    refused_with(result, *words)
    assert result.status == "rejected"


@pytest.mark.parametrize(("widget", "value"), [("crop", "left"), ("latents", "mean")])
def test_fit_images_refuses_a_choice_there_is_not(
    server: HostServer, widget: str, value: str
) -> None:
    prompt = {**_made(), "fit": fit(["made", 0], **{widget: value}), "end": shown("fit")}
    refused_with(server.queue(prompt), widget, value)


def test_pictures_of_a_folder_that_do_not_fit_are_left_out_and_those_of_the_graph_refused(
    server: HostServer,
) -> None:
    folder = fill(server.base / "input" / "narrow")
    Image.new("RGB", (40, 600)).save(folder / "pole.png")
    (folder / "pole.txt").write_text("a pole")
    prompt = {
        "load": load("narrow"),
        "fit": fit(["load", 0], bucket_no_upscale=True),
        "end": shown("fit"),
    }
    text = Watched(server, prompt).text("fit")
    assert text.startswith('1 bucket: 64×64: 4\n1 file left out: pole.png\n"pole.png" (40')
    made = {**_made(), "fit": fit(["made", 0], bucket_no_upscale=True), "end": shown("fit")}
    refused_with(server.queue(made), "made_0001.png", "40×600 px", "bucket_no_upscale")


@pytest.mark.parametrize(
    ("widget", "value", "words"),
    [
        ("resolution", 500, ("resolution is 500", "multiple of 8")),
        ("num_repeats", 0, ("num_repeats is 0",)),
        ("loss_weight", math.nan, ("loss_weight is nan",)),
    ],
)
def test_dataset_from_images_refuses_bad_numbers_before_anything_runs(
    server: HostServer, widget: str, value: float, words: tuple[str, ...]
) -> None:
    prompt = {**_made(**{widget: value}), "end": shown("made")}
    result = server.queue(prompt)
    refused_with(result, *words)
    assert result.status == "rejected"


def test_too_few_captions_are_refused_with_both_numbers(server: HostServer) -> None:
    prompt = {"empty": empty_image(count=3), "made": from_images(["empty", 0], "one\ntwo")}
    refused_with(server.queue({**prompt, "end": shown("made")}), "2 for 3 pictures")


# Saving


def test_saving_twice_makes_a_new_folder_refuses_or_replaces(server: HostServer) -> None:
    def queue(colour: int, if_exists: str) -> Watched:
        return Watched(
            server,
            {
                "empty": empty_image(colour=colour),
                "made": from_images(["empty", 0], "a wall"),
                "save": save(["made", 0], "sets/twice", if_exists=if_exists),
            },
        )

    folder = server.base / "output/sets/twice"
    assert queue(1, "stop").text("save").endswith("output/sets/twice")
    refused_with(queue(2, "stop").result, "exists already", "new_folder")
    assert queue(3, "new_folder").text("save").endswith("output/sets/twice_2")
    (folder / "notes.md").write_text("mine")
    text = queue(4, "replace").text("save")
    assert "1 files replaced" in text and "1 other files stay there: notes.md" in text
    assert Image.open(folder / "made_0001.png").getpixel((0, 0)) == (0, 0, 4)
    second = folder.with_name("twice_2") / "made_0001.png"
    assert Image.open(second).getpixel((0, 0)) == (0, 0, 3)


def test_cancel_while_saving_leaves_nothing_behind(server: HostServer) -> None:
    pressed: list[int] = []

    def cancel(name: str, data: Any) -> None:
        if name == "progress" and data["max"] == 600 and not pressed:
            pressed.append(data["value"])
            server.interrupt()

    prompt = {
        "empty": empty_image(count=600),
        "made": from_images(["empty", 0], "a wall"),
        "save": save(["made", 0], "cancelled sets/one"),
    }
    result = server.queue(prompt, on_event=cancel)
    assert result.status == "interrupted" and pressed[0] < 600
    assert list((server.base / "output" / "cancelled sets").iterdir()) == []


# Training on it


def mixed(folder: Path) -> None:
    """Pictures of three shapes, one with a mask and two captions, and some of another role."""
    for place, size in enumerate([(64, 64), (96, 48), (128, 64), (48, 96), (64, 64), (100, 60)]):
        path = fill_one(folder / f"{place}.png", size, place)
        path.with_suffix(".txt").write_text(f"shape {place}\nfigure {place}")
    mask = Image.new("L", (96, 48), 255)
    mask.paste(0, (0, 0, 48, 48))
    mask.save(folder / "1.mask.png")


def fill_one(path: Path, size: tuple[int, int], seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def train_fitted(dataset: list, prefix: str) -> Prompt:
    """Buckets of 32 px at two resolutions, random crops, mirroring, batches of two."""
    options = {"resolution": "64, 96", "bucket_reso_steps": "32", "min_bucket_reso": 32}
    prompt = training("", steps=5, prefix=prefix)
    del prompt[DATASET]
    prompt["fit"] = fit(dataset, crop="random", crop_variants=2, flip_aug=True, **options)
    prompt[TRAIN]["inputs"] |= {"dataset": ["fit", 0], "train_batch_size": 2}
    return prompt


def lora(server: HostServer, prefix: str) -> dict[str, np.ndarray]:
    return load_file(server.base / "output" / f"{prefix}_00001_.safetensors")


def test_a_dataset_of_many_shapes_trains_the_same_after_it_was_saved_and_loaded_again(
    server: HostServer,
) -> None:
    mixed(server.base / "input" / "mixed")
    fill_one(server.base / "input" / "class" / "any.png", (80, 64), 9)
    sets = {
        "load": load("mixed", mask="files", validation_fraction=0.2, num_repeats=2),
        "class": load("class", role="regularisation", class_tokens="shape", loss_weight=0.5),
        "both": node(
            "AtelierCombineDatasets", dataset_1=["load", 0], dataset_2=["class", 0], name=""
        ),
    }
    first = Watched(server, {**sets, **train_fitted(["both", 0], "atelier/mixed")})
    assert "for regularisation" in first.text("both") and "for validation" in first.text("both")
    assert "buckets: " in first.text("fit")
    saved = {"save": save(["both", 0], "sets/mixed"), "again": load(["save", 0], mask="files")}
    second = Watched(server, {**sets, **saved, **train_fitted(["again", 0], "atelier/again")})
    assert second.text("again").splitlines()[0] == first.text("both").splitlines()[0]
    before, after = lora(server, "atelier/mixed"), lora(server, "atelier/again")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert any(before[key].any() for key in before if key.endswith("lora_up.weight"))
