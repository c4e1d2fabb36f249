"""Exact split of 1-D filters into short ones, as polynomials into their factors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_BEAM = 128
# Relative error of a product of factors that only rounding keeps from falling.
_ROUNDING = 1e-15


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
