from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from convfactor import Cascade
from convfactor.conv.structure import StageShape, Structure
from convfactor.factorization.solvers import Request, levenberg, separable
from convfactor.factorization.solvers.chains import chain_structure
from convfactor.factorization.solvers.embedding import embed_chains
from convfactor.factorization.solvers.problem import Problem
from convfactor.factorization.solvers.refine import Fit, compose, refine

# Synthesis filters of near_sym_a, the high-pass one padded to seven taps.
LOW = torch.tensor([-3, -15, 73, 170, 73, -15, -3], dtype=torch.float64) / 280
HIGH = torch.tensor([0, -1, -5, 12, -5, -1, 0], dtype=torch.float64) / 20


def spaced(*stages: tuple[int, int, int]) -> Structure:
    """One channel; stages of (size, stride, dilation)."""
    return Structure(
        tuple(StageShape(1, 1, (k, k), (s, s), (d, d), groups=1) for k, s, d in stages)
    )


def random_problem(seed: int, *shape: int) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    return Problem(torch.randn(shape, generator=generator, dtype=torch.float64))


def correlated(size: int, strength: float = 0.9) -> torch.Tensor:
    """Covariance of pixels of a stationary image, (size^2, size^2)."""
    distance = (torch.arange(size)[:, None] - torch.arange(size)).abs().double()
    return torch.kron(strength**distance, strength**distance)


@pytest.mark.parametrize(
    ("column", "row", "published"),
    [(LOW, HIGH, 2.1206e-2), (HIGH, LOW, 2.1206e-2), (LOW, LOW, 2.9987e-2), (HIGH, HIGH, 0)],
)
def test_two_stages_lose_the_outer_ring_only(
    column: torch.Tensor, row: torch.Tensor, published: float
) -> None:
    kernel = torch.outer(column, row)
    problem = Problem(kernel[None, None, None])
    cascade = levenberg.solve(Request(problem, chain_structure(1, 1, [(3, 3)] * 2, offset=(1, 1))))
    centre = F.pad(kernel[1:-1, 1:-1], (1, 1, 1, 1))
    outside = float((kernel - centre).norm() / kernel.norm())
    assert outside == pytest.approx(published, abs=5e-7)
    assert problem.error(cascade) == pytest.approx(outside, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("stages", "share"), [(2, 1.0), (3, 1.0), (4, 0.75)])
def test_composed_cascades_are_recovered(stages: int, share: float) -> None:
    structure = chain_structure(8, 1, [(3, 3)] * stages)
    target = Cascade.random(structure, stages).compose()
    problem = Problem(target[:, None])
    residual = problem.residual(levenberg.solve(Request(problem, structure)))
    errors = (problem.power(residual) / problem.power(problem.target)).sqrt()
    assert float((errors <= 1e-8).double().mean()) >= share


@pytest.mark.parametrize(
    "structure",
    [
        spaced((3, 1, 1), (3, 1, 2)),
        spaced((3, 2, 1), (3, 1, 1)),
        spaced((3, 1, 1), (3, 2, 1)),
        spaced((3, 1, 2), (3, 1, 1), (3, 1, 4)),
        spaced((5, 1, 1), (2, 1, 1)),
        spaced((5, 1, 1)),
        spaced((3, 1, 2)),
    ],
)
def test_strides_dilations_and_sizes(structure: Structure) -> None:
    problem = Problem(Cascade.random(structure, 3).compose()[None])
    cascade = levenberg.solve(Request(problem, structure))
    assert cascade.structure == structure
    assert problem.error(cascade) <= 1e-8


@pytest.mark.parametrize("strides", [(2, 1), (1, 2)])
def test_error_is_that_of_the_running_cascade(strides: tuple[int, int]) -> None:
    first, second = strides
    structure = spaced((3, first, 1), (3, second, 1))
    problem = random_problem(0, 1, 1, 1, *structure.span)
    cascade = levenberg.solve(Request(problem, structure))
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 1, 300, 300, generator=generator, dtype=torch.float64)
    output = image
    for stage in cascade.stages:
        output = F.conv2d(output, stage.weight, stride=stage.stride)
    exact = F.conv2d(image, problem.target[0], stride=2)
    measured = float((output - exact).norm() / exact.norm())
    assert measured == pytest.approx(problem.error(cascade), rel=0.05)
    assert measured < 1


def test_depth_multiplier_and_branches() -> None:
    structure = chain_structure(2, 3, [(3, 3)] * 2, branches=2)
    problem = Problem(Cascade.random(structure, 0).compose().unflatten(0, (2, 3)))
    cascade = levenberg.solve(Request(problem, structure))
    assert cascade.structure == structure
    assert problem.error(cascade) <= 1e-7


def test_more_stages_or_branches_are_never_worse() -> None:
    problem = random_problem(0, 4, 1, 1, 7, 7)
    small = levenberg.solve(Request(problem, chain_structure(4, 1, [(3, 3)] * 2, offset=(1, 1))))
    for sizes, branches, offset in (
        ([(3, 3)] * 3, 1, (0, 0)),
        ([(3, 3)] * 2, 2, (1, 1)),
        ([(5, 5), (3, 3)], 1, (0, 0)),
        ([(3, 3)] * 3, 2, (0, 0)),
    ):
        structure = chain_structure(4, 1, sizes, branches, offset)
        larger = levenberg.solve(Request(problem, structure, starts=[small], effort="draft"))
        assert problem.error(larger) <= problem.error(small) + 1e-7


def test_new_branches_of_a_start_are_alive() -> None:
    """They add nothing, but have derivatives, each its own."""
    problem = random_problem(0, 4, 1, 1, 7, 7)
    one, three = (chain_structure(4, 1, [(3, 3)] * 3, branches) for branches in (1, 3))
    start = levenberg.solve(Request(problem, one))
    kernels = embed_chains(start, Request(problem, three, starts=[start]))
    torch.testing.assert_close(
        compose(kernels, three.grid), start.compose()[:, 0], rtol=0, atol=1e-12
    )
    fit = Fit(problem.target.flatten(1), torch.arange(4))
    before = fit.loss(kernels, three.grid)
    added = kernels[0][:, 1:]
    assert not torch.equal(added[:, 0], added[:, 1])
    _, after = refine(fit, kernels, three.grid, 30)
    assert bool((after < 0.3 * before).all())


def test_a_given_start_is_kept() -> None:
    structure = chain_structure(3, 1, [(3, 3)] * 6)
    hidden = Cascade.random(structure, 5)
    problem = Problem(hidden.compose()[:, None])
    cascade = levenberg.solve(Request(problem, structure, starts=[hidden], effort="draft"))
    assert problem.error(cascade) <= 1e-12


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.floats(-20, 20))
def test_scaling_the_kernel_scales_the_answer(seed: int, exponent: float) -> None:
    problem = random_problem(seed, 1, 1, 1, 5, 5)
    structure = chain_structure(1, 1, [(3, 3)] * 2)
    scaled = Problem(problem.target * 10**exponent)
    plain = levenberg.solve(Request(problem, structure, effort="draft"))
    grown = levenberg.solve(Request(scaled, structure, effort="draft"))
    assert scaled.error(grown) == pytest.approx(problem.error(plain), rel=1e-6)


def test_channels_do_not_disturb_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(6, 1, 1, 5, 5, generator=generator, dtype=torch.float64)
    target[1] = 0
    target[2] *= 1e-20
    target[3] *= 1e20
    target[4] *= 1e-310
    target[5] = torch.outer(HIGH[1:-1], HIGH[1:-1])
    structure = chain_structure(6, 1, [(3, 3)] * 2)
    problem = Problem(target)
    cascade = levenberg.solve(Request(problem, structure))
    assert all(bool(stage.weight.isfinite().all()) for stage in cascade.stages)
    wrong = problem.residual(cascade).flatten(1).abs().amax(1)
    whole = target.flatten(1).abs().amax(1)
    assert bool((wrong[[0, 2, 3, 4]] < 0.7 * whole[[0, 2, 3, 4]]).all())
    assert float(wrong[1]) == 0
    assert float(wrong[5]) <= 1e-13


def test_calibrated_metric_is_minimised() -> None:
    plain = random_problem(0, 3, 1, 1, 7, 7)
    problem = Problem(plain.target, correlated(7).expand(3, -1, -1))
    structure = chain_structure(3, 1, [(3, 3)] * 2, offset=(1, 1))
    fitted = problem.error(levenberg.solve(Request(problem, structure)))
    assert fitted < 0.9 * problem.error(levenberg.solve(Request(plain, structure)))


@pytest.mark.parametrize("rank", [0, 1, 10])
def test_degenerate_moments(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 49, rank, generator=generator, dtype=torch.float64)
    problem = Problem(random_problem(1, 2, 1, 1, 7, 7).target, root @ root.mT)
    structure = chain_structure(2, 1, [(3, 3)] * 3)
    cascade = levenberg.solve(Request(problem, structure))
    assert all(bool(stage.weight.isfinite().all()) for stage in cascade.stages)
    assert problem.error(cascade) <= 1e-3


def test_deterministic_and_without_side_effects() -> None:
    problem = random_problem(0, 2, 1, 1, 7, 7)
    structure = chain_structure(2, 1, [(3, 3)] * 3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = levenberg.solve(Request(problem, structure, seed=3))
    second = levenberg.solve(Request(problem, structure, seed=3))
    for a, b in zip(first.stages, second.stages, strict=True):
        assert torch.equal(a.weight, b.weight)
    assert torch.equal(state, torch.get_rng_state())
    assert threads == torch.get_num_threads()


def test_one_chain_beats_the_separable_part() -> None:
    problem = random_problem(0, 1, 1, 1, 9, 9)
    structure = chain_structure(1, 1, [(3, 3)] * 4)
    best = problem.error(levenberg.solve(Request(problem, structure)))
    assert best < 0.9 * problem.error(separable.solve(Request(problem, structure)))


def test_errors() -> None:
    problem = random_problem(0, 2, 1, 1, 5, 5)
    structure = chain_structure(2, 1, [(3, 3)] * 2)
    mixing = Structure((StageShape(2, 2, (3, 3)), StageShape(2, 2, (3, 3))))
    assert levenberg.handles(problem, structure)
    assert not levenberg.handles(problem, mixing)
    with pytest.raises(ValueError, match="parallel chains"):
        levenberg.solve(Request(problem, mixing))
    with pytest.raises(ValueError, match="finite"):
        levenberg.solve(Request(Problem(problem.target * torch.inf), structure))
    with pytest.raises(ValueError, match="one input channel"):
        levenberg.solve(Request(random_problem(0, 1, 1, 2, 5, 5), structure))
    with pytest.raises(ValueError, match="starts"):
        levenberg.solve(
            Request(
                problem, structure, starts=[Cascade.random(chain_structure(2, 1, [(5, 5)] * 2))]
            )
        )


def test_progress_is_told() -> None:
    problem = random_problem(5, 3, 1, 1, 7, 7)
    told: list[tuple[float, float]] = []
    structure = chain_structure(3, 1, [(3, 3)] * 3)
    found = levenberg.solve(
        Request(problem, structure, progress=lambda *values: told.append(values))
    )
    shares, errors = zip(*told, strict=True)
    assert list(shares) == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1
    assert list(errors) == sorted(errors, reverse=True)
    assert errors[-1] >= problem.error(found) - 1e-9
    assert errors[-1] == pytest.approx(problem.error(found), rel=0.05)
