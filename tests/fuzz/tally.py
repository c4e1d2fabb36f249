"""What a fuzz run counts: cases, and those that went wrong in one of three ways."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts of one kind of case.

    Attributes:
        what: The kind of case, in the plural.
        cases: How many were tried.
        refused: How many got a clear error, as they should.
        wrong: Descriptions of cases with a wrong result.
        raw: Descriptions of cases that ended with an error that is not a clear one of ours.
        late: Descriptions of cases that took longer than their budget.
        slowest: Seconds of the slowest case.
    """

    what: str
    cases: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @contextmanager
    def case(self, description: str, seconds: float, refusals: type | tuple[type, ...] = ()) -> Iterator[None]:
        """Count one case; errors of the types ``refusals`` are clear ones, others are raw.

        Args:
            description: What to print where it goes wrong; it must tell how to do it again.
            seconds: Its budget of processor time.
            refusals: Types of error that this case may end with.
        """
        self.cases += 1
        start = time.process_time()
        try:
            yield
        except refusals:
            self.refused += 1
        except AssertionError as error:
            self.wrong.append(f"{description}: {error}")
        except Exception as error:
            self.raw.append(f"{description}: {type(error).__name__}: {str(error)[:200]}")
        taken = time.process_time() - start
        self.slowest = max(self.slowest, taken)
        if taken > seconds:
            self.late.append(f"{description}: {taken:.1f} s")

    @property
    def sound(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.wrong or self.raw or self.late)

    def __str__(self) -> str:
        """One line of counts."""
        return (
            f"{self.cases} {self.what}: {len(self.wrong)} wrong, {len(self.raw)} raw errors, "
            f"{len(self.late)} over budget, {self.refused} refused, slowest {self.slowest:.2f} s"
        )
