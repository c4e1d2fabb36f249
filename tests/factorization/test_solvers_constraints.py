from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from convfactor import Cascade
from convfactor.conv.structure import StageShape, Structure
from convfactor.factorization.solvers.chains import chain_structure
from convfactor.factorization.solvers.constraints import preserve_dc
from convfactor.factorization.solvers.problem import Problem

STRUCTURES = [
    Structure((StageShape(3, 8, (3, 3)), StageShape(8, 5, (3, 3)))),
    Structure((StageShape(3, 6, (3, 3), (2, 2)), StageShape(6, 5, (3, 3), dilation=(1, 2)))),
    Structure((StageShape(6, 8, (3, 3), groups=2), StageShape(8, 10, (1, 3), groups=2))),
    Structure((StageShape(3, 5, (3, 3)),)),
    chain_structure(4, 3, [(3, 3)] * 3, branches=2),
    chain_structure(4, 1, [(3, 3)] * 2),
]


def problem_for(structure: Structure, seed: int, calibrated: bool) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    groups, stages = structure.groups, structure.stages
    inputs = stages[0].in_channels // groups
    shape = (groups, stages[-1].out_channels // groups, inputs, *structure.span)
    target = torch.randn(shape, generator=generator, dtype=torch.float64)
    if not calibrated:
        return Problem(target)
    size = inputs * structure.span[0] * structure.span[1]
    root = torch.randn(groups, size, size, generator=generator, dtype=torch.float64)
    return Problem(target, root @ root.mT)


@settings(max_examples=40)
@given(st.sampled_from(STRUCTURES), st.integers(0, 1000), st.booleans())
def test_sums_are_kept(structure: Structure, seed: int, calibrated: bool) -> None:
    problem = problem_for(structure, seed, calibrated)
    before = Cascade.random(structure, seed)
    after = preserve_dc(problem, before)
    assert after.structure == structure
    sums = problem.residual(after).sum((3, 4)).abs()
    assert float(sums.max()) <= 1e-11 * float(problem.target.abs().sum((3, 4)).max())
    torch.testing.assert_close(preserve_dc(problem, after).compose(), after.compose())


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("structure", STRUCTURES[:-1])
def test_no_other_change_is_smaller(structure: Structure, calibrated: bool) -> None:
    problem = problem_for(structure, 0, calibrated)
    before = Cascade.random(structure, 0).balanced()
    after = preserve_dc(problem, before)
    change = after.compose() - before.compose()
    generator = torch.Generator().manual_seed(1)
    last = after.stages[-1]
    # Rows of each tap's weights that add up to nothing keep every sum.
    free = torch.randn(last.weight.shape, generator=generator, dtype=torch.float64)
    free = free - free.mean((2, 3), keepdim=True)
    weights = [stage.weight for stage in before.stages]
    shift = Cascade.of(structure, [*weights[:-1], free]).compose()

    def power(kernel: torch.Tensor) -> torch.Tensor:
        return problem.power(kernel.unflatten(0, (problem.groups, -1))).sum()

    if min(last.weight.shape[2:]) == 1 and max(last.weight.shape[2:]) == 1:
        pytest.skip("a 1x1 stage has no such freedom")
    for step in (-1e-2, -1e-4, 1e-4, 1e-2):
        assert float(power(change + step * shift)) >= float(power(change)) * (1 - 1e-9)


@pytest.mark.parametrize("zero", [0, 1, 2])
@pytest.mark.parametrize("exact", [True, False])
def test_the_stage_that_is_zero_sum_is_the_one_that_changes(zero: int, exact: bool) -> None:
    structure = chain_structure(2, 1, [(3, 3)] * 3)
    stages = list(Cascade.random(structure, 0).stages)
    weight = stages[zero].weight
    nearly = weight - weight.mean((2, 3), keepdim=True)
    wavelet = [*(stage.weight for stage in stages)]
    wavelet[zero] = nearly
    target = Cascade.of(structure, wavelet).compose().unflatten(0, (2, 1))
    problem = Problem(target)
    wavelet[zero] = nearly if exact else nearly + 1e-3
    after = preserve_dc(problem, Cascade.of(structure, wavelet))
    before = problem.error(Cascade.of(structure, wavelet))
    assert problem.error(after) <= 2 * before + 1e-12
    assert float(problem.residual(after).sum((3, 4)).abs().max()) <= 1e-13


def test_a_zero_sum_wavelet_stays_blind_to_constants() -> None:
    structure = chain_structure(1, 1, [(3, 3)] * 2)
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, 1, 1, 5, 5, generator=generator, dtype=torch.float64)
    problem = Problem(target - target.mean())
    output = torch.ones(1, 1, 9, 9, dtype=torch.float64)
    for stage in preserve_dc(problem, Cascade.random(structure, 0)).stages:
        output = F.conv2d(output, stage.weight)
    assert float(output.abs().max()) <= 1e-13


def test_too_few_hidden_channels() -> None:
    structure = Structure((StageShape(3, 2, (3, 3)), StageShape(2, 5, (3, 3))))
    with pytest.raises(ValueError, match="at least 3 per group"):
        preserve_dc(problem_for(structure, 0, False), Cascade.random(structure, 0))
