"""Kernels between many channels that few combinations make up."""

from __future__ import annotations

import pytest
import torch

from convfactor.conv.structure import StageShape, Structure
from convfactor.factorization.solvers import Problem, Request, dense, solve
from convfactor.factorization.solvers.compression import Compression


def low(out: int, channels: int, rank: int, groups: int = 1, size: int = 5) -> torch.Tensor:
    """A random kernel of float32 whose channels are combinations of few."""
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    inner = torch.randn(groups, rank, rank, size, size, **draw)
    rows = torch.randn(groups, out // groups, rank, **draw)
    cols = torch.randn(groups, channels // groups, rank, **draw)
    return torch.einsum("grshw,gor,gis->goihw", inner, rows, cols).flatten(0, 1).float()


def two(out: int, channels: int, width: int, groups: int = 1) -> Structure:
    """Two stages of 3x3."""
    return Structure((
        StageShape(channels, width, (3, 3), groups=groups),
        StageShape(width, out, (3, 3), groups=groups),
    ))  # fmt: skip


@pytest.mark.parametrize(("out", "channels", "groups"), [(80, 64, 1), (80, 3, 1), (160, 128, 2)])
def test_few_combinations_are_found_and_are_all_there_is(out, channels, groups):
    rank = 3 if channels > 3 else 2
    problem = Problem.from_weight(low(out, channels, rank, groups), groups)
    structure = two(out, channels, 2 * groups, groups)
    found = Compression.of(problem, structure)
    assert found is not None
    request = found.request(Request(problem, structure))
    assert request.problem.target.shape[:2] == (groups, rank)
    cascade = found.expanded(dense.solve(request))
    assert cascade.structure == structure
    # As exact between all channels as between the combinations.
    small = request.problem.error(found.request(Request(problem, structure, [cascade])).starts[0])
    assert problem.error(cascade) == pytest.approx(small, abs=2e-7)
    assert small > 1e-2  # or nothing was compared


def test_the_answer_is_that_of_all_channels():
    problem = Problem.from_weight(low(80, 64, 2))
    request = Request(problem, two(80, 64, 4), effort="draft")
    fast = problem.error(solve(request))
    assert fast <= 1.02 * problem.error(dense.solve(request)) + 1e-6


@pytest.mark.parametrize("weight", [torch.rand(80, 64, 5, 5), torch.rand(1, 1, 5, 5)])
def test_what_has_no_few_combinations_is_left(weight):
    problem = Problem.from_weight(weight)
    assert Compression.of(problem, two(len(weight), weight.shape[1], 2)) is None


def test_one_stage_is_left_to_least_squares():
    weight = low(80, 64, 2, size=3)
    cascade = solve(Request(Problem.from_weight(weight), Structure((StageShape(64, 80, (3, 3)),))))
    torch.testing.assert_close(cascade.compose(), weight.double(), rtol=0, atol=1e-5)


def test_a_kernel_of_zeros():
    problem = Problem.from_weight(torch.zeros(80, 64, 5, 5))
    assert problem.error(solve(Request(problem, two(80, 64, 2)))) == 0


def test_one_combination_is_a_chain_which_has_an_exact_split():
    problem = Problem.from_weight(torch.full((80, 64, 7, 7), 1e-30))
    structure = Structure(tuple(StageShape(a, b, (3, 3)) for a, b in ((64, 1), (1, 1), (1, 80))))
    assert problem.error(solve(Request(problem, structure))) < 1e-7
    wider = Structure(tuple(StageShape(a, b, (3, 3)) for a, b in ((64, 2), (2, 2), (2, 80))))
    assert problem.error(solve(Request(problem, wider, effort="draft"))) < 1e-7
