"""Normal equations from correlations against derivatives written out."""

from __future__ import annotations

import pytest
import torch

from convfactor.conv.grid import Grid, stage_sizes
from convfactor.factorization.solvers import refine
from convfactor.factorization.solvers.correlations import normal_equations


@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("size", [(7, 7), (12, 5), (4, 9), (1, 11), (3, 3), (31, 31)])
def test_both_ways_give_the_same(size, branches):
    sizes = stage_sizes(size)
    grid = Grid(sizes, ((1, 1),) * len(sizes))
    generator = torch.Generator().manual_seed(0)
    kernels = [
        torch.randn(2, branches, *s, generator=generator, dtype=torch.float64) for s in sizes
    ]
    target = torch.randn(2, size[0] * size[1], generator=generator, dtype=torch.float64)
    composed, jacobian = refine._jacobian(kernels, grid)
    wrong = composed - target
    normal, gradient = normal_equations(kernels, grid, wrong)
    expected = jacobian @ jacobian.mT
    torch.testing.assert_close(normal, expected, rtol=0, atol=1e-13 * float(expected.abs().max()))
    expected = (jacobian @ wrong[..., None])[..., 0]
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-13 * float(expected.abs().max()))
