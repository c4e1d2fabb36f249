"""Batched Levenberg-Marquardt steps on sums of chains of small kernels.

The Jacobian of a stage is the convolution matrix of the product of the others; elements of a
batch (channels, starts) are independent of each other and keep their own damping.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convfactor.conv.geometry import Pair
from convfactor.conv.grid import Grid, positions
from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers.correlations import normal_equations

Kernels = list[Tensor]

# On a CPU the Jacobians of a chunk stay in the cache.
_CPU_CHUNK, _DEVICE_CHUNK = 1 << 25, 1 << 29
_SMALL = 20_000
_WIDE = 60
_EXACT = 1e-30


@dataclass(frozen=True, eq=False)
class Fit:
    """What a batch of chains is fitted to: least squares of ``(composed - target) @ root``.

    Attributes:
        target: (N, P), the wanted kernels on the span of the grid.
        group: (N,), which root counts for which element, ascending.
        roots: (groups, P, P) with ``root @ root.T`` the metric, or None for white noise.
    """

    target: Tensor
    group: Tensor
    roots: Tensor | None = None

    def take(self, index: Tensor | slice) -> Fit:
        """Select elements."""
        return replace(self, target=self.target[index], group=self.group[index])

    def repeat(self, times: int) -> Fit:
        """Repeat every element, copies next to each other."""
        return replace(
            self,
            target=self.target.repeat_interleave(times, 0),
            group=self.group.repeat_interleave(times, 0),
        )

    def weigh(self, rows: Tensor) -> Tensor:
        """Multiply rows (N, ..., P) by the root of their group."""
        if self.roots is None:
            return rows
        present, counts = self.group.unique_consecutive(return_counts=True)
        pieces = rows.split(counts.tolist())
        weighed = [p @ self.roots[g] for p, g in zip(pieces, present.tolist(), strict=True)]
        return torch.cat(weighed) if weighed else rows

    def loss(self, kernels: Kernels, grid: Grid) -> Tensor:
        """Squared error, (N,)."""
        return self.weigh(self.residual(kernels, grid)).square().sum(1)

    def residual(self, kernels: Kernels, grid: Grid) -> Tensor:
        """Composed kernels minus targets, (N, P)."""
        return compose(kernels, grid).flatten(1) - self.target


def compose(kernels: Kernels, grid: Grid) -> Tensor:
    """Convolve the stages of every chain and add up the branches.

    Args:
        kernels: Per stage (N, branches, kH, kW).
        grid: Where their taps lie.

    Returns:
        (N, H, W).
    """
    product = kernels[0].new_ones((*kernels[0].shape[:2], 1, 1))
    for kernel, spacing in zip(kernels, grid.spacings, strict=True):
        product = _spread(product, kernel, spacing)
    return product.sum(1)


def balance(kernels: Kernels) -> Kernels:
    """Give the stages of every chain the same norm; chains with a zero stage stay as they are."""
    norms = torch.stack([kernel.flatten(2).norm(dim=2) for kernel in kernels])
    norms = torch.where((norms > 0).all(0) & norms.isfinite().all(0), norms, 1)
    mean = norms.log().mean(0).exp()
    return [k * (mean / n)[..., None, None] for k, n in zip(kernels, norms, strict=True)]


def refine(
    fit: Fit,
    kernels: Kernels,
    grid: Grid,
    steps: int,
    settle: float = 1e-4,
    budget: Budget | None = None,
) -> tuple[Kernels, Tensor]:
    """Run Levenberg-Marquardt; no element gets worse, and none disturbs another.

    Args:
        fit: Targets and metric of N elements.
        kernels: Per stage (N, branches, kH, kW), the start.
        grid: Where the taps lie.
        steps: Most steps per element.
        settle: Relative decrease of the loss over five steps below which an element stops.
        budget: Time to stop after, shared evenly by the elements; None for no end.

    Returns:
        The refined kernels and their loss (N,).
    """
    count, branches = kernels[0].shape[:2]
    pixels = grid.span[0] * grid.span[1]
    room = _CPU_CHUNK if fit.target.device.type == "cpu" else _DEVICE_CHUNK
    chunk = max(1, room // (16 * branches * grid.taps * pixels))
    budget = Budget() if budget is None else budget
    done = []
    with _single_thread(branches * grid.taps * pixels < _SMALL):
        for i in range(0, count, chunk):
            part, own = fit.take(slice(i, i + chunk)), [k[i : i + chunk] for k in kernels]
            share = budget.part(budget.left * chunk / max(count - i, chunk))
            done.append(_refine_chunk(part, own, grid, steps, settle, share))
    stages = zip(*(part[0] for part in done), strict=True)
    return [torch.cat(stage) for stage in stages], torch.cat([part[1] for part in done])


@contextmanager
def _single_thread(wanted: bool) -> Iterator[None]:
    """Keep to one thread: for small matrices its barriers cost more than a second one gives."""
    threads = torch.get_num_threads()
    if wanted:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _refine_chunk(
    fit: Fit, kernels: Kernels, grid: Grid, steps: int, settle: float, budget: Budget
) -> tuple[Kernels, Tensor]:
    result = balance(kernels)
    losses = fit.loss(result, grid)
    losses = torch.where(losses.isfinite(), losses, torch.inf)
    active = (losses.isfinite() & (losses > _EXACT)).nonzero()[:, 0]
    damping = torch.full_like(losses, 0.1)
    before = losses.clone()
    for step in range(1, steps + 1):
        if active.numel() == 0 or budget.used_up():
            break
        part, now = [k[active] for k in result], fit.take(active)
        loss, lam = losses[active], damping[active]
        trial, trial_loss = _step(now, part, grid, lam)
        better = trial_loss < loss
        mask = better[:, None, None, None]
        for kernel, new, old in zip(result, trial, part, strict=True):
            kernel[active] = torch.where(mask, new, old)
        losses[active] = torch.where(better, trial_loss, loss)
        damping[active] = torch.where(better, lam * 0.2, lam * 4).clamp_min(1e-14)
        if step % 5 == 0:
            going = (losses > _EXACT) & (damping < 1e8) & (losses < (1 - settle) * before)
            active = active[going[active]]
            before = losses.clone()
    return result, losses


def _step(fit: Fit, kernels: Kernels, grid: Grid, damping: Tensor) -> tuple[Kernels, Tensor]:
    """One damped step of every element and the loss after it, Inf where it broke down."""
    if fit.roots is None and _is_wide(grid):
        normal, gradient = normal_equations(kernels, grid, fit.residual(kernels, grid))
    else:
        composed, jacobian = _jacobian(kernels, grid)
        jacobian = fit.weigh(jacobian)
        wrong = fit.weigh(composed - fit.target)
        normal = jacobian @ jacobian.mT
        gradient = (jacobian @ wrong[..., None])[..., 0]
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal += damping[:, None] * diagonal.mean(1, keepdim=True)
    factor, info = torch.linalg.cholesky_ex(normal)
    change = torch.cholesky_solve(gradient[..., None], factor)[..., 0]
    trial = balance(_unflatten(_flatten(kernels) - change, grid))
    loss = fit.loss(trial, grid)
    return trial, torch.where((info == 0) & loss.isfinite(), loss, torch.inf)


def _is_wide(grid: Grid) -> bool:
    """Whether correlations are the quicker way to the normal equations."""
    return grid.taps >= _WIDE and grid.is_plain


def _jacobian(kernels: Kernels, grid: Grid) -> tuple[Tensor, Tensor]:
    """Composed kernels (N, P) and their derivatives (N, branches * taps, P)."""
    one = kernels[0].new_ones((*kernels[0].shape[:2], 1, 1))
    tails = [one]
    for kernel, spacing in zip(reversed(kernels[1:]), reversed(grid.spacings[1:]), strict=True):
        tails.append(_spread(tails[-1], kernel, spacing))
    jacobian = one.new_zeros((*one.shape[:2], grid.taps, *grid.span))
    head, tap = one, 0
    for kernel, size, spacing in zip(kernels, grid.sizes, grid.spacings, strict=True):
        tail = tails.pop()
        small, large = sorted((head, tail), key=lambda image: image.shape[-1] * image.shape[-2])
        others = _spread(large, small, (1, 1))
        height, width = others.shape[-2:]
        for y, x in positions(size, spacing):
            jacobian[:, :, tap, y : y + height, x : x + width] = others
            tap += 1
        head = _spread(head, kernel, spacing)
    return head.sum(1).flatten(1), jacobian.flatten(3).flatten(1, 2)


def _spread(image: Tensor, kernel: Tensor, spacing: Pair) -> Tensor:
    """Convolve (N, R, h, w) with one kernel each, (N, R, kH, kW), whose taps lie apart."""
    height, width = image.shape[-2:]
    rows, cols = kernel.shape[-2:]
    result = image.new_zeros(
        (
            *image.shape[:-2],
            height + (rows - 1) * spacing[0],
            width + (cols - 1) * spacing[1],
        )
    )
    taps = kernel.flatten(2)
    for tap, (y, x) in enumerate(positions((rows, cols), spacing)):
        result[..., y : y + height, x : x + width].addcmul_(image, taps[..., tap, None, None])
    return result


def _flatten(kernels: Kernels) -> Tensor:
    return torch.cat([kernel.flatten(2) for kernel in kernels], 2).flatten(1)


def _unflatten(values: Tensor, grid: Grid) -> Kernels:
    areas = [height * width for height, width in grid.sizes]
    parts = values.unflatten(1, (-1, grid.taps)).split(areas, 2)
    return [part.unflatten(2, size) for part, size in zip(parts, grid.sizes, strict=True)]
