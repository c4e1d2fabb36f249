"""How long solving may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class Budget:
    """Processor time that may be spent, asked for between the steps of a solve.

    It is the time of the calling thread, which other work on the machine does not use up: a busy
    machine gives the answers of a quiet one.
    """

    def __init__(
        self,
        seconds: float = math.inf,
        clock: Callable[[], float] = time.thread_time,
        whole: Budget | None = None,
    ) -> None:
        """Start now.

        Args:
            seconds: How much may be spent.
            clock: Reads the seconds spent so far.
            whole: Budget that this one is a part of.
        """
        self.seconds = seconds
        self.cut_short = False
        self._clock = clock
        self._end = clock() + seconds
        self._whole = whole

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._end - self._clock())

    def part(self, seconds: float) -> Budget:
        """Set some of what is left aside for one of several tasks."""
        return Budget(min(seconds, self.left), self._clock, self)

    def used_up(self) -> bool:
        """Tell whether to stop here; where it is so, ``cut_short`` says from then on."""
        if self.left > 0:
            return False
        budget: Budget | None = self
        while budget is not None:
            budget.cut_short = True
            budget = budget._whole
        return True
