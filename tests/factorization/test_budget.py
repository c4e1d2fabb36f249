"""What stops a solve: budgets on a clock that only these tests move."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from convfactor import factorize
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.grid import Grid
from convfactor.conv.structure import StageShape, Structure
from convfactor.factorization import factorize as factorization
from convfactor.factorization.budget import Budget
from convfactor.factorization.factorizer import Factorizer
from convfactor.factorization.search import Ladder
from convfactor.factorization.solvers import Problem, Request, alternating, solve
from convfactor.factorization.solvers.chains import chain_structure
from convfactor.factorization.solvers.refine import Fit, refine

DENSE = Structure((StageShape(4, 3, (3, 3)), StageShape(3, 4, (3, 3))))
CHAINS = chain_structure(4, 1, [(3, 3)] * 3)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class Clock:
    """Each look at it takes a second, so that a budget counts the looks."""

    now: float = 0.0
    tick: float = 1.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def test_a_budget_is_used_up_and_remembers_that_somebody_was_told():
    clock = Clock(tick=0)
    budget = Budget(3, clock)
    assert not budget.used_up()
    assert (budget.left, budget.cut_short) == (3, False)
    clock.now = 3
    assert (budget.left, budget.cut_short) == (0, False)
    assert budget.used_up()
    assert budget.cut_short


def test_a_part_ends_with_its_own_seconds_or_with_the_whole():
    clock = Clock(tick=0)
    whole = Budget(5, clock)
    part, longer = whole.part(2), whole.part(9)
    clock.now = 2
    assert part.used_up()
    assert whole.cut_short
    assert not whole.used_up()
    clock.now = 5
    assert longer.used_up()


def test_without_end():
    budget = Budget(clock=Clock(tick=1e9))
    assert budget.part(budget.left / 2).left == math.inf
    assert not budget.used_up()


@pytest.mark.parametrize(
    ("structure", "problem"),
    [
        (DENSE, Problem.from_weight(noise(4, 4, 5, 5))),
        (CHAINS, Problem.from_weight(noise(4, 1, 7, 7), 4)),
        (chain_structure(4, 1, [(3, 3)] * 3, 2), Problem.from_weight(noise(4, 1, 7, 7), 4)),
    ],
)
def test_more_time_never_gives_a_larger_error_and_none_gives_an_answer(structure, problem):
    errors = []
    for seconds in (0, 20, 200, math.inf):
        clock = Clock()
        budget = Budget(seconds, clock)
        cascade = solve(Request(problem, structure, budget=budget))
        assert cascade.structure == structure
        errors.append(problem.error(cascade))
        assert budget.cut_short or seconds > 20
        assert clock.now < seconds + 400, "nobody looked at the clock"
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] < 1.5
    assert errors[-1] == problem.error(solve(Request(problem, structure)))


def test_every_element_gets_its_share_of_the_time(monkeypatch):
    monkeypatch.setattr(
        "convfactor.factorization.solvers.refine._CPU_CHUNK", 1
    )  # one element at a time
    grid = Grid(((3, 3), (3, 3)), ((1, 1), (1, 1)))
    fit = Fit(noise(6, 25), torch.zeros(6, dtype=torch.long))
    kernels = [noise(6, 1, 3, 3, seed=1), noise(6, 1, 3, 3, seed=2)]
    before = refine(fit, kernels, grid, 0)[1]
    after = refine(fit, kernels, grid, 10**6, budget=Budget(600, Clock()))[1]
    assert bool((after < before).all())


def test_the_original_method_stops_too():
    problem = Problem.from_weight(noise(2, 1, 5, 5), 2)
    structure = chain_structure(2, 1, [(3, 3)] * 2)
    found = [
        alternating.solve(Request(problem, structure, budget=Budget(seconds, Clock())))
        for seconds in (0.0, 10.0, math.inf)
    ]
    losses = [float(r.losses.amin(1).sum()) for r in found]
    assert losses[0] > losses[1] > losses[2]


def test_a_search_ends_with_what_it_has():
    kernel = ConvGeometry(4, 4, (5, 5))
    budget = Budget(40, Clock())
    factorizer = Factorizer(noise(4, 4, 5, 5), kernel, budget=budget)
    family = next(factorization.full(kernel))
    ladder = Ladder(family.ladder(kernel.macs), factorizer.attempt, 0.9, budget)
    found = ladder.cheapest()
    assert found is not None
    assert found.error <= 0.9
    assert budget.used_up()
    assert ladder.finished().error <= 0.9


def test_factorize_says_that_its_time_was_up(monkeypatch):
    monkeypatch.setattr(factorization, "Budget", lambda seconds: Budget(seconds, Clock()))
    weight = noise(4, 4, 5, 5)
    f = factorize(weight, 0.8, time_limit=30)
    assert f.timed_out
    assert "time limit of 30 s" in f.message
    assert f.macs <= weight.numel()
    calm = factorize(weight, 0.8, time_limit=math.inf)
    assert not calm.timed_out
    assert calm.error <= 0.8


def test_what_cannot_end_in_time_is_not_begun():
    weight = noise(64, 64, 9, 9)
    with pytest.raises(ValueError, match=r"too large .*takes .* s for the first step.*time_limit"):
        factorize(weight, widths=(32, 32, 32), time_limit=0.01)
    f = factorize(weight, 0.1, time_limit=0.001)
    assert f.met is False
    assert "can be solved" in f.message
