"""Normal equations of chains from the correlations of their stages' surroundings.

A stage's derivatives are shifts of one image, the product of the other stages, so that all inner
products of derivatives are correlations at a few lags. That takes far fewer multiplies than the
derivatives written out, once there are many taps.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from convfactor.conv.grid import Grid

_ALIGNED = 4


def normal_equations(kernels: list[Tensor], grid: Grid, wrong: Tensor) -> tuple[Tensor, Tensor]:
    """Compute ``J J'`` and ``J wrong`` for white noise.

    Args:
        kernels: Per stage (N, branches, kH, kW).
        grid: Where their taps lie, all of them next to each other.
        wrong: (N, H * W), composed kernel minus target on the grid's span.

    Returns:
        (N, branches * taps, branches * taps) and (N, branches * taps), the taps of a branch in the
        order of the stages.
    """
    height, width = grid.span
    most = _most(grid)
    others = _others(kernels, grid).flatten(1, 2)
    count = others.shape[1]
    # Rows with as many zeros behind them as taps are shifted: a shift is one step in memory.
    wide = (0, most[1], 0, most[0] + 1)
    rows = torch.nn.functional.pad(others, wide).flatten(2)
    residual = torch.nn.functional.pad(wrong.view(-1, height, width), wide).flatten(1)
    step, length = width + most[1], height * (width + most[1])
    still = rows[..., :length]
    shape = (len(rows), count, count, 2 * most[0] + 1, 2 * most[1] + 1)
    correlated = rows.new_empty(shape)
    for y, x in itertools.product(range(most[0] + 1), range(-most[1], most[1] + 1)):
        shift = y * step + x
        if shift >= 0:
            lag = still @ rows[..., shift : shift + length].mT
            correlated[..., most[0] + y, most[1] + x] = lag
            correlated[..., most[0] - y, most[1] - x] = lag.mT
    pairs, singles, shifts = _places(grid, count, step)
    taps = torch.stack([residual[:, s : s + length] for s in shifts], 2)
    normal = correlated.flatten(1)[:, pairs.to(rows.device)]
    return normal, (still @ taps).flatten(1)[:, singles.to(rows.device)]


def _most(grid: Grid) -> tuple[int, int]:
    """Largest shifts between taps of two stages."""
    return max(k[0] for k in grid.sizes) - 1, max(k[1] for k in grid.sizes) - 1


def _others(kernels: list[Tensor], grid: Grid) -> Tensor:
    """For every stage the product of the others, (N, branches, stages, H, W)."""
    height, width = grid.span
    size = [-(-side // _ALIGNED) * _ALIGNED for side in (height, width)]
    spectra = [torch.fft.rfft2(kernel, s=size) for kernel in kernels]
    one = torch.ones_like(spectra[0])
    before = list(itertools.accumulate(spectra[:-1], torch.mul, initial=one))
    after = list(itertools.accumulate(spectra[:0:-1], torch.mul, initial=one))
    products = torch.stack([b * a for b, a in zip(before, reversed(after), strict=True)], 2)
    images: Tensor = torch.fft.irfft2(products, s=size)
    return images[..., :height, :width]


@functools.lru_cache(maxsize=64)
def _places(grid: Grid, count: int, step: int) -> tuple[Tensor, Tensor, list[int]]:
    """Where the inner products of all pairs of taps, and those with the residual, are found."""
    most = _most(grid)
    places = [
        (stage, y, x)
        for stage, (rows, cols) in enumerate(grid.sizes)
        for y in range(rows)
        for x in range(cols)
    ]
    branches = count // len(grid.sizes)
    stage, y, x = torch.tensor(places).T.repeat(1, branches)
    branch = torch.arange(branches).repeat_interleave(len(places))
    image = branch * len(grid.sizes) + stage
    lag = (y[:, None] - y + most[0]) * (2 * most[1] + 1) + x[:, None] - x + most[1]
    lags = (2 * most[0] + 1) * (2 * most[1] + 1)
    pairs = (image[:, None] * count + image) * lags + lag
    taps = (most[0] + 1) * (most[1] + 1)
    singles = image * taps + y * (most[1] + 1) + x
    shifts = [a * step + b for a in range(most[0] + 1) for b in range(most[1] + 1)]
    return pairs, singles, shifts
