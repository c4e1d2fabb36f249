"""Errors that a caller may want to tell apart, and how messages name what came."""

from __future__ import annotations


class ToleranceError(ValueError):
    """No cascade that is cheaper than the original meets the tolerance."""


class PlanMismatchError(ValueError):
    """A plan does not belong to the model it is applied to."""


def kind_of(value: object) -> str:
    """Name what came where something of another type was wanted."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
