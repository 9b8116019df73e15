"""The Loss Chart node: what it takes from Train LoRA or a core node, and what it gives."""

from __future__ import annotations

import math

import torch

from widget_runs import call

LOSSES = [0.3 * math.exp(-i / 200) + 0.01 * (i % 7) for i in range(200)]


def test_it_gives_a_picture_and_the_verdict_and_shows_both() -> None:
    chart, verdict = call("AtelierLossChart", {"title": ""}, loss_map={"loss": LOSSES})
    assert chart.shape == (1, 540, 960, 3)
    assert verdict.startswith("Verdict: still falling")
    assert "validation_fraction" in verdict


def test_it_takes_the_losses_of_core_as_tensors() -> None:
    tensors = [torch.tensor(loss) for loss in LOSSES]
    (_, own), (_, core) = (
        call("AtelierLossChart", {"title": ""}, loss_map={"loss": losses})
        for losses in (LOSSES, tensors)
    )
    assert core == own


def test_more_series_in_the_map_change_chart_and_verdict() -> None:
    plain, _ = call("AtelierLossChart", {"title": "a"}, loss_map={"loss": LOSSES})
    points = [[20 * i, 0.1 + 0.01 * abs(i - 3), 0.13] for i in range(9)]
    loss_map = {"loss": LOSSES, "learning_rate": [1e-4] * 200, "validation": points}
    chart, verdict = call("AtelierLossChart", {"title": "a"}, loss_map=loss_map)
    assert not torch.equal(chart, plain)
    assert verdict.startswith("Verdict: overfitting")
    assert "lowest at step 60" in verdict and "unet_lr 0.0001" in verdict
