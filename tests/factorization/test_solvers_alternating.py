from __future__ import annotations

import pytest
import torch

from convfactor.factorization.solvers import Request, alternating, levenberg
from convfactor.factorization.solvers.chains import chain_structure
from convfactor.factorization.solvers.problem import Problem

# Synthesis filters of near_sym_a, the high-pass one padded to seven taps.
LOW = torch.tensor([-3, -15, 73, 170, 73, -15, -3], dtype=torch.float64) / 280
HIGH = torch.tensor([0, -1, -5, 12, -5, -1, 0], dtype=torch.float64) / 20


def random_problem(*shape: int) -> Problem:
    generator = torch.Generator().manual_seed(0)
    return Problem(torch.randn(shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize(
    ("column", "row", "least"), [(LOW, HIGH, 4.480e-4), (HIGH, LOW, 4.480e-4), (LOW, LOW, 1.594e-2)]
)
def test_original_normalisation(column: torch.Tensor, row: torch.Tensor, least: float) -> None:
    grid = alternating.normalise(torch.outer(column, row))
    assert float(grid.mean()) == pytest.approx(0, abs=1e-14)
    assert float(grid.std()) == pytest.approx(1)
    problem = Problem(grid[None, None, None])
    structure = chain_structure(1, 1, [(3, 3)] * 2, offset=(5, 5))
    best = float(problem.residual(levenberg.solve(Request(problem, structure))).square().mean())
    assert best <= least
    result = alternating.solve(Request(problem, structure))
    reached = float(problem.residual(result.cascade).square().mean())
    assert best * (1 - 1e-9) <= reached <= best + 1e-2
    assert float(result.losses.min()) == pytest.approx(reached * 256 / 255, rel=1e-9)


def test_a_single_stage_becomes_the_kernel_itself() -> None:
    problem = random_problem(3, 1, 1, 5, 5)
    result = alternating.solve(Request(problem, chain_structure(3, 1, [(5, 5)])))
    assert problem.error(result.cascade) <= 1e-6
    assert result.losses.shape == (3, 50)


def test_stages_of_other_sizes_and_branches() -> None:
    problem = random_problem(2, 2, 1, 9, 9)
    for structure in (
        chain_structure(2, 2, [(5, 5), (3, 3), (3, 3)]),
        chain_structure(2, 2, [(7, 7), (3, 3)], branches=2),
    ):
        result = alternating.solve(
            Request(problem, structure), alternating.Recipe(starts=10, rate=0.1)
        )
        assert result.cascade.structure == structure
        assert problem.error(result.cascade) < 0.9


def test_more_steps_come_closer() -> None:
    problem = random_problem(1, 1, 1, 5, 5)
    structure = chain_structure(1, 1, [(3, 3)] * 2)
    errors = [
        problem.error(
            alternating.solve(
                Request(problem, structure), alternating.Recipe(starts=5, steps=steps)
            ).cascade
        )
        for steps in (1, 10, 100)
    ]
    assert errors[0] > errors[1] > errors[2]


def test_divergent_starts_are_dropped_and_counted() -> None:
    problem = random_problem(1, 1, 1, 7, 7)
    structure = chain_structure(1, 1, [(3, 3)] * 3)
    result = alternating.solve(Request(problem, structure), alternating.Recipe(rate=0.4))
    assert 0 < result.dropped < 50
    assert int(result.losses.isinf().sum()) == result.dropped
    assert problem.error(result.cascade) < 1
    with pytest.raises(ValueError, match="smaller rate"):
        alternating.solve(Request(problem, structure), alternating.Recipe(rate=100.0))


def test_admissibility() -> None:
    problem = random_problem(1, 1, 1, 7, 7)
    structure = chain_structure(1, 1, [(3, 3)] * 2, offset=(1, 1))
    with pytest.warns(UserWarning, match="not admissible"):
        alternating.solve(
            Request(problem, structure),
            alternating.Recipe(starts=2, steps=2, admissibility_weight=0.1),
        )
    wavelet = Problem(problem.target - problem.target.mean())
    free = alternating.solve(Request(wavelet, structure))
    bound = alternating.solve(
        Request(wavelet, structure), alternating.Recipe(admissibility_weight=0.2)
    )
    assert abs(float(bound.cascade.compose().sum())) < abs(float(free.cascade.compose().sum()))


def test_energy_weight_keeps_the_norm() -> None:
    problem = random_problem(1, 1, 1, 7, 7)
    structure = chain_structure(1, 1, [(3, 3)] * 2, offset=(1, 1))
    whole = float(problem.target.norm())
    gaps = [
        abs(
            float(
                alternating.solve(
                    Request(problem, structure), alternating.Recipe(rate=0.05, energy_weight=w)
                )
                .cascade.compose()
                .norm()
            )
            - whole
        )
        for w in (0.0, 1.0)
    ]
    assert gaps[1] < gaps[0]


def test_extremes() -> None:
    problem = random_problem(3, 1, 1, 5, 5)
    problem.target[0] *= 1e-20
    problem.target[1] = 0
    problem.target[2] *= 1e20
    result = alternating.solve(
        Request(problem, chain_structure(3, 1, [(3, 3)] * 2)), alternating.Recipe(starts=10)
    )
    residual = problem.residual(result.cascade).flatten(1).abs().amax(1)
    whole = problem.target.flatten(1).abs().amax(1)
    assert bool((residual[[0, 2]] < whole[[0, 2]]).all())
    assert bool(residual.isfinite().all())


def test_errors() -> None:
    with pytest.raises(ValueError, match="fit in 16x16"):
        alternating.normalise(torch.ones(17, 3))
    with pytest.raises(ValueError, match="constant"):
        alternating.normalise(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="one input channel"):
        alternating.solve(
            Request(random_problem(1, 1, 2, 5, 5), chain_structure(1, 1, [(3, 3)] * 2))
        )
