"""Choose one of several options for each layer: the most gained within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Prices are rounded up to this part of the budget, so that the choices kept do not grow without
# end; every choice is within the budget all the same.
STEPS = 2000


@dataclass(frozen=True)
class Option:
    """What one choice for a layer gains, and its part of the budget."""

    gain: float
    price: float


def choose(layers: Sequence[Sequence[Option]], budget: float) -> list[int | None]:
    """Choose at most one option for each layer, so that together they gain the most.

    Of all choices for the layers so far, only those are kept that gain more than any as cheap one
    (Nemhauser and Ullmann, 1969).

    Args:
        layers: The options of each layer.
        budget: What the chosen options may cost in all, >= 0.

    Returns:
        Index of the option of each layer, None where none is taken.
    """
    unit = budget / STEPS
    kept: list[tuple[int, float, tuple[int | None, ...]]] = [(0, 0.0, ())]
    for options in layers:
        grown = [(cost, gain, (*picks, None)) for cost, gain, picks in kept]
        for i, option in enumerate(options):
            price = _steps(option.price, unit)
            if option.gain <= 0 or price is None:
                continue
            grown += [
                (cost + price, gain + option.gain, (*picks, i))
                for cost, gain, picks in kept
                if cost + price <= STEPS
            ]
        kept = []
        for state in sorted(grown, key=lambda state: (state[0], -state[1])):
            if not kept or state[1] > kept[-1][1]:
                kept.append(state)
    return list(kept[-1][2])


def _steps(price: float, unit: float) -> int | None:
    """A price in whole units, or None where no budget would be enough."""
    if price <= 0:
        return 0
    if not unit > 0 or price > STEPS * unit:
        return None
    return min(STEPS, int(-(-price // unit)))
