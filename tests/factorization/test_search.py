from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.structure import Structure
from convfactor.factorization.budget import Budget
from convfactor.factorization.families import full
from convfactor.factorization.search import Ladder

(FAMILY,) = full(ConvGeometry(16, 16, (5, 5)))
RUNGS = [FAMILY.structure((width,)) for width in range(1, 13)]


@dataclass(frozen=True)
class Answer:
    structure: Structure
    effort: str
    error: float
    exact: bool = False

    @property
    def cascade(self) -> Cascade:
        return Cascade.random(self.structure)


class Solver:
    """Errors by rung, as a draft and as a full solve; notes what was asked."""

    def __init__(self, draft: list[float], full: list[float]) -> None:
        self.errors = {"draft": draft, "full": full}
        self.asked: list[tuple[int, str, int]] = []

    def __call__(self, structure, effort, starts, needed):
        rung = RUNGS.index(structure)
        self.asked.append((rung, effort, len(starts)))
        return Answer(structure, effort, self.errors[effort][rung])


def search(draft, full, tolerance):
    solver = Solver(draft, full)
    ladder = Ladder(RUNGS[: len(draft)], solver, tolerance)
    return ladder.cheapest(), ladder, solver


@pytest.mark.parametrize("tolerance", [0.5, 1e-4])
@pytest.mark.parametrize("first", range(12))
def test_the_narrowest_rung_that_meets_the_tolerance_is_found(first, tolerance):
    errors = [10 * tolerance] * first + [tolerance / 2] * (12 - first)
    found, _, solver = search(errors, errors, tolerance)
    assert found is not None
    assert found.structure is RUNGS[first]
    assert len(solver.asked) <= 12
    assert len(set(solver.asked)) == len(solver.asked), "nothing is solved twice"


def test_the_answer_is_finished_with_full_effort():
    found, ladder, _ = search([0.3, 0.2, 0.1], [0.3, 0.15, 0.05], 0.25)
    assert (found.error, found.effort) == (0.2, "draft")
    assert (ladder.finished().error, ladder.finished().effort) == (0.15, "full")


@given(
    st.lists(st.floats(1e-6, 10), min_size=1, max_size=12),
    st.lists(st.floats(0.2, 2), min_size=12, max_size=12),
    st.sampled_from([1e-4, 0.1]),
)
def test_an_answer_meets_the_tolerance_however_the_errors_run(draft, gains, tolerance):
    """Errors on unseen data need not fall with the width, nor with the effort."""
    full = [error * gain for error, gain in zip(draft, gains, strict=False)]
    found, ladder, solver = search(draft, full, tolerance)
    if found is not None:
        assert found.error <= tolerance
    else:
        assert ladder.nearest.error == min(
            solver.errors[effort][rung] for rung, effort, _ in solver.asked
        )


def test_wider_rungs_start_from_narrower_answers():
    errors = [1.0] * 6 + [0.1] * 6
    _, _, solver = search(errors, errors, 0.5)
    seen: list[int] = []
    for rung, _, starts in solver.asked:
        assert starts == any(earlier <= rung for earlier in seen)
        seen.append(rung)


def test_a_full_solve_may_save_a_near_miss():
    found, _, _ = search([2.0, 1.1, 1.0], [2.0, 0.9, 0.8], 1.0)
    assert found is not None
    assert found.structure is RUNGS[1]
    assert found.effort == "full"


def test_no_rungs_and_none_good_enough():
    found, ladder, _ = search([], [], 0.1)
    assert (found, ladder.nearest, ladder.widest()) == (None, None, None)
    found, ladder, _ = search([3.0, 2.0], [3.0, 2.0], 0.1)
    assert found is None
    assert ladder.nearest.error == 2.0
    assert ladder.widest().structure is RUNGS[1]


@pytest.mark.parametrize(("most", "rung"), [(0, 1), (3, 3), (100, 5)])
def test_what_costs_next_to_nothing_is_taken(most, rung):
    _, ladder, _ = search([1.0, 0.4, 0.3, 0.2, 0.1, 0.05], [1.0, 0.4, 0.3, 0.2, 0.1, 0.05], 0.5)
    assert ladder.widen(lambda structure: RUNGS.index(structure) <= most) == (rung > 1)
    assert ladder.finished().structure is RUNGS[rung]


def test_a_wider_rung_that_is_further_off_is_not_taken():
    """On unseen data, and then it may be above the tolerance."""
    errors = [1.0, 0.4, 0.6, 0.3]
    found, ladder, solver = search(errors, errors, 0.5)
    assert not ladder.widen(lambda structure: structure is not RUNGS[3])
    assert (2, "full", 1) in solver.asked
    assert found.structure is ladder.finished().structure is RUNGS[1]
    assert ladder.finished().error <= 0.5


def test_nothing_wider_is_taken_once_the_time_is_up():
    now = [0.0]
    errors = [1.0, 0.4, 0.3, 0.2]
    ladder = Ladder(RUNGS[:4], Solver(errors, errors), 0.5, Budget(1, lambda: now[0]))
    found = ladder.cheapest()
    now[0] = 2.0
    assert not ladder.widen(lambda structure: True)
    assert ladder.finished() is ladder.best is found


def test_exact_answers_are_not_widened():
    chains = next(full(ConvGeometry(4, 4, (7, 7), groups=4))).ladder(4 * 49)

    def solve(structure, effort, starts, needed):
        return Answer(structure, effort, 1e-7, exact=True)

    met = Ladder(chains, solve, 1e-3)
    assert met.cheapest().structure is chains[0]
    assert not met.widen(lambda structure: True)
    missed = Ladder(chains, solve, 1e-9)
    assert missed.cheapest() is None
    assert missed.nearest.structure is chains[0]


def test_more_effort_is_not_spent_on_an_exact_chain():
    rung = next(full(ConvGeometry(3, 3, (5, 5), groups=3))).structure((3,))
    asked = []

    def solve(structure, effort, starts, needed):
        asked.append(effort)
        return Answer(structure, effort, 1e-8, exact=True)

    ladder = Ladder([rung], solve, 0.1)
    assert ladder.cheapest() is ladder.finished()
    assert asked == ["draft"]


@pytest.mark.parametrize(("tolerance", "rung"), [(0.9, 0), (0.25, None)])
def test_a_used_up_budget_leaves_what_was_solved(tolerance, rung):
    """The chain is always tried; nothing wider is begun once the time is up."""
    chains = next(full(ConvGeometry(4, 4, (7, 7), groups=4))).ladder(4 * 49)
    budget = Budget(1, iter([0.0, *[5.0] * 100]).__next__)
    asked = []

    def solve(structure, effort, starts, needed):
        asked.append(structure)
        return Answer(structure, effort, 0.5)

    ladder = Ladder(chains, solve, tolerance, budget)
    found = ladder.cheapest()
    assert asked == [chains[0]]
    assert (found is None) == (rung is None)
    if found is not None:
        assert ladder.finished() is found
    assert ladder.widest() is ladder.nearest
    assert budget.cut_short


@pytest.mark.parametrize(("tolerance", "limit"), [(0.5, 0.625), (1e-3, 0.0)])
def test_drafts_are_told_above_which_error_they_are_of_no_use(tolerance, limit):
    told = set()

    def solve(structure, effort, starts, needed):
        told.add((effort, needed))
        return Answer(structure, effort, 0.9 * tolerance)

    ladder = Ladder(RUNGS, solve, tolerance)
    assert ladder.cheapest() is not None
    ladder.finished()
    assert told == {("draft", limit), ("full", 0.0)}
