"""Find the cheapest structure of a family that meets a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from convfactor.conv.cascade import Cascade
from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers.request import Effort

DRAFT_SLACK = 1.25
EXACT = 1e-3


class Attempt(Protocol):
    """The outcome of one solve as far as a search needs it."""

    @property
    def cascade(self) -> Cascade:
        """The answer."""

    @property
    def error(self) -> float:
        """What the tolerance bounds."""

    @property
    def exact(self) -> bool:
        """Whether only rounding is left, so that no wider structure is better."""


class Rung(Protocol):
    """What is solved, as far as a search needs it: a structure, or one with its equal in pixels."""

    @property
    def macs(self) -> int:
        """Multiplies, which tell how wide it is."""

    @property
    def is_chain(self) -> bool:
        """Whether every stage keeps its channels apart."""


A = TypeVar("A", bound=Attempt)
R = TypeVar("R", bound=Rung)
Solve = Callable[[R, Effort, Sequence[Cascade], float], A]


class Ladder(Generic[R, A]):
    """Structures of one family, cheapest first, and what is known of them.

    The error falls as a structure widens, so a bisection with draft solves finds the rung, and full
    solves settle what drafts leave open; every solve starts from the best narrower answer too.
    """

    def __init__(
        self,
        rungs: Sequence[R],
        solve: Solve[R, A],
        tolerance: float,
        budget: Budget | None = None,
    ) -> None:
        """Start with nothing solved.

        Args:
            rungs: Structures, each wider than the one before.
            solve: Solves one structure with an effort, from starts; the last argument is the error
                above which the answer is of no use, 0 for none.
            tolerance: Error that a solution may have.
            budget: Time after which no further solve begins but the first; None for no end.
        """
        self._rungs = rungs
        self._solve = solve
        self._tolerance = tolerance
        # On the way to an exact answer, a draft may stay far off for long.
        self._needed = DRAFT_SLACK * tolerance if tolerance > EXACT else 0.0
        self._budget = Budget() if budget is None else budget
        self._solved: dict[tuple[int, Effort], A] = {}
        self._found: int | None = None

    def cheapest(self) -> A | None:
        """Solution of the cheapest rung that meets the tolerance, or None; see ``finished``."""
        low = -1
        if self._rungs and self._rungs[0].is_chain:
            # Exact for separable kernels, and by far the quickest to solve.
            chain = self._attempt(0, "draft")
            if chain.exact:
                self._found = 0 if chain.error <= self._tolerance else None
                return None if self._found is None else chain
        if self._tolerance <= EXACT:
            # An exact answer is reached at its own width and crept up to at larger ones.
            exact = self._narrowest(EXACT, 10.0, low)
            if exact is None:
                return None
            if self._attempt(exact, "full").error <= self._tolerance:
                self._found = exact
                return self._best(exact)
            low = exact
        self._found = self._narrowest(self._tolerance, DRAFT_SLACK, low)
        return None if self._found is None else self._best(self._found)

    def widen(self, affordable: Callable[[R], bool]) -> bool:
        """Move from the rung that ``cheapest`` found to the widest affordable one, if it is nearer.

        On data that no fit has seen it may be further off, and above the tolerance.

        Args:
            affordable: Whether a structure is; asked from narrow to wide until it is not.
        """
        assert self._found is not None
        first = wider = self._found
        if not self._best(first).exact:
            for rung in range(first + 1, len(self._rungs)):
                if not affordable(self._rungs[rung]):
                    break
                wider = rung
        if wider == first or self._budget.used_up():
            return False
        self._attempt(wider, "full")
        if self._best(wider).error < self._best(first).error:
            self._found = wider
        return self._found > first

    def finished(self) -> A:
        """The solution that was found, with full effort."""
        assert self._found is not None
        # More effort does nothing for a chain that is exact.
        known = self._rungs[self._found].is_chain and self._best(self._found).exact
        if not known and not self._budget.used_up():
            self._attempt(self._found, "full")
        return self._best(self._found)

    @property
    def best(self) -> A:
        """The solution that ``cheapest`` found."""
        assert self._found is not None
        return self._best(self._found)

    @property
    def nearest(self) -> A | None:
        """The solution of the smallest error so far."""
        return min(self._solved.values(), key=lambda attempt: attempt.error, default=None)

    def widest(self) -> A | None:
        """The best solution once the widest rung has its full one, as far as time allows."""
        if self._rungs and not self._budget.used_up():
            self._attempt(len(self._rungs) - 1, "full")
        return self.nearest

    def _narrowest(self, tolerance: float, slack: float, low: int) -> int | None:
        """Search for the cheapest rung above ``low`` with an error within a tolerance.

        Drafts alone come first, so that there is an answer soon. The next rung is where the error
        would cross the tolerance as a power of the multiplies.
        """
        high = len(self._rungs) - 1
        if self._solved and self._budget.used_up():
            known = (rung for rung, _ in self._solved if rung > low)
            return min((r for r in known if self._best(r).error <= tolerance), default=None)
        if high <= low or not self._meets(high, tolerance, slack):
            return None
        for wanted in (1.0, slack):
            drafts = (rung for rung, effort in self._solved if effort == "draft" and rung < high)
            far = (r for r in drafts if self._solved[r, "draft"].error > wanted * tolerance)
            high = self._between(max([low, *far]), high, tolerance, wanted)
        return high

    def _between(self, low: int, high: int, tolerance: float, slack: float) -> int:
        """Halve the rungs between one that misses the tolerance and one that meets it."""
        while high - low > 1 and not self._budget.used_up():
            middle = self._crossing(low, high, tolerance)
            if self._meets(middle, tolerance, slack):
                high = middle
            else:
                low = middle
        return high

    def _crossing(self, low: int, high: int, tolerance: float) -> int:
        """Rung between two where interpolated errors cross a tolerance."""
        if low < 0 or (low, "draft") not in self._solved:
            return (low + high) // 2
        errors = [self._best(rung).error for rung in (low, high)]
        if not 0 < errors[1] < tolerance < errors[0] < math.inf:
            return (low + high) // 2
        share = math.log(errors[0] / tolerance) / math.log(errors[0] / errors[1])
        first, last = (math.log(self._rungs[rung].macs) for rung in (low, high))
        wanted = math.exp(first + share * (last - first))
        between = range(low + 1, high - 1)
        return next((r for r in between if self._rungs[r].macs >= wanted), high - 1)

    def _meets(self, rung: int, tolerance: float, slack: float) -> bool:
        """Whether a rung meets a tolerance; a full solve decides where a draft comes near it."""
        draft = self._attempt(rung, "draft").error
        if draft <= tolerance or draft > slack * tolerance:
            return draft <= tolerance
        if self._budget.used_up():
            return False
        return self._attempt(rung, "full").error <= tolerance

    def _best(self, rung: int) -> A:
        """The better of a rung's solutions: more effort may overfit, or round worse."""
        attempts = [attempt for key, attempt in self._solved.items() if key[0] == rung]
        return min(attempts, key=lambda attempt: attempt.error)

    def _attempt(self, rung: int, effort: Effort) -> A:
        """Solve once and remember."""
        for known in (effort, "full"):
            if (rung, known) in self._solved:
                return self._solved[rung, known]
        narrower = [key for key in self._solved if key[0] <= rung]
        starts = [self._solved[max(narrower)].cascade] if narrower else []
        needed = self._needed if effort == "draft" else 0.0
        self._solved[rung, effort] = self._solve(self._rungs[rung], effort, starts, needed)
        return self._solved[rung, effort]
