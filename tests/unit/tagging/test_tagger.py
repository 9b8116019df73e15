"""The session: models that can be worked out by hand, and models that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.tagging.tag_table import read_tag_table
from lora_atelier.training.tagging.tagger import Tagger, tagger_files, tagger_input
from taggers import COLOUR_TAGS, colour_tagger, write_table

ORANGE = (255, 128, 0)


def opened(folder: Path) -> Tagger:
    files = tagger_files(folder)
    assert files is not None
    return Tagger(files, read_tag_table(files.table))


def plain(colour: tuple[int, ...], size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour)


def test_a_picture_arrives_as_blue_green_red_from_0_to_255(tmp_path: Path) -> None:
    with opened(colour_tagger(tmp_path)) as tagger:
        assert (tagger.size, tagger.device, tagger.notes) == (8, "CPU", [])
        given = tagger_input(plain(ORANGE), tagger.size)
        assert given.shape == (8, 8, 3) and given.dtype == np.uint8
        found = tagger.probabilities([given, np.zeros_like(given)])
    np.testing.assert_allclose(found, [[0, 128 / 255, 1], [0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize(("size", "top", "left"), [((40, 20), 2, 0), ((20, 40), 0, 2)])
def test_a_picture_lies_whole_in_the_middle_of_a_white_square(
    size: tuple[int, int], top: int, left: int
) -> None:
    square = tagger_input(plain(ORANGE, size), 8)
    inside = np.zeros((8, 8), bool)
    inside[top : 8 - top, left : 8 - left] = True
    assert (square[inside] == ORANGE[::-1]).all() and (square[~inside] == 255).all()


def test_what_is_transparent_is_white() -> None:
    assert (tagger_input(plain((0, 0, 0, 0)), 8) == 255).all()
    half = tagger_input(plain((0, 0, 0, 128)), 8)
    assert np.abs(half.astype(int) - 127).max() <= 1


def test_a_strip_needs_no_square_of_its_length() -> None:
    square = tagger_input(plain(ORANGE, (1, 30_000)), 8)
    assert (square == ORANGE[::-1]).all(axis=2).sum() == 8


def test_a_small_picture_is_scaled_up() -> None:
    assert (tagger_input(plain(ORANGE, (2, 2)), 8) == ORANGE[::-1]).all()


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_batches_of_a_fixed_size_are_filled_up(tmp_path: Path, batch: int | None) -> None:
    pictures = [np.full((8, 8, 3), 50.0 * i, np.float32) for i in range(batch or 2)]
    with opened(colour_tagger(tmp_path, batch=batch)) as tagger:
        assert tagger.batch == (batch or 4)
        for count in range(1, len(pictures) + 1):
            found = tagger.probabilities(pictures[:count])
            wanted = [[50 * i / 255] * 3 for i in range(count)]
            np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_model_is_any_single_onnx_or_model_onnx(tmp_path: Path) -> None:
    assert tagger_files(tmp_path) is None
    write_table(tmp_path / "selected_tags.csv", COLOUR_TAGS)
    assert tagger_files(tmp_path) is None
    colour_tagger(tmp_path)
    (tmp_path / "model.onnx").rename(tmp_path / "vit.onnx")
    files = tagger_files(tmp_path)
    assert files is not None and (files.model.name, files.name) == ("vit.onnx", tmp_path.name)
    (tmp_path / "other.onnx").write_bytes(b"")
    with pytest.raises(AtelierError, match="holds 2 ONNX models: other.onnx, vit.onnx"):
        tagger_files(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"")
    assert tagger_files(tmp_path).model.name == "model.onnx"
    (tmp_path / "selected_tags.csv").unlink()
    assert tagger_files(tmp_path) is None


def test_colours_first_are_refused(tmp_path: Path) -> None:
    folder = colour_tagger(tmp_path, shape=("N", 3, 8, 8))
    with pytest.raises(AtelierError, match="three colours last.*This one has them first"):
        opened(folder)


@pytest.mark.parametrize(
    "shape", [("N", 8, 8, 4), ("N", 8, 6, 3), ("N", "H", "W", 3), ("N", 8, 8)], ids=str
)
def test_other_inputs_are_refused(tmp_path: Path, shape: tuple[int | str, ...]) -> None:
    folder = colour_tagger(tmp_path, shape=shape)
    with pytest.raises(AtelierError, match=r"takes input \[.*\] tensor\(float\), but a tagger"):
        opened(folder)


def test_a_table_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = colour_tagger(tmp_path)
    write_table(folder / "selected_tags.csv", COLOUR_TAGS[:2])
    with pytest.raises(AtelierError, match='gives 3 numbers a picture, but ".*csv" names 2 tags'):
        opened(folder)
    folder = colour_tagger(tmp_path, says_outputs=False)
    write_table(folder / "selected_tags.csv", COLOUR_TAGS[:2])
    with opened(folder) as tagger, pytest.raises(AtelierError, match="gives 3 numbers.* names 2"):
        tagger.probabilities([np.zeros((8, 8, 3), np.float32)])


@pytest.mark.parametrize("scale", [1.0, -1 / 255, float("nan")])
def test_numbers_that_are_no_probabilities_are_refused(tmp_path: Path, scale: float) -> None:
    with opened(colour_tagger(tmp_path, scale=scale)) as tagger:
        with pytest.raises(AtelierError, match="not probabilities"):
            tagger.probabilities([np.full((8, 8, 3), 200, np.float32)])


@pytest.mark.parametrize("content", [b"", b"no model at all", None])
def test_a_broken_model_is_told(tmp_path: Path, content: bytes | None) -> None:
    folder = colour_tagger(tmp_path)
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(AtelierError, match='model.onnx" cannot be opened as an ONNX model'):
        opened(folder)


def test_a_gpu_that_cannot_be_used_is_told_and_the_cpu_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This ONNX Runtime says that it has CUDA, and takes the CPU in its place when asked."""
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    with opened(colour_tagger(tmp_path)) as tagger:
        assert tagger.device == "CPU"
        assert [note.startswith("CUDA could not be used") for note in tagger.notes] == [True]
        assert tagger.probabilities([np.zeros((8, 8, 3), np.float32)]).shape == (1, 3)
