"""The original method: alternating gradient descent with random restarts.

Kept as the baseline that the other solvers are compared with: each step updates one stage after
the other by its gradient, the rest fixed, from many random starts, and the best one is returned.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.structure import Structure
from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers.chains import Layout, branches, pack
from convfactor.factorization.solvers.problem import Problem
from convfactor.factorization.solvers.refine import Kernels, balance, compose

STARTS = 50
_ADMISSIBLE = 1e-6


@dataclass(frozen=True, eq=False)
class Restarts:
    """What the restarts found.

    Attributes:
        cascade: The best start of every channel.
        losses: (channels, starts), the final losses; Inf where a start diverged.
        dropped: Starts that diverged, over all channels.
    """

    cascade: Cascade
    losses: Tensor
    dropped: int


def normalise(kernel: Tensor, size: int = 16) -> Tensor:
    """Bring a kernel to the scale in which the original method counts its MSE.

    Args:
        kernel: (H, W), put in the middle of a grid of zeros.
        size: Side of the grid.

    Returns:
        Float64 (size, size) of zero mean and unit ``torch.std``. Where the kernel has a mean, the
        zeros around it are shifted too, and no small kernel can hold that.

    Raises:
        ValueError: The kernel is larger than the grid, or constant on it.
    """
    height, width = kernel.shape
    if max(height, width) > size:
        raise ValueError(f"kernel must fit in {size}x{size}, got {height}x{width}")
    grid = torch.zeros(size, size, dtype=torch.float64, device=kernel.device)
    top, left = (size - height) // 2, (size - width) // 2
    grid[top : top + height, left : left + width] = kernel
    grid = grid - grid.mean()
    if float(grid.std()) == 0:
        raise ValueError("kernel must not be constant on the grid: its standard deviation is 0")
    return grid / grid.std()


def solve(
    problem: Problem,
    structure: Structure,
    *,
    starts: int = STARTS,
    steps: int = 50,
    rate: float = 0.2,
    mse_weight: float = 1.0,
    energy_weight: float = 0.0,
    admissibility_weight: float = 0.0,
    seed: int = 0,
    budget: Budget | None = None,
) -> Restarts:
    """Fit chains to every channel by alternating gradient descent.

    The loss is the mean squared error in units of the target's mean square on the window, plus the
    squared relative difference of the energies (L2), plus the squared sum of the kernel in units of
    the target's norm (admissibility: a wavelet has none). In these units the same rate suits
    kernels of any size. The problem's covariance is not used.

    Args:
        problem: Its target has one input channel per group.
        structure: Chains as ``chain_structure`` makes them, of any number and size of stages.
        starts: Random starts per channel.
        steps: Sweeps over all stages.
        rate: Learning rate.
        mse_weight: Weight of the mean squared error.
        energy_weight: Weight of the energy term.
        admissibility_weight: Weight of the admissibility term.
        seed: Seed of the starts.
        budget: Time to stop after, with the best so far; None for no end.

    Returns:
        The best cascade, all losses, and how many starts diverged.

    Raises:
        ValueError: The structure is another one, or every start of a channel diverged.
    """
    groups, out_per_group, inputs = problem.target.shape[:3]
    if inputs != 1:
        raise ValueError(f"problem.target must have one input channel per group, got {inputs}")
    count = branches(structure, groups, out_per_group)
    layout = Layout.of(structure)
    target = problem.target.double()[:, :, 0].flatten(0, 1)
    if admissibility_weight > 0:
        _warn_inadmissible(target)
    peak = target.abs().amax((1, 2), keepdim=True)
    peak = torch.where(peak > 0, peak, 1)
    scale = peak * (target / peak).square().sum((1, 2), keepdim=True).sqrt()
    scale = torch.where(scale > 0, scale, 1)
    wanted = (target / scale).repeat_interleave(starts, 0)
    top, left = problem.placement(structure)
    height, width = layout.span
    inside = wanted[:, top : top + height, left : left + width]
    energy = wanted.square().sum((1, 2))
    missed = energy - inside.square().sum((1, 2))

    def loss(kernels: Kernels) -> Tensor:
        composed = compose(kernels, layout)
        wrong = (composed - inside).square().sum((1, 2)) + missed
        power = (composed.square().sum((1, 2)) - energy).square()
        total = composed.sum((1, 2)).square()
        return mse_weight * wrong + energy_weight * power + admissibility_weight * total

    generator = torch.Generator().manual_seed(seed)
    kernels = []
    for size in layout.sizes:
        noise = torch.randn((len(wanted), count, *size), generator=generator, dtype=torch.float64)
        kernels.append(noise.to(wanted.device))
    norms = compose(kernels, layout).square().sum((1, 2)).sqrt()[:, None, None, None]
    kernels = balance([*kernels[:-1], kernels[-1] / norms])
    with torch.enable_grad():
        for _ in range(steps):
            if budget is not None and budget.used_up():
                break
            for stage in range(len(kernels)):
                active = kernels[stage].detach().requires_grad_()
                trial = [*kernels[:stage], active, *kernels[stage + 1 :]]
                (gradient,) = torch.autograd.grad(loss(trial).sum(), active)
                kernels[stage] = (active - rate * gradient).detach()
    losses = loss(kernels)
    losses = torch.where(losses.isfinite(), losses, torch.inf).view(-1, starts)
    lowest, best = losses.min(1)
    if not bool(lowest.isfinite().all()):
        raise ValueError(f"every start diverged at rate {rate:g}; use a smaller rate")
    index = torch.arange(len(best), device=best.device) * starts + best
    chosen = [kernel[index] for kernel in kernels]
    chosen[-1] = chosen[-1] * scale[..., None]
    return Restarts(pack(structure, chosen).balanced(), losses, int(losses.isinf().sum()))


def _warn_inadmissible(target: Tensor) -> None:
    sums = target.sum((1, 2)).abs()
    count = int((sums > _ADMISSIBLE * target.abs().sum((1, 2))).sum())
    if count:
        warnings.warn(
            f"{count} of {len(target)} target kernels are not admissible (their sum is not 0, up "
            f"to {float(sums.max()):.3g}), so the admissibility weight pulls away from them",
            stacklevel=3,
        )
