"""What a user asks a plan for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from convfactor.scalars import check_tolerance

OBJECTIVES = ("latency", "macs")
STRUCTURES = ("auto", "cascade")


@dataclass(frozen=True)
class Settings:
    """What the user asked for.

    Attributes:
        tolerance: Largest relative error of a layer.
        objective: What is minimised: measured time, or multiplies.
        min_speedup: Speed-up from which a replacement is worth it.
        structures: Whether the separable pair may be taken as well as cascades of 3x3 stages.
        min_kernel_size: Longer side from which a kernel is large.
        seed: Seed of everything drawn at random.

    Raises:
        ValueError: A value is out of range.
        TypeError: The seed is not an int.
    """

    tolerance: float = 1e-2
    objective: Literal["latency", "macs"] = "latency"
    min_speedup: float = 1.05
    structures: Literal["auto", "cascade"] = "auto"
    min_kernel_size: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        check_tolerance(self.tolerance)
        object.__setattr__(self, "tolerance", float(self.tolerance))  # NumPy's are not for JSON
        speedup, size, seed = self.min_speedup, self.min_kernel_size, self.seed
        checks = (
            (
                _is(speedup, (int, float)) and 1 <= speedup < math.inf,
                ValueError,
                f"min_speedup must be a number >= 1, got {speedup!r}",
            ),
            (
                _is(size, int) and size >= 4,
                ValueError,
                "min_kernel_size must be an int >= 4 (3x3 is what kernels are factorized into), "
                f"got {size!r}",
            ),
            (
                self.objective in OBJECTIVES,
                ValueError,
                f"objective must be one of {OBJECTIVES}, got {self.objective!r}",
            ),
            (
                self.structures in STRUCTURES,
                ValueError,
                f"structures must be one of {STRUCTURES}, got {self.structures!r}",
            ),
            (_is(seed, int), TypeError, f"seed must be an int, got {seed!r}"),
            (
                _is(seed, int) and -(2**63) <= seed < 2**63,
                ValueError,
                f"seed must be an int of 64 bits, got {seed!r}",
            ),
        )
        for fine, error, message in checks:
            if not fine:
                raise error(message)


def _is(value: object, kind: type | tuple[type, ...]) -> bool:
    """Whether a value is a number of a kind; to Python a bool is one."""
    return isinstance(value, kind) and not isinstance(value, bool)
