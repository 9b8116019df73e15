"""The node's bar: Cancel is seen at every step of it, also where the host sends no news."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import pytest
from PIL import Image

from lora_atelier.training.host.progress import HostProgress, cancel, raise_if_cancelled

Move = Callable[[HostProgress], None]
MOVES: dict[str, Move] = {
    "update": lambda bar: bar.update(3),
    "tick": lambda bar: bar.tick(),
    "show": lambda bar: bar.show(Image.new("RGB", (8, 8))),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_every_call_sees_a_press_on_cancel(move: Move) -> None:
    bar = HostProgress(1000)
    bar.update(1)
    bar.update(2)  # right after the first, and a small part of the whole: not told by every host
    cancel()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        move(bar)
    raise_if_cancelled()  # the press is used up: the next run is not cancelled by it
    move(bar)
