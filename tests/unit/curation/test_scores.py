"""Scores of real pictures, duplicates among them, and who stands out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from lora_atelier.training.cache import TensorCache
from lora_atelier.training.curation.scores import (
    DatasetScores,
    Score,
    outliers_of,
    score_dataset,
)
from lora_atelier.training.dataset.digests import ContentDigests
from lora_atelier.training.dataset.pictures import ImageFile
from lora_atelier.training.dataset.samples import ImageDataset, Role, Sample

ROOT = Path(__file__).resolve().parents[3]
IMAGES = ROOT / "demo" / "images"
SUBJECTS = sorted(path.stem for path in (IMAGES / "other" / "flat").glob("*.png"))
STYLES = ("glossy", "flat", "ink", "noto")


def picture(path: Path) -> ImageFile:
    with Image.open(path) as image:
        return ImageFile(str(path), image.size)


def in_style(style: str, subject: str) -> ImageFile:
    folder = IMAGES / "glossy" if style == "glossy" else IMAGES / "other" / style
    return picture(next(folder.rglob(f"{subject}.png")))


def scored(
    tmp_path: Path,
    samples: Sequence[Sample],
    reference: Sequence[ImageFile] = (),
    **options: object,
) -> DatasetScores:
    digests, cache = ContentDigests(tmp_path), TensorCache(tmp_path / "cache")
    dataset = ImageDataset(tuple(samples))
    return score_dataset(dataset, digests, cache, lambda: None, reference, **options)


def samples_of(style: str, subjects: Sequence[str]) -> list[Sample]:
    return [Sample(in_style(style, subject), f"{style}/{subject}.png") for subject in subjects]


def area_under_curve(values: Sequence[float], wanted: Sequence[bool]) -> float:
    """Chance that a wanted one has the higher value (Mann-Whitney's U / mn)."""
    values, wanted = np.asarray(values), np.asarray(wanted)
    return float((values[wanted][:, None] > values[~wanted]).mean())


@pytest.mark.parametrize(
    ("style", "least"), [("glossy", 0.98), ("ink", 0.98), ("flat", 0.85), ("noto", 0.85)]
)
def test_pictures_of_the_style_of_the_references_come_first(
    tmp_path: Path, style: str, least: float
) -> None:
    """The same subjects in four styles, two of which (flat and noto) hardly differ."""
    reference = [in_style(style, subject) for subject in SUBJECTS[:8]]
    samples = [s for name in STYLES for s in samples_of(name, SUBJECTS[8:])]
    values = scored(tmp_path, samples, reference).values[Score.REFERENCE]
    assert min(values) > 0 and max(values) <= 1
    assert area_under_curve(values, [s.name.startswith(style) for s in samples]) >= least


def test_a_blurred_picture_is_less_sharp_and_a_blank_one_least(tmp_path: Path) -> None:
    with Image.open(in_style("flat", SUBJECTS[0]).path) as image:
        sharp = image.convert("RGB")
    files = {"sharp": sharp, "soft": sharp.filter(ImageFilter.GaussianBlur(3))}
    files["blank"] = Image.new("RGB", sharp.size, "white")
    for name, image in files.items():
        image.save(tmp_path / f"{name}.png")
    samples = [Sample(picture(tmp_path / f"{name}.png"), name) for name in files]
    first, second, third = scored(tmp_path, samples).values[Score.SHARPNESS]
    assert first > 2 * second > 0 == third


def test_near_duplicates_share_a_group_within_their_role(tmp_path: Path) -> None:
    original = in_style("flat", SUBJECTS[0])
    with Image.open(original.path) as image:
        image.convert("RGB").resize((200, 200)).save(tmp_path / "small.jpg", quality=80)
    copy = Sample(picture(tmp_path / "small.jpg"), "copy")
    other = Sample(in_style("flat", SUBJECTS[1]), "other")
    held_out = replace(copy, name="held out", role=Role.VALIDATION)
    scores = scored(tmp_path, [Sample(original, "original"), other, copy, held_out])
    assert scores.groups == (0, None, 0, None)


def test_blank_pictures_are_duplicates_only_if_they_are_the_same_file(tmp_path: Path) -> None:
    for name, colour in (("a", "white"), ("b", "white"), ("c", "black")):
        Image.new("RGB", (80, 80), colour).save(tmp_path / f"{name}.png")
    samples = [Sample(picture(tmp_path / f"{name}.png"), name) for name in "abc"]
    assert scored(tmp_path, samples).groups == (0, 0, None)


def test_without_an_encoder_those_unlike_the_references_are_outliers(tmp_path: Path) -> None:
    reference = [in_style("ink", subject) for subject in SUBJECTS[:8]]
    samples = [*samples_of("ink", SUBJECTS[8:40]), *samples_of("glossy", SUBJECTS[40:42])]
    scores = scored(tmp_path, samples, reference)
    assert all(scores.outliers[-2:])
    assert sum(scores.outliers[:-2]) <= 2
    assert not any(scored(tmp_path, samples).outliers)  # nothing to compare with


def test_regularisation_pictures_are_no_outliers_for_being_of_another_kind(
    tmp_path: Path,
) -> None:
    reference = [in_style("ink", subject) for subject in SUBJECTS[:8]]
    others = [replace(s, role=Role.REGULARISATION) for s in samples_of("glossy", SUBJECTS[40:46])]
    scores = scored(tmp_path, [*samples_of("ink", SUBJECTS[8:40]), *others], reference)
    assert not any(scores.outliers[-6:])


def test_it_ticks_as_often_as_it_says(tmp_path: Path) -> None:
    """Once a picture, and with references once more a picture and once a reference."""
    dataset = ImageDataset(tuple(samples_of("flat", SUBJECTS[:5])))
    ticks: list[None] = []
    for reference, expected in (((), 5), ([in_style("ink", SUBJECTS[0])] * 3, 13)):
        ticks.clear()
        score_dataset(
            dataset,
            ContentDigests(tmp_path),
            TensorCache(tmp_path / "cache"),
            lambda: ticks.append(None),
            reference,
        )
        assert len(ticks) == expected


def test_a_broken_picture_has_no_scores_and_a_reason(tmp_path: Path) -> None:
    good = samples_of("flat", SUBJECTS[:3])
    (tmp_path / "broken.png").write_bytes(Path(good[0].image.path).read_bytes()[:300])
    broken = Sample(ImageFile(str(tmp_path / "broken.png"), good[0].image.size), "broken.png")
    reference = [in_style("flat", subject) for subject in SUBJECTS[3:6]]
    embed = _grey_levels
    scores = scored(tmp_path, [good[0], broken, *good[1:]], reference, embed=embed)
    assert {score: [v is None for v in values] for score, values in scores.values.items()} == (
        dict.fromkeys((Score.SHARPNESS, Score.REFERENCE, Score.CLIP), [False, True, False, False])
    )
    assert [problem.name for problem in scores.problems] == ["broken.png"]


def test_measured_once_and_then_read_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_of("ink", SUBJECTS[:6])
    reference = [in_style("ink", subject) for subject in SUBJECTS[6:9]]
    first = scored(tmp_path, samples, reference)

    def opened(*_: object) -> None:
        raise AssertionError("a picture was opened again")

    for module in ("dataset.analysis", "curation.reference"):
        monkeypatch.setattr(f"lora_atelier.training.{module}.open_picture", opened)
    assert scored(tmp_path, samples, reference) == first


def _grey_levels(samples: Sequence[Sample]) -> Tensor:
    """A simple image encoder: the picture at 8×8 px, in grey, around its middle."""
    rows = []
    for sample in samples:
        with Image.open(sample.image.path) as image:
            small = image.convert("L").resize((8, 8))
        rows.append(torch.from_numpy(np.asarray(small, np.float32).reshape(-1).copy()))
    vectors = torch.stack(rows)
    return vectors - 127.5


def test_clip_similarity_is_the_cosine_to_the_mean_of_the_references(tmp_path: Path) -> None:
    samples = samples_of("flat", SUBJECTS[:5])
    reference = [in_style("flat", subject) for subject in SUBJECTS[5:8]]
    values = scored(tmp_path, samples, reference, embed=_grey_levels).values[Score.CLIP]
    wanted = _grey_levels([Sample(image, "") for image in reference]).numpy()
    centre = (wanted / np.linalg.norm(wanted, axis=1, keepdims=True)).mean(axis=0)
    vectors = _grey_levels(samples).numpy()
    cosine = vectors @ centre / np.linalg.norm(vectors, axis=1) / np.linalg.norm(centre)
    assert values == pytest.approx(cosine, abs=1e-6)


def test_a_stranger_among_many_is_an_outlier_without_any_reference(tmp_path: Path) -> None:
    ones = torch.ones(20, 6) + 0.05 * torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    ones[7] = torch.tensor([1.0, -1, 1, -1, 1, -1])
    scores = scored(tmp_path, samples_of("flat", SUBJECTS[:20]), embed=lambda samples: ones)
    assert [i for i, outlier in enumerate(scores.outliers) if outlier] == [7]


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ((0.5, 0.51, 0.49, 0.5, 0.52, 0.1), [5]),
        ((0.5, 0.51, 0.49, 0.5, 0.52, 0.9), []),  # more alike than the others is no fault
        ((0.5, 0.51, None, 0.49, 0.5, 0.1), [5]),
        ((0.5, 0.5, 0.5, 0.1), []),  # too few to say
        ((0.5,) * 6, []),
        ((None,) * 6, []),
    ],
)
def test_outliers_are_those_far_below_the_middle(
    values: tuple[float | None, ...], places: list[int]
) -> None:
    assert [i for i, outlier in enumerate(outliers_of(values)) if outlier] == places
