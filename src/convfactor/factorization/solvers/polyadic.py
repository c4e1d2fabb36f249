"""Starts for depthwise stages between two 1x1 ones: the kernel as a sum of rank-one terms."""

from __future__ import annotations

import torch
from torch import Tensor

from convfactor.conv.geometry import Pair
from convfactor.conv.grid import Grid
from convfactor.conv.structure import StageShape, Structure
from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers import levenberg
from convfactor.factorization.solvers.composition import Layout
from convfactor.factorization.solvers.problem import Problem
from convfactor.factorization.solvers.reduction import Reduction
from convfactor.factorization.solvers.request import Request

_SWEEPS = 40
_RIDGE = 1e-6


def handles(layout: Layout) -> bool:
    """Tell whether a layout is 1x1, depthwise stages, 1x1."""
    sizes, widths = layout.grid.sizes, set(layout.channels[1:-1])
    ends = (sizes[0], sizes[-1], layout.groups[0], layout.groups[-1])
    return (
        layout.stages > 2
        and ends == ((1, 1), (1, 1), 1, 1)
        and len(widths) == 1
        and widths == set(layout.groups[1:-1])
    )


def polyadic(
    layout: Layout, reduction: Reduction, request: Request, generator: torch.Generator
) -> Tensor:
    """Write a kernel as ``sum_r a_r(out) b_r(in) c_r(taps)``, and split each ``c_r``.

    Canonical polyadic decomposition by alternating least squares (Carroll and Chang 1970; for
    convolutions Lebedev et al. 2015), in the metric ``S_in x S_vertical x S_horizontal`` that is
    nearest to the input's covariance. A vertical and a horizontal stage are two factors, other
    stages are split off the taps of each term.

    Args:
        layout: A layout that ``handles`` accepts.
        reduction: What to match.
        request: Says how long to take, and the seed of the splits.
        generator: For the first guess.

    Returns:
        (groups, weights).
    """
    inputs, (height, width) = layout.channels[0], reduction.window
    tensor = reduction.target.unflatten(2, (inputs, height, width))
    roots = _roots(reduction, inputs)
    for axis, root in zip((2, 3, 4), roots, strict=True):
        tensor = _along(tensor, root.mT, axis)
    inner = layout.grid.select(range(1, layout.stages - 1))
    crossed = _is_crossed(inner.sizes)
    modes = tensor if crossed else tensor.flatten(3)
    outer, *others = _alternate(modes, layout.channels[1], generator, request.budget)
    first = torch.linalg.solve(roots[0].mT, others[0])
    if crossed:
        taps = [torch.linalg.solve(roots[1].mT, others[1])[:, :, None]]
        taps.append(torch.linalg.solve(roots[2].mT, others[2])[:, None])
        middle = [part.permute(0, 3, 1, 2) for part in taps]
        middle = middle if inner.sizes[0][1] == 1 else middle[::-1]
    else:
        values = others[1].unflatten(1, (height, width))
        values = _along(_along(values, roots[1].mT.inverse(), 1), roots[2].mT.inverse(), 2)
        middle = _split(values.permute(0, 3, 1, 2), inner, request)
    stages = [first.mT, *middle, outer]
    return torch.cat([stage.flatten(1) for stage in stages], 1)


def _is_crossed(sizes: tuple[Pair, ...]) -> bool:
    """Whether the stages are one vertical and one horizontal."""
    lines = [size[0] == 1 for size in sizes], [size[1] == 1 for size in sizes]
    return lines in (([False, True], [True, False]), ([True, False], [False, True]))


def _roots(reduction: Reduction, inputs: int) -> list[Tensor]:
    """Per axis (in, vertical, horizontal) ``R`` with ``R R'`` the mean covariance along it."""
    sizes = (inputs, *reduction.window)
    target, covariance = reduction.target, reduction.covariance
    if covariance is None:
        return [torch.eye(n, dtype=target.dtype, device=target.device)[None] for n in sizes]
    taps = covariance.view(-1, *sizes, *sizes)
    roots = []
    for axis, others in enumerate(((1, 2), (0, 2), (0, 1))):
        left, right = "abc", list("def")
        for other in others:
            right[other] = left[other]
        mean = torch.einsum(f"g{left}{''.join(right)}->g{left[axis]}{right[axis]}", taps)
        mean = mean / mean.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        eye = torch.eye(sizes[axis], dtype=mean.dtype, device=mean.device)
        roots.append(torch.linalg.cholesky(mean + _RIDGE * eye))
    return roots


def _along(tensor: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply (groups, ...) along an axis with (groups or 1, n, n)."""
    moved = tensor.movedim(axis, 1)
    return (matrix @ moved.flatten(2)).view(moved.shape).movedim(1, axis)


def _alternate(
    tensor: Tensor, rank: int, generator: torch.Generator, budget: Budget
) -> list[Tensor]:
    """Factors (groups, n, rank) of a tensor (groups, n, m, ...), all but the first of unit norm."""
    factors = []
    for size in tensor.shape[1:]:
        factor = torch.randn(len(tensor), size, rank, generator=generator, dtype=torch.float64)
        factors.append((factor / factor.norm(dim=1, keepdim=True)).to(tensor.device))
    unfolded = [tensor.movedim(axis, 1).flatten(2) for axis in range(1, tensor.dim())]
    eye = torch.eye(rank, dtype=tensor.dtype, device=tensor.device)
    for sweep in range(_SWEEPS):
        if sweep and budget.used_up():
            break
        for axis in (*range(1, len(factors)), 0):
            others = [f for i, f in enumerate(factors) if i != axis]
            product, gram = others[0], others[0].mT @ others[0]
            for other in others[1:]:
                product = (product[:, :, None] * other[:, None]).flatten(1, 2)
                gram = gram * (other.mT @ other)
            mean = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
            ridge = _RIDGE * torch.where(mean > 0, mean, 1.0) * eye
            factor = torch.linalg.solve(gram + ridge, (unfolded[axis] @ product).mT).mT
            if axis:
                norm = factor.norm(dim=1, keepdim=True)
                factor = factor / torch.where(norm > 0, norm, 1.0)
            factors[axis] = factor
    return factors


def _split(kernels: Tensor, grid: Grid, request: Request) -> list[Tensor]:
    """Split (groups, width, H, W) into stages, (groups, width, kH, kW) each."""
    if len(grid.sizes) == 1:
        (y, x) = grid.spacings[0]
        return [kernels[..., ::y, ::x]]
    target = kernels.flatten(0, 1)[:, None, None]
    count = len(target)
    stages = (
        StageShape(count, count, size, dilation=spacing, groups=count)
        for size, spacing in zip(grid.sizes, grid.spacings, strict=True)
    )
    chains = levenberg.solve(
        Request(
            Problem(target),
            Structure(tuple(stages)),
            seed=request.seed,
            effort=request.effort,
            budget=request.budget.part(request.budget.left / 4),
        )
    )
    return [
        stage.weight.view(*kernels.shape[:2], *stage.weight.shape[2:]) for stage in chains.stages
    ]
