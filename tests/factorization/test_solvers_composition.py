"""Composed kernels against the cascade's own, and their derivatives against autograd."""

from __future__ import annotations

import pytest
import torch
from tiny import apart, structure

from convfactor.conv.cascade import Cascade
from convfactor.conv.structure import Structure
from convfactor.factorization.solvers.composition import Composition, Layout

STRUCTURES = [
    structure((4, 3, (3, 2)), (3, 5, (2, 3)), (5, 2, (3, 3))),
    structure((4, 3, (1, 2)), (3, 5, (2, 3), (1, 1), (3, 2))),
    structure((4, 6, (1, 1)), apart(6, (5, 3)), (6, 5, (1, 1))),  # more taps than it reads
    structure((4, 6, (1, 1)), apart(6, (2, 3), 0, (2, 3)), apart(6, (3, 2)), (6, 5, (1, 1))),
    structure((4, 6, (3, 1)), apart(6, (3, 2), 12, (1, 2)), apart(12, (2, 2)), (12, 5, (2, 1))),
    structure((4, 6, (3, 3)), apart(6, (2, 2), 18)),  # fewer taps than it reads
    structure((4, 8, (1, 1)), (8, 8, (3, 3), (1, 1), (1, 1), 2), (8, 3, (1, 1))),
]


@pytest.mark.parametrize("stages", STRUCTURES, ids=str)
def test_composed_kernels_and_their_slopes(stages: Structure) -> None:
    layout = Layout.of(stages)
    generator = torch.Generator().manual_seed(0)
    shape = (3, sum(layout.counts))
    flat = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    point = Composition(layout, flat)
    for i, kernel in enumerate(point.kernel.detach()):
        weights = [part[i] for part in layout.split(flat.detach())]
        true = Cascade.of(stages, weights).compose()
        torch.testing.assert_close(kernel.view(true.shape), true)
    outer = torch.randn(point.kernel.shape, generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad((point.kernel * outer).sum(), flat)
    torch.testing.assert_close(point.pull(outer).detach(), slope)
