"""Starts for the dense solver: the lifted split of a kernel, and random draws."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from convfactor.conv.grid import positions
from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers.composition import Layout
from convfactor.factorization.solvers.lift import Lift, Parts
from convfactor.factorization.solvers.separable import leading

_ALTERNATIONS = 20
# Side of a square matrix that is decomposed in some 5 s of one core, which nothing interrupts.
_LARGEST_MATRIX = 2048


def lifted(layout: Layout, kernel: Tensor, generator: torch.Generator, budget: Budget) -> Tensor:
    """Split a kernel stage by stage, each time as a matrix of low rank.

    A first stage of taps ``q`` and a rest of taps ``p`` compose to ``W[r] = sum T[p, q]`` over
    ``p + q = r``, where ``T`` has the stage's width as rank. From ``T[p, q] = W[p + q] / count``
    alternate between the matrices of that rank and those that fold to ``W``. Where one matrix is
    all there is, its leading terms are the best answer for white noise (Eckart and Young 1936).

    Args:
        layout: The cascade's layout.
        kernel: (groups, out, in * H * W) on the layout's span.
        generator: For the subspace iteration's first guess.
        budget: Time after which to alternate no further.

    Returns:
        (groups, weights).
    """
    if is_matrix(layout):
        return _halved(layout, kernel)
    weights = []
    rest = layout.kernel(kernel, layout.stages)
    for stage in range(layout.stages - 1):
        tail, first = _peel(layout, rest, stage, generator, budget)
        weights.append(first.flatten(1))
        rest = tail
    (y, x), last = layout.grid.spacings[-1], rest
    weights.append(last[..., ::y, ::x].flatten(1))
    return torch.cat(weights, 1)


def is_matrix(layout: Layout) -> bool:
    """Whether a cascade is a product of two matrices that are soon decomposed.

    These are two stages whose taps meet each pixel once.
    """
    if layout.stages != 2 or layout.groups != (1, 1) or not layout.grid.is_free:
        return False
    near, far = (math.prod(size) for size in layout.grid.sizes)
    sides = layout.channels[0] * near, layout.channels[2] * far
    return max(sides) * min(sides) ** 2 <= _LARGEST_MATRIX**3


def _halved(layout: Layout, kernel: Tensor) -> Tensor:
    """Split a kernel that is a matrix of outputs and one stage's taps, inputs and the other's."""
    groups, outputs, _ = kernel.shape
    inputs, rank, _ = layout.channels
    width = layout.grid.span[1]
    near, far = (
        torch.tensor([y * width + x for y, x in positions(size, spacing)], device=kernel.device)
        for size, spacing in zip(layout.grid.sizes, layout.grid.spacings, strict=True)
    )
    taps = kernel.unflatten(2, (inputs, -1))[..., far[:, None] + near]
    matrix = taps.transpose(2, 3).reshape(groups, outputs * len(far), inputs * len(near))
    rows, cols = matrix.shape[1:]
    first, last = leading(matrix.mT, ((cols, 1), (1, rows)), rank)
    last = last.view(groups, rank, outputs, -1).transpose(1, 2)
    return torch.cat([first.flatten(1), last.flatten(1)], 1)


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
