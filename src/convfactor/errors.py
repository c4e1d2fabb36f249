"""Errors that a caller may want to tell apart."""

from __future__ import annotations


class ToleranceError(ValueError):
    """No cascade that is cheaper than the original meets the tolerance."""


class PlanMismatchError(ValueError):
    """A plan does not belong to the model it is applied to."""
