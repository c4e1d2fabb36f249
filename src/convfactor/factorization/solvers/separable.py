"""Exact split of separable kernels into chains of small stages.

A rank-1 kernel is a column times a row. A 1-D filter is a real polynomial, which splits into real
quadratics and linear factors; the outer product of one factor of the column and one of the row is
a small stage (Pratt, Digital Image Processing: SVD expansion and small generating kernels).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import Pair
from convfactor.conv.grid import stage_sizes
from convfactor.conv.structure import Structure
from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers.chains import branches, chain_structure, pack
from convfactor.factorization.solvers.problem import Problem

Array = npt.NDArray[Any]

_BEAM = 128
# Relative error of a product of factors that only rounding keeps from falling.
_ROUNDING = 1e-15


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
    return solve(Problem(kernel.detach().double()[None, None, None]), structure)


def solve(problem: Problem, structure: Structure, budget: Budget | None = None) -> Cascade:
    """Split the leading separable terms of every channel into parallel chains.

    Exact where a channel has no more terms than there are branches and no energy outside the
    structure's span; otherwise the best approximation by separable terms in the white-noise
    metric (the problem's covariance is not used).

    Args:
        problem: Its target has one input channel per group.
        structure: Chains as ``chain_structure`` makes them, neither strided nor dilated.
        budget: Time after which channels are split without the care for their rounding.

    Returns:
        A balanced float64 cascade of exactly this structure.

    Raises:
        ValueError: The structure is another one, does not fit in the window, or asks for more
            stages of even size than a filter has real roots.
    """
    groups, out_per_group, inputs = problem.target.shape[:3]
    if inputs != 1:
        raise ValueError(f"problem.target must have one input channel per group, got {inputs}")
    count = branches(structure, groups, out_per_group)
    if any(s.stride != (1, 1) or s.dilation != (1, 1) for s in structure.stages):
        raise ValueError(f"structure {structure} must be neither strided nor dilated")
    top, left = problem.placement(structure)
    height, width = structure.span
    kernels = problem.target[:, :, 0, top : top + height, left : left + width].flatten(0, 1)
    sizes = [stage.kernel_size for stage in structure.stages]
    # Blurs have the same kernel in every channel.
    different, which = torch.unique(kernels, dim=0, return_inverse=True)
    budget = Budget() if budget is None else budget
    chains = [split_terms(k, sizes, count, exact=not budget.used_up()) for k in different]
    weights = [torch.stack(s).to(kernels.device)[which] for s in zip(*chains, strict=True)]
    return pack(structure, weights).balanced()


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


def split_filter(taps: Array, sizes: Sequence[int], exact: bool = True) -> list[Array]:
    """Split a 1-D filter into short ones whose convolution it is.

    Args:
        taps: The filter, not all zero.
        sizes: Length of each stage, ``sum(size - 1) + 1 == len(taps)``.
        exact: Polish the roots and order the stages for the least rounding.

    Returns:
        One filter per stage, of unit norm but for the last, which carries the scale.

    Raises:
        ValueError: The sizes do not span the filter, or there are more stages of even size than
            the filter has real roots.
    """
    if sum(size - 1 for size in sizes) != len(taps) - 1:
        raise ValueError(f"sizes {list(sizes)} do not span a side of {len(taps)} taps")
    linear, quadratic = _factors(np.asarray(taps, dtype=np.float64), sizes, exact)
    units = []
    for size in sizes:
        unit = linear.pop() if size % 2 == 0 else np.ones(1)
        while len(unit) < size:
            unit = np.convolve(unit, quadratic.pop())
        units.append(unit / np.linalg.norm(unit))
    if exact:
        units = [units[i] for i in _order(units)]
    product = _product(units)
    units[-1] = units[-1] * np.float64(product @ taps / (product @ product))
    return units


def _factors(taps: Array, sizes: Sequence[int], exact: bool) -> tuple[list[Array], list[Array]]:
    """Split into quadratic factors and one linear factor for each even size, of unit norm."""
    odd = sum(size % 2 == 0 for size in sizes)
    used = np.flatnonzero(np.abs(taps) > 4 * np.finfo(np.float64).eps * np.abs(taps).max())
    before, after = used[0], len(taps) - 1 - used[-1]
    core = taps[used[0] : used[-1] + 1]
    roots = np.roots(core)
    quadratic = [np.array([1, -2 * z.real, abs(z) ** 2]) for z in roots[roots.imag > 0]]
    real = [np.array([1, -z]) for z in roots[roots.imag == 0].real]
    factors = [factor / np.linalg.norm(factor) for factor in quadratic + real]
    if exact:
        factors = _polish(factors, core)
    quadratic = [factor for factor in factors if len(factor) == 3]
    real = [factor for factor in factors if len(factor) == 2]
    real.sort(key=lambda factor: abs(factor[1] / factor[0]) if factor[0] else np.inf)
    shifts = [np.array([1.0, 0.0])] * after, [np.array([0.0, 1.0])] * before
    linear = [*shifts[0], *real, *shifts[1]]
    if len(linear) < odd:
        raise ValueError(
            f"sizes {list(sizes)} ask for {odd} stages of even size on one side, but the filter "
            f"has only {len(linear)} real roots; use a stage of odd size in place of two of them"
        )
    while len(linear) > odd:
        # Reciprocal roots together: a short symmetric filter, or a plain shift of one tap.
        quadratic.append(np.convolve(linear.pop(), linear.pop(0)))
    return linear, [factor / np.linalg.norm(factor) for factor in quadratic]


def _polish(factors: list[Array], taps: Array, steps: int = 20) -> list[Array]:
    """Correct the coefficients of all factors together by damped Newton steps.

    Roots lose digits where they are close to each other, their product need not.
    """
    if not factors:
        return factors
    factors = [factors[i] for i in _order(factors, keep_lengths=False)]
    target = np.asarray(taps, dtype=np.longdouble) / np.linalg.norm(taps)

    def residual(trial: list[Array]) -> tuple[Array, Any]:
        product = _product([f.astype(np.longdouble) for f in trial])
        scale = product @ target / (product @ product)
        return target - scale * product, scale

    wrong, scale = residual(factors)
    error, damping = float(np.sqrt(wrong @ wrong)), 0.0
    for _ in range(steps):
        if error < 1e-17:
            break
        rows = np.zeros((sum(map(len, factors)), len(target)))
        size = 0
        before = list(itertools.accumulate(factors, np.convolve, initial=np.ones(1)))
        after = list(itertools.accumulate(factors[::-1], np.convolve, initial=np.ones(1)))
        for i, factor in enumerate(factors):
            others = np.float64(scale) * np.convolve(before[i], after[len(factors) - 1 - i])
            for tap in range(len(factor)):
                rows[size, tap : tap + len(others)] = others
                size += 1
        system = np.hstack([rows, damping * np.eye(size)]).T
        right = np.concatenate([wrong.astype(np.float64), np.zeros(size)])
        step = np.linalg.lstsq(system, right, rcond=1e-14)[0]
        pieces = np.split(step, np.cumsum([len(f) for f in factors])[:-1])
        trial = [f + piece for f, piece in zip(factors, pieces, strict=True)]
        trial = [f / np.linalg.norm(f) for f in trial]
        new_wrong, new_scale = residual(trial)
        new_error = float(np.sqrt(new_wrong @ new_wrong))
        if new_error < 0.9 * error:
            factors, wrong, scale, error = trial, new_wrong, new_scale, new_error
            damping /= 10
        elif error < _ROUNDING:
            break
        else:
            damping = max(10 * damping, 1e-8)
    return factors


def _order(units: list[Array], keep_lengths: bool = True) -> list[int]:
    """Order the stages so that the rounding of the intermediates is amplified least.

    A rounding error after a stage has the size of the output so far and is amplified by the
    stages that follow: ``sum_i |head_i|^2 |tail_i|^2`` is minimised, the norms taken from the
    frequency responses. The cost depends on the set of the stages before only, so a beam search
    over sets is exact while it holds all of them (up to nine stages).
    """
    sizes = np.array([len(unit) for unit in units])
    points = int((sizes - 1).sum()) + 1
    padded = np.stack([np.pad(unit, (0, points - len(unit))) for unit in units])
    power = np.maximum(np.abs(np.fft.fft(padded)) ** 2, 1e-30)
    masks, costs, paths = [0], np.zeros(1), [np.zeros(0, dtype=np.intp)]
    head, tail = np.ones((1, points)), power.prod(axis=0, keepdims=True)
    for size in sizes:
        trial = costs[:, None] + (head @ power.T) * (tail @ (1 / power).T)
        if keep_lengths:
            trial[:, sizes != size] = np.inf
        for state, path in enumerate(paths):
            trial[state, path] = np.inf
        best: dict[int, tuple[int, int]] = {}
        for flat in np.argsort(trial, axis=None, kind="stable"):
            state, unit = divmod(int(flat), len(units))
            if len(best) == _BEAM or trial[state, unit] == np.inf:
                break
            best.setdefault(masks[state] | 1 << unit, (state, unit))
        states, chosen = np.array(list(best.values())).T
        masks, costs = list(best), trial[states, chosen]
        paths = [np.append(paths[state], unit) for state, unit in best.values()]
        head, tail = head[states] * power[chosen], tail[states] / power[chosen]
    return [int(unit) for unit in paths[0]]


def _product(factors: Sequence[Array]) -> Array:
    product = np.ones(1, dtype=factors[0].dtype if factors else np.float64)
    for factor in factors:
        product = np.convolve(product, factor)
    return product
