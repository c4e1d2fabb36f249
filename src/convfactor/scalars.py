"""What the numbers that users give must be."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TypeGuard


def check_fraction(name: str, value: object) -> None:
    """Refuse an argument that is not a number above 0 and below 1.

    Raises:
        ValueError: It is not.
    """
    if not (is_real(value) and 0 < value < 1):
        raise ValueError(
            f"{name} must be a positive number, a fraction below 1 (0.05 is 5 %), got {value!r}"
        )


def is_count(value: object) -> bool:
    """Whether a value is an int of at least 1, Python's or NumPy's."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def is_real(value: object) -> TypeGuard[float]:
    """Whether a value is a number; to Python a bool is one."""
    return isinstance(value, Real) and not isinstance(value, bool)
