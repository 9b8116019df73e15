"""The loss curve and its moving average."""

from __future__ import annotations

import math

import pytest
import torch

from lora_atelier.training.errors import AtelierError
from lora_atelier.training.results.loss_chart import (
    EMA_DECAY,
    GRADIENT,
    RATE,
    VALIDATION,
    draw_loss_chart,
    smoothed,
)
from lora_atelier.training.results.loss_history import LossHistory


def test_the_moving_average_is_corrected_for_its_start() -> None:
    """Decay 0.9: 0.1·4 / 0.1; (0.9·0.1·4 + 0.1·2) / 0.19; (0.81·0.4 + 0.9·0.2 + 0.1·6) / 0.271."""
    assert smoothed([4, 2, 6], decay=0.9) == pytest.approx([4, 0.56 / 0.19, 1.104 / 0.271])


def test_a_flat_loss_has_a_flat_average() -> None:
    assert smoothed([0.25] * 200) == pytest.approx([0.25] * 200)


def test_the_average_spans_about_fifty_steps() -> None:
    assert 1 / (1 - EMA_DECAY) == pytest.approx(50)


@pytest.mark.parametrize("size", [(960, 540), (400, 300), (501, 333)])
def test_the_picture_has_the_size_that_was_asked_for(size: tuple[int, int]) -> None:
    chart = draw_loss_chart([0.3, 0.2, 0.25], size=size)
    assert chart.shape == (size[1], size[0], 3)
    assert chart.dtype == torch.float32
    assert 0 <= chart.min() < 0.5  # letters
    assert chart.max() == 1  # ground


def _average_line(chart: torch.Tensor) -> torch.Tensor:
    """Where the strong line is: [N, 2] row and column of its pixels, legend left out."""
    red = (chart - torch.tensor([0xD1, 0x49, 0x5B]) / 255).abs().amax(dim=2) < 0.02
    red[chart.shape[0] * 9 // 10 :] = False
    return red.nonzero()


def test_a_falling_loss_is_drawn_falling() -> None:
    line = _average_line(draw_loss_chart([1 - i / 100 for i in range(100)]))
    left = line[line[:, 1] < 300][:, 0].float().mean()
    right = line[line[:, 1] > 600][:, 0].float().mean()
    assert right > left + 50  # rows count downward


@pytest.mark.parametrize("losses", [[0.5], [0.0, 0.0], [0.3, math.nan, 0.2], [math.nan] * 3])
def test_odd_losses_are_drawn(losses: list[float]) -> None:
    chart = draw_loss_chart(losses)
    assert chart.isfinite().all()
    assert chart.min() < 0.5


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_one_broken_step_does_not_hide_the_others(broken: float) -> None:
    line = _average_line(draw_loss_chart([0.5] * 10 + [broken] + [0.5] * 89))
    assert (line[:, 1] > 600).any()


def test_a_map_without_steps_is_refused() -> None:
    with pytest.raises(AtelierError, match="loss_map: there are no steps"):
        draw_loss_chart([])


def _places(chart: torch.Tensor, colour: str) -> torch.Tensor:
    """[N, 2] row and column of the pixels of a colour, legend left out."""
    rgb = torch.tensor([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    found = (chart - rgb).abs().amax(dim=2) < 0.02
    found[chart.shape[0] * 85 // 100 :] = False
    return found.nonzero().float()


def _history(**series: object) -> LossHistory:
    return LossHistory((0.5,) * 100, **series)


@pytest.mark.parametrize(
    ("colour", "series"),
    [
        (VALIDATION, {"validation": ((0, 0.5), (50, 0.5), (100, 0.5))}),
        (RATE, {"learning_rate": (1e-4,) * 100}),
        (GRADIENT, {"grad_norm": (0.1,) * 100}),
    ],
)
def test_what_a_run_recorded_is_drawn_and_nothing_else(colour: str, series: dict) -> None:
    assert len(_places(draw_loss_chart(_history(**series)), colour)) > 200
    assert len(_places(draw_loss_chart(_history()), colour)) == 0


def test_the_validation_loss_and_that_of_the_base_share_the_axis_of_the_loss() -> None:
    """A validation loss that rises from the training loss up to the base's, which is level."""
    points = tuple((step, 0.5 + step / 200) for step in range(0, 101, 10))
    places = _places(draw_loss_chart(_history(validation=points, base=1.0)), VALIDATION)
    start = places[(places[:, 1] > 80) & (places[:, 1] < 90)]
    end = places[places[:, 1] > places[:, 1].max() - 10]
    assert start[:, 0].max() - start[:, 0].min() > 150  # the line below, the base's above
    assert start[:, 0].min() == pytest.approx(end[:, 0].min(), abs=8)


def test_a_rate_that_falls_is_drawn_falling_whatever_the_loss_does() -> None:
    rates = tuple(1e-4 * (1 - i / 100) for i in range(100))
    places = _places(draw_loss_chart(_history(learning_rate=rates)), RATE)
    line = places[places[:, 1] < 850]  # the numbers of its axis stand at the right
    left, right = (line[near][:, 0].mean() for near in (line[:, 1] < 250, line[:, 1] > 700))
    assert right > left + 100


def test_a_loss_over_several_decades_gets_a_logarithmic_scale() -> None:
    """There an exponential fall is straight."""
    line = _average_line(draw_loss_chart([10.0 * 10 ** (-i / 100) for i in range(400)])).float()
    left, middle, right = (
        line[(line[:, 1] > x) & (line[:, 1] < x + 20)][:, 0].mean() for x in (300, 550, 800)
    )
    assert middle == pytest.approx(float(left + right) / 2, abs=6)
    assert right > left + 100
