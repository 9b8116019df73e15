"""Likeness to reference pictures: of drawings of the same subjects in other styles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_atelier.training.cache import TensorCache
from lora_atelier.training.curation.reference import (
    Features,
    Likeness,
    common_side,
    features_of,
    likeness,
)
from lora_atelier.training.curation.scores import outliers_of
from lora_atelier.training.curation.style_features import Aspect, style_features
from lora_atelier.training.dataset.digests import ContentDigests
from lora_atelier.training.dataset.pictures import ImageFile, ImagePixels

IMAGES = Path(__file__).resolve().parents[3] / "demo" / "images"
FOLDERS = {"glossy": "glossy", "flat": "other/flat", "noto": "other/noto", "ink": "other/ink"}
REFERENCES, DRAWS = 8, 10

Style = list[Features]


def measured(style: str, change: Callable[[np.ndarray], np.ndarray] = lambda p: p) -> Style:
    """Features of all drawings of a style, by subject."""
    files = sorted((IMAGES / FOLDERS[style]).rglob("*.png"), key=lambda path: path.name)
    return [style_features(change(np.asarray(Image.open(f).convert("RGB")))) for f in files]


@pytest.fixture(scope="module")
def styles() -> dict[str, Style]:
    return {style: measured(style) for style in FOLDERS}


def areas_under_curve(wanted: Style, others: Style) -> list[float]:
    """For random references of a style, the chance that another picture of it is more like them
    than one of the others is."""
    found = []
    for draw in range(DRAWS):
        order = np.random.default_rng(draw).permutation(len(wanted))
        references = [wanted[i] for i in order[:REFERENCES]]
        rest = [wanted[i] for i in order[REFERENCES:]]
        values = np.array([one.similarity for one in likeness(references, [*rest, *others])])
        found.append(float((values[: len(rest), None] > values[len(rest) :]).mean()))
    return found


@pytest.mark.parametrize(
    ("style", "usual", "least"),
    [("glossy", 0.99, 0.98), ("ink", 0.99, 0.99), ("flat", 0.89, 0.84), ("noto", 0.89, 0.84)],
)
def test_the_style_of_eight_references_is_told_from_the_same_subjects_in_three_others(
    styles: dict[str, Style], style: str, usual: float, least: float
) -> None:
    """flat and noto are both flat drawings, and are hard to tell apart."""
    others = [f for name, features in styles.items() if name != style for f in features]
    areas = areas_under_curve(styles[style], others)
    assert np.mean(areas) >= usual
    assert min(areas) >= least


def test_a_warm_paper_is_a_style_too(styles: dict[str, Style]) -> None:
    """Colour alone: the same drawings, tinted."""
    tinted = measured("glossy", lambda p: (p * np.array([1, 0.92, 0.8])).astype(np.uint8))
    assert np.mean(areas_under_curve(tinted, styles["glossy"])) >= 0.93


def test_strangers_stand_out_and_the_others_do_not(styles: dict[str, Style]) -> None:
    ink, glossy = styles["ink"], styles["glossy"]
    found = likeness(ink[:REFERENCES], [*ink[REFERENCES:], *glossy[:3]])
    outliers = outliers_of([-one.distance for one in found])
    assert all(outliers[-3:])
    assert sum(outliers[:-3]) <= 2


def test_the_formula_by_hand() -> None:
    """One number an aspect but COLOUR's two; all that varies is that one."""

    def picture(value: float, other: float = 0.0) -> Features:
        numbers = {aspect: np.zeros(1, np.float32) for aspect in Aspect}
        numbers[Aspect.COLOUR] = np.array([value, other], np.float32)
        return numbers

    references, pictures = [picture(1), picture(3)], [picture(2), picture(10), picture(4)]
    everything = np.array([1.0, 3, 2, 10, 4])
    unit = (everything - everything.mean()) / everything.std()
    wanted, others = unit[:2], unit[2:]
    m = wanted.mean()
    v = (np.square(wanted - m).sum() + 2) / 3
    distance = np.square(others - m) / v
    score = 4 * 2 / 6 * others * m / (1 + 3) - distance  # one weight of 1; C = 1
    gap = score - np.median(score)
    similarity = (1 + gap / (np.median(np.abs(gap)) + np.abs(gap))) / 2
    found = likeness(references, pictures)
    assert [one.distance for one in found] == pytest.approx(np.sqrt(distance))
    assert [one.similarity for one in found] == pytest.approx(similarity)
    assert sorted(range(3), key=lambda i: -found[i].similarity) == [0, 2, 1]


def test_a_number_on_which_the_references_agree_counts_more() -> None:
    rng = np.random.default_rng(0)

    def picture(agreed: float, mixed: float) -> Features:
        numbers = {aspect: np.zeros(1, np.float32) for aspect in Aspect}
        numbers[Aspect.TEXTURE] = np.array([agreed], np.float32)
        numbers[Aspect.COLOUR] = np.array([mixed], np.float32)
        return numbers

    references = [picture(1 + 0.02 * rng.normal(), rng.normal()) for _ in range(8)]
    crowd = [picture(rng.normal(), rng.normal()) for _ in range(40)]
    *_, odd_colour, odd_texture = likeness(references, [*crowd, picture(1, 2), picture(-1, 0)])
    assert odd_colour.similarity > 0.7 > 0.4 > odd_texture.similarity


def test_pictures_without_any_difference_are_all_in_the_middle(styles: dict[str, Style]) -> None:
    one = styles["ink"][0]
    assert likeness([one], [one, None, one]) == [Likeness(0.5, 0.0), None, Likeness(0.5, 0.0)]
    assert likeness([one], [None]) == [None]


def test_one_reference_is_enough_for_a_number_and_itself_comes_first(
    styles: dict[str, Style],
) -> None:
    pictures = [*styles["flat"][:10], *styles["ink"][:10]]
    found = likeness(pictures[:1], pictures)
    assert all(0 < one.similarity < 1 for one in found)
    assert max(range(20), key=lambda i: found[i].similarity) == 0
    assert found[0].distance == pytest.approx(0)


def file_of(*size: int) -> ImageFile:
    return ImageFile("/x.png", size)


@pytest.mark.parametrize(
    ("references", "pictures", "side"),
    [
        ([(512, 700)], [(1024, 1024)] * 5, 256),
        ([(130, 90)], [(1024, 1024)] * 5, 128),
        ([(512, 512)], [(20, 255)] * 5, 128),
        ([(512, 512)], [(40, 40)] + [(600, 600)] * 19, 256),  # an odd one does not count
        ([(512, 512)], [(40, 40)] * 3 + [(600, 600)] * 17, 64),
        ([(512, 512)], [], 256),
    ],
)
def test_both_kinds_are_measured_at_a_side_that_nearly_all_have(
    references: list[tuple[int, int]], pictures: list[tuple[int, int]], side: int
) -> None:
    files = ([file_of(*size) for size in kind] for kind in (references, pictures))
    assert common_side(*files) == side


def test_a_large_picture_and_its_small_copy_are_measured_alike(tmp_path: Path) -> None:
    """The reference is 128 px, as those of other programs may be; the pictures 512."""
    small = Image.open(sorted((IMAGES / "other/flat").glob("*.png"))[5]).convert("RGB")
    large = small.resize((512, 512), Image.Resampling.LANCZOS)
    kinds = [ImagePixels(np.asarray(image)) for image in (small, large)]
    side = common_side(kinds[:1], kinds[1:])
    digests, cache = ContentDigests(tmp_path), TensorCache(tmp_path)
    ticks: list[None] = []
    first, nothing, second = features_of(
        [kinds[0], None, kinds[1]], side, digests, cache, lambda: ticks.append(None)
    )
    assert nothing is None and len(ticks) == 3
    apart = [np.abs(first[a] - second[a]).max() for a in (Aspect.PALETTE, Aspect.TEXTURE)]
    assert max(apart) < 0.25


def test_another_side_is_measured_anew(tmp_path: Path) -> None:
    picture = [ImagePixels(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))]
    digests, cache = ContentDigests(tmp_path), TensorCache(tmp_path)
    found = [features_of(picture, side, digests, cache, lambda: None)[0] for side in (128, 64, 128)]
    assert (found[0][Aspect.EDGES] == found[2][Aspect.EDGES]).all()
    assert (found[0][Aspect.EDGES] != found[1][Aspect.EDGES]).any()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_cancel_keeps_what_is_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [ImagePixels(rng.integers(0, 256, (70, 70, 3), np.uint8)) for _ in range(6)]
    ticks = iter(range(6))

    def cancel() -> None:
        if next(ticks) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        features_of(pictures, 64, ContentDigests(tmp_path), TensorCache(tmp_path), cancel)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4
