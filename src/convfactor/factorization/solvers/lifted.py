"""Starts for the dense solver: the lifted split of a kernel, and random draws."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers.composition import Layout

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
    (y, x), last = layout.spacings[-1], rest
    weights.append(last[..., ::y, ::x].flatten(1))
    return torch.cat(weights, 1)


def _peel(
    layout: Layout, kernel: Tensor, stage: int, generator: torch.Generator, budget: Budget
) -> tuple[Tensor, Tensor]:
    """Split (groups, out, in, H, W) into a rest and the stage's (groups, width, in * kH * kW)."""
    groups, outputs, inputs, height, width = kernel.shape
    (rows, cols), (y, x) = layout.kernel_sizes[stage], layout.spacings[stage]
    reach = (height - (rows - 1) * y, width - (cols - 1) * x)
    taps = list(itertools.product(range(0, rows * y, y), range(0, cols * x, x)))
    rank = layout.channels[stage + 1]

    def spread(values: Tensor) -> Tensor:
        shifted = [values[..., r : r + reach[0], c : c + reach[1]] for r, c in taps]
        return torch.stack(shifted, -1)

    def fold(lift: Tensor) -> Tensor:
        result = torch.zeros_like(kernel)
        for tap, (r, c) in enumerate(taps):
            result[..., r : r + reach[0], c : c + reach[1]] += lift[..., tap]
        return result

    ones = kernel.new_ones(*reach, len(taps)).expand(1, 1, 1, *reach, len(taps))
    count = fold(ones)[:1, :1, :1].clamp_min(1)
    lift = spread(kernel / count)
    basis = torch.randn(
        groups, inputs * len(taps), rank, generator=generator, dtype=torch.float64
    ).to(kernel.device)
    for _ in range(_ALTERNATIONS):
        matrix = lift.permute(0, 1, 3, 4, 2, 5).flatten(4).flatten(1, 3)
        left = torch.linalg.qr(matrix @ basis).Q
        basis = matrix.mT @ left
        low = (left @ basis.mT).view(groups, outputs, *reach, inputs, len(taps))
        low = low.permute(0, 1, 4, 2, 3, 5)
        lift = low + spread((kernel - fold(low)) / count)
        if budget.used_up():
            break
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
