"""Exact split of separable kernels into chains of small stages.

A rank-1 kernel is a column times a row. A 1-D filter is a real polynomial, which splits into real
quadratics and linear factors; the outer product of one factor of the column and one of the row is
a small stage (Pratt, Digital Image Processing: SVD expansion and small generating kernels).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import Pair
from convfactor.conv.grid import stage_sizes
from convfactor.factorization.solvers.chains import branches, chain_structure
from convfactor.factorization.solvers.polynomials import split_filter
from convfactor.factorization.solvers.problem import Problem
from convfactor.factorization.solvers.request import Request


def rank(kernel: Tensor, tolerance: float) -> int:
    """Count the separable terms that a kernel needs.

    Args:
        kernel: (H, W).
        tolerance: Relative error in the Frobenius norm that may remain.

    Returns:
        The smallest R for which the best kernel of rank R is as near as that; 0 for zeros.
    """
    peak = float(kernel.abs().max())
    if peak == 0:
        return 0
    values = torch.linalg.svdvals(kernel.detach().double() / peak)
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt()
    return int((tails > tolerance * tails[0]).sum())


def split(kernel: Tensor, sizes: Sequence[Pair] | None = None, tolerance: float = 1e-6) -> Cascade:
    """Split a kernel of rank 1 into a chain of small stages without error.

    The stages are ordered so that the rounding of the intermediates grows least, and scaled so
    that white noise keeps its power.

    Args:
        kernel: (H, W), real.
        sizes: Kernel size of each stage; by default the fewest of at most 3x3.
        tolerance: Largest relative distance to rank 1; what is there is dropped.

    Returns:
        A float64 cascade of stages (1, 1, kH, kW), the kernel's span and offset (0, 0).

    Raises:
        ValueError: The kernel is not separable or not finite, the sizes do not span it, or a side
            needs more real roots (one for each stage of even size) than the filter has.
    """
    height, width = kernel.shape
    sizes = stage_sizes((height, width)) if sizes is None else tuple(sizes)
    if not bool(torch.isfinite(kernel).all()):
        raise ValueError("kernel must be finite, it holds Inf or NaN")
    terms = rank(kernel, tolerance)
    if terms > 1:
        raise ValueError(
            f"kernel must have rank 1 to within {tolerance:g}, it needs {terms} terms; "
            "use solve() with that many branches"
        )
    structure = chain_structure(1, 1, sizes)
    if structure.span != (height, width):
        raise ValueError(
            f"sizes must span the kernel of {height}x{width} taps, {list(sizes)} span "
            f"{structure.span[0]}x{structure.span[1]}"
        )
    return solve(Request(Problem(kernel.detach().double()[None, None, None]), structure))


def solve(request: Request) -> Cascade:
    """Split the leading separable terms of every channel into parallel chains.

    Exact where a channel has no more terms than there are branches and no energy outside the
    structure's span; otherwise the best approximation by separable terms in the white-noise
    metric (the problem's covariance is not used).

    Args:
        request: Its problem has one input channel per group, its structure chains as
            ``chain_structure`` makes them, neither strided nor dilated. Where the budget ends,
            channels are split without the care for their rounding; what else is asked does not
            matter.

    Returns:
        A balanced float64 cascade of exactly this structure.

    Raises:
        ValueError: The structure is another one, does not fit in the window, or asks for more
            stages of even size than a filter has real roots.
    """
    problem, structure = request.problem, request.structure
    count = branches(problem, structure)
    if any(s.stride != (1, 1) or s.dilation != (1, 1) for s in structure.stages):
        raise ValueError(f"structure {structure} must be neither strided nor dilated")
    top, left = problem.placement(structure)
    height, width = structure.span
    kernels = problem.target[:, :, 0, top : top + height, left : left + width].flatten(0, 1)
    sizes, budget = structure.grid.sizes, request.budget
    if undivided(sizes):
        return Cascade.of(structure, leading(kernels, sizes, count)).balanced()
    # Blurs have the same kernel in every channel.
    different, which = torch.unique(kernels, dim=0, return_inverse=True)
    chains = [split_terms(k, sizes, count, exact=not budget.used_up()) for k in different]
    weights = [torch.stack(s).to(kernels.device)[which] for s in zip(*chains, strict=True)]
    return Cascade.of(structure, weights).balanced()


def undivided(sizes: Sequence[Pair]) -> bool:
    """Whether no column and no row has to be split, as in Kx1, 1xK, and no stage has both."""
    if any(min(size) > 1 for size in sizes):
        return False
    return all(sum(side > 1 for side in sides) <= 1 for sides in zip(*sizes, strict=True))


def leading(kernels: Tensor, sizes: Sequence[Pair], terms: int) -> list[Tensor]:
    """Take the leading terms of all kernels at once.

    Args:
        kernels: Float64 (N, H, W).
        sizes: Kernel size of each stage, undivided.
        terms: Number of terms; those that the kernels lack are zero.

    Returns:
        One float64 tensor (N, terms, kH, kW) per stage.
    """
    left, strength, right = torch.linalg.svd(kernels, full_matrices=False)
    missing = max(0, terms - strength.shape[1])
    rows = F.pad(left.mT, (0, 0, 0, missing))[:, :terms, :, None]
    cols = F.pad(right, (0, 0, 0, missing))[:, :terms, None, :]
    scale = F.pad(strength, (0, missing))[:, :terms, None, None]
    weights = [torch.ones_like(scale) for _ in sizes]
    for axis, part in enumerate((rows, cols)):
        longest = max(range(len(sizes)), key=[size[axis] for size in sizes].__getitem__)
        weights[longest] = weights[longest] * part
    return [*weights[:-1], weights[-1] * scale]


def split_terms(
    kernel: Tensor, sizes: Sequence[Pair], terms: int, exact: bool = True
) -> list[Tensor]:
    """Split the leading terms of one kernel.

    Args:
        kernel: (H, W).
        sizes: Kernel size of each stage.
        terms: Number of terms; those that the kernel lacks are zero.
        exact: Polish the roots and order the stages for the least rounding.

    Returns:
        One float64 tensor (terms, kH, kW) per stage, on the CPU.

    Raises:
        ValueError: As ``split``.
    """
    values = kernel.detach().cpu().double().numpy()
    scale = float(np.abs(values).max(initial=0)) or 1.0
    left, strength, right = np.linalg.svd(values / scale)
    chains = []
    for term in range(terms):
        share = strength[term] if term < len(strength) else 0.0
        if share <= 1e-15 * strength[0]:
            units = [np.zeros(size) for size in sizes]
            for unit in units[:-1]:
                unit[0, 0] = 1
        else:
            rows = split_filter(left[:, term], [size[0] for size in sizes], exact)
            cols = split_filter(right[term], [size[1] for size in sizes], exact)
            units = [np.outer(row, col) for row, col in zip(rows, cols, strict=True)]
            units[-1] = units[-1] * share * scale
        chains.append(units)
    return [torch.from_numpy(np.stack(stage)) for stage in zip(*chains, strict=True)]
