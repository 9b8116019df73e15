"""When a run has gone wrong, told from its history alone, so that a resumed run is judged alike.

Three signs, each far outside what a healthy run shows:

- several steps in a row whose loss or gradient is not finite (one alone is passed over: the
  optimizer does not take it);
- a smoothed loss that has climbed to ``CLIMB`` times its lowest value. The loss of single steps
  scatters about as much as it is large; the average over the last ``1 / (1 - DECAY)`` steps
  scatters by a tenth of that, so a factor of 3 is no accident. A run that broke before there was
  such an average is told by its first steps: their mean scatters by a quarter, so it takes 6 times
  that;
- a gradient ``SPIKE`` times as long as usual (the median of the last steps), even before it is
  clipped.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from enum import Enum
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .run import StepRecord

NOT_FINITE_IN_A_ROW = 5
OVERFLOWS_IN_A_ROW = 20
"""With loss scaling: each halves the scale, and the first ten or so are its way to find it."""
DECAY = 0.98
CLIMB = 3.0
SPIKE = 100.0
FIRST, CLIMB_OVER_FIRST = 20, 6.0
"""Steps at the beginning, and how far above their mean the smoothed loss may lie."""
SETTLED = 50
"""Steps before climbs and spikes are looked for."""
GRADIENTS = 100
"""How many of the last gradients tell what is usual."""
GOOD = 1.2
"""Up to so many times its lowest value the smoothed loss counts as undisturbed."""


class OnDivergence(str, Enum):
    """What becomes of a run that has gone wrong."""

    STOP = "stop"
    ROLL_BACK = "roll_back"
    """To the last good state, and on from there at half the rate."""
    IGNORE = "ignore"
    """Only what is not finite ends it."""


class Guard:
    """Looks at one step after another.

    Args:
        history: the steps before.
        scaling: whether losses are scaled (fp16), so that overflows are to be expected.
        ignore: only look for what is not finite.
    """

    def __init__(
        self, history: Iterable[StepRecord] = (), scaling: bool = False, ignore: bool = False
    ) -> None:
        self.scaling, self.ignore = scaling, ignore
        self.steps = 0
        self.skipped = 0
        self._sum = self._weight = 0.0
        self._lowest = math.inf
        self._first = 0.0
        """Mean loss of the first steps."""
        self._gradients: deque[float] = deque(maxlen=GRADIENTS)
        for record in history:
            self.look(record)

    def look(self, record: StepRecord) -> str | None:
        """What is wrong since this step, in words; None while all is well."""
        if record.skipped:
            self.skipped += 1
            return self._row_of_skipped(record)
        self.skipped = 0
        self.steps += 1
        trouble = None if self.ignore else self._spike(record)
        self._gradients.append(record.grad_norm)
        self._sum = DECAY * self._sum + (1 - DECAY) * record.loss
        self._weight = DECAY * self._weight + 1 - DECAY
        if self.steps <= FIRST:
            self._first += record.loss / FIRST
        if self.steps < SETTLED:
            return trouble
        trouble = trouble or (None if self.ignore else self._climb(record))
        self._lowest = min(self._lowest, self.average)
        return trouble

    @property
    def average(self) -> float:
        """The smoothed loss."""
        return self._sum / self._weight if self._weight else math.nan

    @property
    def is_good(self) -> bool:
        """Whether the present state is one to come back to."""
        if self.skipped > 0 or self.steps < SETTLED:
            return self.skipped == 0
        return self.average <= min(GOOD * self._lowest, CLIMB * self._first)

    def _row_of_skipped(self, record: StepRecord) -> str | None:
        limit = OVERFLOWS_IN_A_ROW if self.scaling else NOT_FINITE_IN_A_ROW
        if self.skipped < limit:
            return None
        what = "loss" if not math.isfinite(record.loss) else "gradient"
        return f"{limit} steps in a row had a {what} that is not a finite number"

    def _climb(self, record: StepRecord) -> str | None:
        climbed = f"the smoothed loss has climbed to {self.average:.3g}, which is "
        if self.average > CLIMB * self._lowest:
            times = self.average / self._lowest
            return f"{climbed}{times:.1f} times its lowest value {self._lowest:.3g}"
        if self.average > CLIMB_OVER_FIRST * self._first:
            times = self.average / self._first
            return f"{climbed}{times:.1f} times that of the first {FIRST} steps ({self._first:.3g})"
        return None

    def _spike(self, record: StepRecord) -> str | None:
        if self.steps <= SETTLED:
            return None
        usual = median(self._gradients)
        if usual == 0 or record.grad_norm <= SPIKE * usual:
            return None
        return (
            f"the gradient was {record.grad_norm:.3g} long, {record.grad_norm / usual:.0f} times "
            f"as long as usual ({usual:.3g})"
        )
