"""Figures in words."""

from __future__ import annotations

from convfactor.conv.geometry import Pair
from convfactor.latency import Timing


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number of things.

    Args:
        count: How many.
        noun: One of them.
        plural: Several of them; with an s unless given.
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def percent(value: float | None) -> str:
    """A relative error; those that are only rounding as a power of ten."""
    if value is None:
        return ""
    return f"{value:.0e}" if 0 < value < 5e-5 else f"{value:.2%}"


def milliseconds(timing: Timing | None) -> str:
    """A time."""
    return "" if timing is None else f"{1e3 * timing.median:.3g}"


def spread(timing: Timing) -> str:
    """Median with its quartiles."""
    low, median, high = (1e3 * t for t in (timing.low, timing.median, timing.high))
    return f"{median:.3g} ms [{low:.3g}..{high:.3g}]"


def sides(pair: Pair) -> str:
    """One number, or two where they differ."""
    return "x".join(map(str, dict.fromkeys(pair)))
