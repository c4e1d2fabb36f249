"""What the error of a layer does to the model, and how much of it all may do together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# What is lost in the noise of a measurement counts as this part of the budget: a larger error is
# never better.
LEAST = 0.01
# Layers are off by less once they are refined, so that more is tried at first.
HOPE = 2.0
# Aim this far below the limit, so that the next choice holds.
CARE = 0.95
BOLDEST = 4.0
# Allowances that are this close give no other choice, and no sum of effects is larger than this.
CLOSE, MOST = 1.02, 1e4


@dataclass(frozen=True)
class Effect:
    """Part of the budget that a layer takes, as its square error times a rate.

    Attributes:
        rates: Rates measured at some errors, from the smallest error to the largest.
    """

    rates: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, measured: Sequence[tuple[float, float]]) -> Effect:
        """Read the rates off measurements.

        Args:
            measured: Errors of the layer alone, each with the part of the budget that it took.
        """
        rates, least = [], LEAST
        for error, part in sorted(pair for pair in measured if pair[0] > 0):
            least = max(least, part)
            rates.append((error, least / error**2))
        return cls(tuple(rates))

    def part(self, error: float) -> float:
        """Part of the budget that an error takes; between two measurements by interpolation."""
        if not self.rates or error <= 0:
            return 0.0
        below = [rate for rate in self.rates if rate[0] <= error]
        above = [rate for rate in self.rates if rate[0] > error]
        if not below or not above:
            return error**2 * (self.rates[0] if not below else self.rates[-1])[1]
        (low, first), (high, last) = below[-1], above[0]
        if math.isinf(last):
            return math.inf if error > low else error**2 * first
        share = math.log(error / low) / math.log(high / low)
        return error**2 * math.exp((1 - share) * math.log(first) + share * math.log(last))


def proportional(parts: Sequence[float], squares: Sequence[float]) -> list[float]:
    """Parts of the budget that follow the square errors of the model's output.

    What a user measures says how much may be spent, but little of how to share it: a layer that is
    off may by chance come closer to the truth, which is soon trained away. On SRCNN a layer that
    makes up a third of the output's error took nothing of the budget in PSNR.

    Args:
        parts: Parts of the budget as measured.
        squares: Square errors of the output, in the same order.

    Returns:
        The square errors in parts of the budget, as many as measured in all; the parts themselves
        where the errors of the output say nothing.
    """
    seen = [(part, square) for part, square in zip(parts, squares, strict=True) if part < math.inf]
    total = math.fsum(square for _, square in seen)
    if not 0 < total < math.inf:
        return list(parts)
    rate = max(math.fsum(part for part, _ in seen), LEAST) / total
    return [
        rate * square if part < math.inf else part
        for part, square in zip(parts, squares, strict=True)
    ]


@dataclass
class Allowance:
    """How much the effects of a choice may add up to, from how earlier choices turned out.

    Attributes:
        value: The allowance of the next choice, in parts of the budget.
    """

    value: float
    _holds: float = 0.0
    _fails: float = math.inf

    @classmethod
    def first(cls, refine: bool) -> Allowance:
        """Before anything is known."""
        return cls(HOPE if refine else 1.0)

    def learn(self, expected: float, part: float) -> None:
        """Take in how a choice turned out.

        Args:
            expected: What its effects add up to.
            part: The part of the budget that it took; up to 1 it holds.
        """
        self._bound(expected, part)
        wanted = expected * min(BOLDEST, CARE / part if part > 0 else BOLDEST)
        self.value = wanted if self._holds < wanted < self._fails else self._middle

    def pass_by(self, part: float) -> bool:
        """Go on from an allowance whose choice is known already, if there is room.

        Args:
            part: The part of the budget that the choice took.
        """
        self._bound(self.value, part)
        self.value = self._middle
        return self._fails > CLOSE * self._holds and self.value < MOST

    @property
    def _middle(self) -> float:
        """Between what holds and what fails."""
        return (self._holds + min(self._fails, BOLDEST * (self._holds or self.value))) / 2

    def _bound(self, allowance: float, part: float) -> None:
        """What holds, and what fails."""
        if part <= 1:
            self._holds = max(self._holds, allowance)
        else:
            self._fails = min(self._fails, allowance)
