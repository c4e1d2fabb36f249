"""What the numbers that users give must be."""

from __future__ import annotations

from numbers import Integral, Real


def check_tolerance(tolerance: float) -> None:
    """Refuse a tolerance that is not a number above 0 and below 1.

    Raises:
        ValueError: It is not.
    """
    if not (is_real(tolerance) and 0 < tolerance < 1):
        raise ValueError(
            "tolerance must be a positive number, a fraction below 1 (0.05 is 5 %), "
            f"got {tolerance!r}"
        )


def is_count(value: object) -> bool:
    """Whether a value is an int of at least 1, Python's or NumPy's."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def is_real(value: object) -> bool:
    """Whether a value is a number; to Python a bool is one."""
    return isinstance(value, Real) and not isinstance(value, bool)
