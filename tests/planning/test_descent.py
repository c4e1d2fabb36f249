from __future__ import annotations

import pytest
import torch
from torch import nn

from convfactor.planning.descent import FEWEST, Descent, orthogonalized


@pytest.mark.parametrize("shape", [(1, 8, 20), (3, 20, 8), (2, 6, 6)])
def test_singular_values_are_brought_together(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    got = orthogonalized(x)
    values = torch.linalg.svdvals(got)
    assert got.shape == x.shape
    assert got.square().mean((1, 2)) == pytest.approx([1.0] * shape[0])
    assert float((values.amax(1) / values.amin(1)).max()) < 3
    # The directions stay: what is moved along is never moved against.
    assert float((got * x).sum()) > 0


def test_nothing_is_moved_without_a_gradient():
    assert torch.equal(orthogonalized(torch.zeros(1, 5, 5)), torch.zeros(1, 5, 5))


def least_squares(weight: nn.Parameter, groups: int, steps: int = 300) -> tuple[float, float]:
    """Fit a grouped convolution to another one: the loss before and after."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(weight.shape, generator=generator)
    x = torch.randn(4, weight.shape[1] * groups, 9, 9, generator=generator)
    descent = Descent([weight], [groups])
    losses = []
    for step in range(steps):
        descent.zero_grad()
        got, true = (torch.conv2d(x, w, groups=groups) for w in (weight, target))
        loss = (got - true).square().mean()
        loss.backward()
        descent.step([0.05 * (1 - step / steps)])
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((8, 6, 3, 3), 1), ((16, 4, 3, 3), 2), ((12, 1, 3, 3), 12), ((FEWEST - 1, 4, 3, 3), 1)],
    ids=["dense", "grouped", "depthwise", "few outputs"],
)
def test_weights_of_any_groups_are_found(shape, groups):
    before, after = least_squares(nn.Parameter(torch.zeros(shape)), groups)
    assert after < 1e-3 * before
