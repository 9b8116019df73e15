"""How far apart embeddings lie."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lora_atelier.training.dataset import spread
from lora_atelier.training.dataset.spread import spread_of


def embeddings(count: int, width: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def similarities(rows: Tensor) -> dict[tuple[int, int], float]:
    """Of all pairs, one by one."""
    return {
        (i, j): float(torch.cosine_similarity(rows[i].double(), rows[j].double(), dim=0))
        for i in range(len(rows))
        for j in range(i + 1, len(rows))
    }


@pytest.mark.parametrize("count", [2, 3, 10, 37])
def test_the_spread_and_the_pairs_are_those_of_comparing_all(count: int, monkeypatch) -> None:
    monkeypatch.setattr(spread, "BLOCK", 8)  # several blocks, the last one short
    rows = embeddings(count)
    pairs = similarities(rows)
    found = spread_of(rows, most=4)
    assert found is not None
    assert found.spread == pytest.approx(1 - sum(pairs.values()) / len(pairs), abs=1e-6)
    best = sorted(pairs, key=pairs.__getitem__, reverse=True)[:4]
    assert [(i, j) for i, j, _ in found.alike] == best
    for i, j, value in found.alike:
        assert value == pytest.approx(pairs[i, j], abs=1e-6)


def test_length_does_not_matter() -> None:
    rows = embeddings(9)
    scaled = rows * torch.arange(1, 10)[:, None]
    assert spread_of(scaled).spread == pytest.approx(spread_of(rows).spread, abs=1e-6)


def test_equal_pictures_have_no_spread_and_opposite_ones_all_of_it() -> None:
    row = embeddings(1)
    assert spread_of(row.repeat(5, 1)).spread == pytest.approx(0, abs=1e-6)
    assert spread_of(torch.cat([row, -row])).spread == pytest.approx(2, abs=1e-6)


def test_the_picture_that_stands_apart_is_named_first() -> None:
    rows = embeddings(1).repeat(20, 1) + 0.1 * embeddings(20, seed=1)
    rows[13] = -rows[13]
    found = spread_of(rows, most=3)
    assert found.outliers[0][0] == 13
    assert found.outliers[0][1] < -0.9 < 0.9 < found.outliers[1][1]


def test_one_picture_has_no_spread() -> None:
    assert spread_of(embeddings(1)) is None


def test_of_very_many_pictures_every_nth_is_compared(monkeypatch) -> None:
    monkeypatch.setattr(spread, "MOST_COMPARED", 10)
    rows = embeddings(25)
    rows[24] = rows[21]  # both are among every third
    found = spread_of(rows, most=1)
    assert found.compared == 9
    assert found.alike[0][:2] == (21, 24)
    whole = 1 - sum(similarities(rows).values()) / (25 * 12)
    assert found.spread == pytest.approx(whole, abs=1e-6)  # exact all the same


def test_it_can_be_cancelled() -> None:
    def cancel() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spread_of(embeddings(3), tick=cancel)
