"""What a user asks a plan for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from convfactor.scalars import check_fraction, is_real

OBJECTIVES = ("latency", "macs")
STRUCTURES = ("auto", "cascade")
TOLERANCE = 1e-2
BUDGETS = ("tolerance", "model_tolerance", "max_drop")


@dataclass(frozen=True)
class Settings:
    """What the user asked for; one of the three budgets is set, by default that of each layer.

    Attributes:
        tolerance: Largest relative error of a layer.
        model_tolerance: Largest relative error of the model's output.
        max_drop: By how much the model may get worse.
        evaluate: Name of the function that says how good a model is; empty for none.
        higher_is_better: Whether a good model has a high value.
        refine: Whether what is replaced is trained to match the original.
        time_limit: Seconds after which the best plan so far is taken.
        objective: What is minimised: measured time, or multiplies.
        min_speedup: Speed-up from which a replacement is worth it.
        structures: "auto" for every form, "cascade" for dense stages of at most 3x3 only.
        min_kernel_size: Longer side from which a kernel is large.
        seed: Seed of everything drawn at random.

    Raises:
        ValueError: A value is out of range, or two budgets are given.
        TypeError: The seed is not an int.
    """

    tolerance: float | None = None
    model_tolerance: float | None = None
    max_drop: float | None = None
    evaluate: str = ""
    higher_is_better: bool = True
    refine: bool = False
    time_limit: float = math.inf
    objective: Literal["latency", "macs"] = "latency"
    min_speedup: float = 1.05
    structures: Literal["auto", "cascade"] = "auto"
    min_kernel_size: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        self._check_budget()
        speedup, size, seed = self.min_speedup, self.min_kernel_size, self.seed
        checks = (
            (
                is_real(self.time_limit) and self.time_limit > 0,
                ValueError,
                f"time_limit must be a positive number of seconds, got {self.time_limit!r}",
            ),
            (
                is_real(speedup) and 1 <= speedup < math.inf,
                ValueError,
                f"min_speedup must be a number >= 1, got {speedup!r}",
            ),
            (
                _is_int(size) and size >= 4,
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
            (_is_int(seed), TypeError, f"seed must be an int, got {seed!r}"),
            (
                _is_int(seed) and -(2**63) <= seed < 2**63,
                ValueError,
                f"seed must be an int of 64 bits, got {seed!r}",
            ),
        )
        for fine, error, message in checks:
            if not fine:
                raise error(message)

    def _check_budget(self) -> None:
        """Take the one budget that is given, as Python's own float: NumPy's are not for JSON."""
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                "give one of tolerance (for every layer), model_tolerance (for the model's output) "
                f"and evaluate with max_drop (for its quality), got {' and '.join(given)}"
            )
        if not given:
            given = ["tolerance"]
            object.__setattr__(self, "tolerance", TOLERANCE)
        if bool(self.evaluate) != (self.max_drop is not None):
            raise ValueError(
                "evaluate and max_drop belong together: evaluate(model) says how good a model is, "
                "and max_drop by how much it may get worse, got only "
                + ("evaluate" if self.evaluate else "max_drop")
            )
        if self.refine and given == ["tolerance"]:
            raise ValueError(
                "refine needs a budget for the model, which it keeps to: give model_tolerance, or "
                "evaluate with max_drop, instead of tolerance"
            )
        name, value = given[0], getattr(self, given[0])
        if name != "max_drop":
            check_fraction(name, value)
        elif not (is_real(value) and 0 <= value < math.inf):
            raise ValueError(f"max_drop must be a number >= 0, got {value!r}")
        object.__setattr__(self, name, float(value))

    @property
    def layer_tolerance(self) -> float:
        """Error of a layer that needs no further question."""
        given = (self.tolerance, self.model_tolerance)
        return next((value for value in given if value is not None), TOLERANCE)

    @property
    def budget(self) -> str:
        """The budget in words."""
        if self.tolerance is not None:
            return f"tolerance of {self.tolerance:g}"
        if self.model_tolerance is not None:
            return f"model_tolerance of {self.model_tolerance:g}"
        return f"max_drop of {self.max_drop:g} in {self.evaluate}"


def _is_int(value: object) -> bool:
    """Whether a value is an int of Python's own, as JSON wants it; to Python a bool is one."""
    return isinstance(value, int) and not isinstance(value, bool)
