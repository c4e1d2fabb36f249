"""Errors that a caller may want to tell apart, and how messages name what came."""

from __future__ import annotations

from collections.abc import Iterable


class ToleranceError(ValueError):
    """No cascade that is cheaper than the original meets the tolerance."""


class PlanMismatchError(ValueError):
    """A plan does not belong to the model it is applied to."""


def kind_of(value: object) -> str:
    """Name what came where something of another type was wanted."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Name what is alike, as the end of a message; empty where nothing is."""
    from difflib import get_close_matches  # slow to load, for the few who need it

    near = get_close_matches(name, list(dict.fromkeys(known)))
    return f"; did you mean {' or '.join(near)}?" if near else ""
