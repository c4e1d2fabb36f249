"""Starts for the dense solver: the lifted split of a kernel, and random draws."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers.composition import Layout
from convfactor.factorization.solvers.lift import Lift, Parts

_ALTERNATIONS = 20


def lifted(layout: Layout, kernel: Tensor, generator: torch.Generator, budget: Budget) -> Tensor:
    """Split a kernel stage by stage, each time as a matrix of low rank.

    A first stage of taps ``q`` and a rest of taps ``p`` compose to ``W[r] = sum T[p, q]`` over
    ``p + q = r``, where ``T`` has the stage's width as rank. From ``T[p, q] = W[p + q] / count``
    alternate between the matrices of that rank and those that fold to ``W``.

    Args:
        layout: The cascade's layout.
        kernel: (groups, out, in * H * W) on the layout's span.
        generator: For the subspace iteration's first guess.
        budget: Time after which to alternate no further.

    Returns:
        (groups, weights).
    """
    weights = []
    rest = layout.kernel(kernel, layout.stages)
    for stage in range(layout.stages - 1):
        tail, first = _peel(layout, rest, stage, generator, budget)
        weights.append(first.flatten(1))
        rest = tail
    (y, x), last = layout.grid.spacings[-1], rest
    weights.append(last[..., ::y, ::x].flatten(1))
    return torch.cat(weights, 1)


def _peel(
    layout: Layout, kernel: Tensor, stage: int, generator: torch.Generator, budget: Budget
) -> tuple[Tensor, Tensor]:
    """Split (groups, out, in, H, W) into a rest and the stage's (groups, width, in * kH * kW)."""
    groups, outputs, inputs, *span = kernel.shape
    grid, rank = layout.grid, layout.channels[stage + 1]
    lift = Lift((span[0], span[1]), grid.sizes[stage], grid.spacings[stage], kernel)
    taps, reach = len(lift.taps), lift.reach

    def truncate(values: Tensor, parts: Parts) -> tuple[Parts, Tensor]:
        matrix = values.permute(0, 1, 4, 5, 2, 3).flatten(4).flatten(1, 3)
        left = torch.linalg.qr(matrix @ parts[1]).Q
        basis = matrix.mT @ left
        low = (left @ basis.mT).view(groups, outputs, *reach, inputs, taps)
        return (left, basis), low.permute(0, 1, 4, 5, 2, 3)

    basis = torch.randn(groups, inputs * taps, rank, generator=generator, dtype=torch.float64)
    basis = basis.to(kernel.device)
    left, basis = lift.split(kernel, truncate, (basis, basis), _ALTERNATIONS, budget)
    if left.shape[-1] < rank:
        left = F.pad(left, (0, rank - left.shape[-1]))
        basis = F.pad(basis, (0, rank - basis.shape[-1]))
    rest = left.unflatten(1, (outputs, *reach)).permute(0, 1, 4, 2, 3)
    return rest, basis.mT


def drawn(layout: Layout, batch: int, generator: torch.Generator) -> Tensor:
    """Draw (batch, weights) whose stages keep the power of white noise."""
    parts = []
    for outputs, inputs in layout.shapes:
        weight = torch.randn(batch, outputs * inputs, generator=generator, dtype=torch.float64)
        parts.append(weight / math.sqrt(inputs))
    return torch.cat(parts, 1)
