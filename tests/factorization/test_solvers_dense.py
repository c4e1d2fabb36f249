"""The dense solver against singular values, known cascades and its own invariances."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from convfactor.conv.cascade import Cascade
from convfactor.conv.structure import StageShape, Structure
from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers import Request, dense
from convfactor.factorization.solvers.composition import Layout
from convfactor.factorization.solvers.embedding import embed_dense
from convfactor.factorization.solvers.problem import Problem


def chain(*channels: int, sizes: list[tuple[int, int]] | None = None, groups: int = 1) -> Structure:
    sizes = sizes or [(3, 3)] * (len(channels) - 1)
    return Structure(
        tuple(
            StageShape(before * groups, after * groups, size, groups=groups)
            for before, after, size in zip(channels, channels[1:], sizes, strict=False)
        )
    )


def random_kernel(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def smooth_covariance(channels: int, height: int, width: int, decay: float = 0.9) -> torch.Tensor:
    def lags(size: int) -> torch.Tensor:
        place = torch.arange(size, dtype=torch.float64)
        return decay ** (place[:, None] - place).abs()

    mixing = random_kernel(channels, channels, seed=7)
    space = torch.kron(lags(height), lags(width))
    return torch.kron(mixing @ mixing.T / channels, space)


def solved(problem: Problem, structure: Structure, **kwargs: object) -> tuple[Cascade, float]:
    cascade = dense.solve(Request(problem, structure, **kwargs))  # type: ignore[arg-type]
    assert cascade.structure == structure
    assert all(stage.weight.dtype == torch.float64 for stage in cascade.stages)
    return cascade, problem.error(cascade)


def test_composed_cascades_are_recovered() -> None:
    errors = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        inputs, outputs = torch.randint(2, 11, (2,), generator=generator).tolist()
        width = int(torch.randint(1, min(inputs, outputs) + 1, (1,), generator=generator))
        structure = chain(inputs, width, outputs)
        weight = Cascade.random(structure, seed).compose()
        errors.append(solved(Problem(weight[None]), structure)[1])
    assert sum(error <= 1e-8 for error in errors) >= 19, errors


@pytest.mark.parametrize("calibrated", [False, True])
def test_three_stages_with_a_stride_and_uneven_sizes_are_recovered(calibrated: bool) -> None:
    structure = Structure(
        (
            StageShape(3, 4, (1, 1)),
            StageShape(4, 5, (3, 2), stride=(2, 1)),
            StageShape(5, 6, (2, 3), dilation=(1, 2)),
        )
    )
    weight = Cascade.random(structure, 3).compose()
    covariance = smooth_covariance(3, *structure.span)[None] if calibrated else None
    problem = Problem(weight[None], covariance)
    assert solved(problem, structure)[1] <= 1e-8


def test_the_separable_pair_is_the_best_of_its_rank() -> None:
    weight = random_kernel(6, 4, 5, 7)
    structure = chain(4, 3, 6, sizes=[(5, 1), (1, 7)])
    lifted = weight.permute(0, 3, 1, 2).reshape(42, 20)
    values = torch.linalg.svdvals(lifted)
    best = float(values[3:].norm() / values.norm())
    assert solved(Problem(weight[None]), structure)[1] == pytest.approx(best, rel=1e-9)


def test_the_best_of_a_dilated_pair_that_meets_every_tap_once_is_known() -> None:
    weight = random_kernel(6, 4, 9, 9)
    structure = Structure((StageShape(4, 5, (3, 3)), StageShape(5, 6, (3, 3), dilation=(3, 3))))
    # Output, input, far row, near row, far column, near column.
    apart = weight.unflatten(3, (3, 3)).unflatten(2, (3, 3))
    matrix = apart.permute(0, 2, 4, 1, 3, 5).reshape(54, 36)
    values = torch.linalg.svdvals(matrix)
    best = float(values[5:].norm() / values.norm())
    spent = Budget(0.0)  # no search is needed
    assert solved(Problem(weight[None]), structure, budget=spent)[1] == pytest.approx(
        best, rel=1e-9
    )


def test_more_terms_than_a_pair_has_are_no_worse() -> None:
    structure = chain(2, 9, 3, sizes=[(3, 1), (1, 3)])
    assert solved(Problem(random_kernel(3, 2, 3, 3)[None]), structure)[1] <= 1e-12


def test_two_1x1_stages_in_a_metric_are_the_best_of_their_rank() -> None:
    # W of rank 2 after the metric's root: Eckart and Young again.
    weight = random_kernel(5, 4, 1, 1)
    covariance = smooth_covariance(4, 1, 1)
    values = torch.linalg.svdvals(weight.flatten(1) @ torch.linalg.cholesky(covariance))
    best = float(values[2:].norm() / values.norm())
    problem = Problem(weight[None], covariance[None])
    assert solved(problem, chain(4, 2, 5, sizes=[(1, 1)] * 2))[1] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 9), (5, 4)])
def test_a_transposed_kernel_reaches_the_same_error(inputs: int, outputs: int) -> None:
    weight = random_kernel(outputs, inputs, 7, 7)
    structure, transposed = chain(inputs, 3, 4, outputs), chain(outputs, 4, 3, inputs)
    error = solved(Problem(weight[None]), structure)[1]
    assert solved(Problem(weight.transpose(0, 1)[None]), transposed)[1] == pytest.approx(
        error, abs=1e-6
    )


@pytest.mark.parametrize("power", [-996, -66, 1, 66])
def test_scaling_the_kernel_scales_the_answer(power: int) -> None:
    # By a power of two, so that no rounding differs and the two searches stay together.
    weight, structure = random_kernel(4, 3, 5, 5), chain(3, 2, 4)
    reference = solved(Problem(weight[None]), structure, effort="draft")[0].compose()
    scaled = solved(Problem(2.0**power * weight[None]), structure, effort="draft")[0].compose()
    torch.testing.assert_close(scaled / 2.0**power, reference)


def test_scaling_the_covariance_changes_nothing() -> None:
    weight, structure = random_kernel(4, 3, 5, 5), chain(3, 2, 4)
    covariance = smooth_covariance(3, 5, 5)[None]
    first = solved(Problem(weight[None], covariance), structure, effort="draft")[1]
    second = solved(Problem(weight[None], 2.0**60 * covariance), structure, effort="draft")[1]
    assert second == pytest.approx(first, rel=1e-9)


@pytest.mark.parametrize("calibrated", [False, True])
def test_more_never_gives_a_larger_error(calibrated: bool) -> None:
    weight = random_kernel(5, 4, 7, 7)
    problem = Problem(weight[None], smooth_covariance(4, 7, 7)[None] if calibrated else None)
    small = Structure(chain(4, 3, 5).stages, (1, 1))
    cascade, error = solved(problem, small)
    for larger in (chain(4, 3, 3, 5), chain(4, 6, 4, 5), Structure(chain(4, 5, 5).stages, (1, 1))):
        more = solved(problem, larger, starts=[cascade], effort="draft")[1]
        assert more <= error + 1e-7


def test_a_start_keeps_its_composed_kernel_when_embedded() -> None:
    weight, structure = random_kernel(5, 4, 7, 7), chain(4, 3, 5, 5)
    start = Cascade.random(Structure(chain(4, 3, 5).stages, (2, 0)), 5)
    problem = Problem(weight[None])
    flat = embed_dense(start, Request(problem, structure))
    layout = Layout.of(structure)
    embedded = Cascade.of(structure, [part.flatten(0, 1) for part in layout.split(flat)])
    torch.testing.assert_close(problem.residual(embedded), problem.residual(start))


def test_a_start_that_does_not_fit_is_refused() -> None:
    problem = Problem(random_kernel(1, 5, 4, 5, 5))
    with pytest.raises(ValueError, match="starts must hold cascades of the structure"):
        dense.solve(Request(problem, chain(4, 2, 5), starts=[Cascade.random(chain(4, 3, 5))]))


@pytest.mark.parametrize("calibrated", [False, True])
def test_groups_are_solved_each_on_its_own(calibrated: bool) -> None:
    structure = chain(2, 2, 4, groups=3)
    scale = torch.tensor([1e-8, 1.0, 0.0], dtype=torch.float64)
    weight = (
        Cascade.random(structure, 1).compose().unflatten(0, (3, 4))
        * scale[:, None, None, None, None]
    )
    metrics = torch.stack([smooth_covariance(2, 5, 5, decay) for decay in (0.5, 0.8, 0.95)])
    problem = Problem(weight, metrics if calibrated else None)
    cascade = solved(problem, structure)[0]
    wrong = problem.power(problem.residual(cascade)).sum(1)
    assert (wrong[:2] <= 1e-16 * problem.power(weight).sum(1)[:2]).all()
    assert not cascade.compose().unflatten(0, (3, 4))[2].any()


def test_stages_with_other_groups_are_refused() -> None:
    structure = chain(4, 4, 4)
    with pytest.raises(ValueError, match=r"structure must have 2 groups, as the problem has"):
        dense.solve(Request(Problem(random_kernel(2, 2, 2, 5, 5)), structure))


@pytest.mark.parametrize("rank", [0, 1, 10])
def test_degenerate_covariances_are_solved(rank: int) -> None:
    factor = random_kernel(75, max(rank, 1)) * (rank > 0)
    weight = random_kernel(4, 3, 5, 5)
    problem = Problem(weight[None], (factor @ factor.T)[None])
    cascade, error = solved(problem, chain(3, 2, 4))
    assert cascade.compose().isfinite().all()
    assert error <= {0: 0.0, 1: 1e-6, 10: 0.8}[rank]


def test_taps_outside_the_span_are_made_up_for() -> None:
    covariance = smooth_covariance(3, 5, 5, 0.95)[None]
    problem = Problem(random_kernel(1, 4, 3, 5, 5), covariance)
    cropped = Structure((StageShape(3, 4, (3, 3)),), (1, 1))
    inside = torch.zeros(3, 5, 5, dtype=torch.bool)
    inside[:, 1:4, 1:4] = True
    inside = inside.flatten()
    flat = problem.target[0].flatten(1)
    right = (flat @ covariance[0])[:, inside]
    best = torch.linalg.solve(covariance[0][inside][:, inside], right.T).T
    cascade = solved(problem, cropped)[0]
    torch.testing.assert_close(cascade.compose().flatten(1), best, rtol=1e-7, atol=1e-9)


def test_a_single_dilated_stage_is_least_squares() -> None:
    covariance = smooth_covariance(2, 5, 5)[None]
    problem = Problem(random_kernel(1, 4, 2, 5, 5), covariance)
    structure = Structure((StageShape(2, 4, (3, 3), dilation=(2, 2)),))
    seen = torch.zeros(2, 5, 5, dtype=torch.bool)
    seen[:, ::2, ::2] = True
    seen = seen.flatten()
    right = (problem.target[0].flatten(1) @ covariance[0])[:, seen]
    best = torch.linalg.solve(covariance[0][seen][:, seen], right.T).T
    weight = solved(problem, structure)[0].stages[0].weight
    torch.testing.assert_close(weight.flatten(1), best, rtol=1e-7, atol=1e-9)


def test_the_same_seed_gives_the_same_answer_and_leaves_the_global_state() -> None:
    problem, structure = Problem(random_kernel(1, 6, 5, 5, 5)), chain(5, 3, 6)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first = solved(problem, structure, seed=3, effort="draft")[0].compose()
    second = solved(problem, structure, seed=3, effort="draft")[0].compose()
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    assert threads == torch.get_num_threads()


def test_a_start_that_is_not_finite_loses_nothing() -> None:
    problem, structure = Problem(random_kernel(1, 6, 5, 5, 5)), chain(5, 3, 6)
    broken = Cascade.of(structure, [s.weight * math.nan for s in Cascade.random(structure).stages])
    alone = solved(problem, structure)[1]
    assert solved(problem, structure, starts=[broken])[1] == pytest.approx(alone, rel=0.02)


def test_zeros_come_back_as_zeros() -> None:
    problem, structure = Problem(torch.zeros(1, 4, 3, 5, 5, dtype=torch.float64)), chain(3, 2, 4)
    cascade, error = solved(problem, structure, starts=[Cascade.random(structure)])
    assert error == 0
    assert not cascade.compose().any()


def test_a_draft_is_near_the_full_answer_and_progress_is_told() -> None:
    problem, structure = Problem(random_kernel(1, 16, 3, 7, 7)), chain(3, 6, 8, 16)
    told: list[tuple[float, float]] = []
    full = solved(problem, structure, progress=lambda *values: told.append(values))[1]
    draft = solved(problem, structure, effort="draft")[1]
    assert full <= draft <= 1.1 * full
    shares, errors = zip(*told, strict=True)
    assert list(shares) == sorted(shares)
    assert shares[-1] <= 1
    assert list(errors) == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("channels", "size"),
    [
        ((2, 1, 1, 2), (1, 3)),
        ((3, 1, 1, 2), (1, 3)),
        ((4, 2, 2, 4), (3, 3)),
        ((3, 1, 1, 3), (3, 3)),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_narrow_cascades_come_back(channels, size, seed):
    structure = chain(*channels, sizes=[size] * 3)
    problem = Problem.from_weight(Cascade.random(structure, seed).compose())
    assert problem.error(dense.solve(Request(problem, structure))) <= 1e-10


def test_a_search_that_has_little_time_ends_where_it_stays_far_off(monkeypatch) -> None:
    draft = dense._LIMITS["draft"]
    monkeypatch.setitem(dense._LIMITS, "draft", replace(draft, work=0.0))  # the least steps
    structure = chain(8, 6, 6, 8)

    def shares(weight: torch.Tensor, needed: float) -> tuple[list[float], float]:
        told: list[float] = []
        problem = Problem(weight[None])
        error = solved(problem, structure, effort="draft", needed=needed,
                       progress=lambda share, _: told.append(share))[1]  # fmt: skip
        return told, error

    hopeless = random_kernel(8, 8, 7, 7)
    whole, least = shares(hopeless, 0.0)
    cut, error = shares(hopeless, 0.01)
    assert len(cut) < len(whole) / 2
    assert least <= error < 1.05 * least
    assert shares(hopeless, error)[0] == whole  # near enough to go on


def test_no_search_ends_that_would_come_near_enough(monkeypatch) -> None:
    draft = dense._LIMITS["draft"]
    monkeypatch.setitem(dense._LIMITS, "draft", replace(draft, work=0.0))
    structure, ended = chain(8, 4, 4, 8), []
    for seed in range(12):
        problem = Problem(Cascade.random(structure, seed).compose()[None])
        whole = solved(problem, structure, effort="draft")[1]
        cut = solved(problem, structure, effort="draft", needed=0.01)[1]
        assert cut == whole or whole > 0.01, seed
        ended.append(cut != whole)
    assert any(ended)
    assert not all(ended)
