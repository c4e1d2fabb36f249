"""The original method: alternating gradient descent with random restarts.

Kept as the baseline that the other solvers are compared with: each step updates one stage after
the other by its gradient, the rest fixed, from many random starts, and the best one is returned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers.chains import branches
from convfactor.factorization.solvers.refine import Kernels, balance, compose
from convfactor.factorization.solvers.request import Request
from convfactor.factorization.solvers.starts import noise

STARTS = 50
_ADMISSIBLE = 1e-6

_Loss = Callable[[Kernels], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How the original method descends.

    The loss is the mean squared error in units of the target's mean square on the window, plus the
    squared relative difference of the energies (L2), plus the squared sum of the kernel in units of
    the target's norm (admissibility: a wavelet has none). In these units the same rate suits
    kernels of any size.

    Attributes:
        starts: Random starts per channel.
        steps: Sweeps over all stages.
        rate: Learning rate.
        mse_weight: Weight of the mean squared error.
        energy_weight: Weight of the energy term.
        admissibility_weight: Weight of the admissibility term.
    """

    starts: int = STARTS
    steps: int = 50
    rate: float = 0.2
    mse_weight: float = 1.0
    energy_weight: float = 0.0
    admissibility_weight: float = 0.0


ORIGINAL = Recipe()


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


def solve(request: Request, recipe: Recipe = ORIGINAL) -> Restarts:
    """Fit chains to every channel by alternating gradient descent.

    Args:
        request: Its problem has one input channel per group, and its covariance is not used; its
            structure is chains as ``chain_structure`` makes them, of any number and size of
            stages. Of the rest, the seed and the budget count.
        recipe: How to descend.

    Returns:
        The best cascade, all losses, and how many starts diverged.

    Raises:
        ValueError: The structure is another one, or every start of a channel diverged.
    """
    problem, structure, starts = request.problem, request.structure, recipe.starts
    count, grid = branches(problem, structure), structure.grid
    target = problem.target.double()[:, :, 0].flatten(0, 1)
    if recipe.admissibility_weight > 0:
        _warn_inadmissible(target)
    peak = target.abs().amax((1, 2), keepdim=True)
    peak = torch.where(peak > 0, peak, 1)
    scale = peak * (target / peak).square().sum((1, 2), keepdim=True).sqrt()
    scale = torch.where(scale > 0, scale, 1)
    wanted = (target / scale).repeat_interleave(starts, 0)
    loss = _loss(wanted, request, recipe)
    generator = torch.Generator().manual_seed(request.seed)
    kernels = noise(grid, len(wanted), count, generator, wanted.device)
    norms = compose(kernels, grid).square().sum((1, 2)).sqrt()[:, None, None, None]
    kernels = balance([*kernels[:-1], kernels[-1] / norms])
    _descend(kernels, loss, recipe, request.budget)
    losses = loss(kernels)
    losses = torch.where(losses.isfinite(), losses, torch.inf).view(-1, starts)
    lowest, best = losses.min(1)
    if not bool(lowest.isfinite().all()):
        raise ValueError(f"every start diverged at rate {recipe.rate:g}; use a smaller rate")
    index = torch.arange(len(best), device=best.device) * starts + best
    chosen = [kernel[index] for kernel in kernels]
    chosen[-1] = chosen[-1] * scale[..., None]
    cascade = Cascade.of(structure, chosen).balanced()
    return Restarts(cascade, losses, int(losses.isinf().sum()))


def _loss(wanted: Tensor, request: Request, recipe: Recipe) -> _Loss:
    """The loss of every start, (N,), for wanted kernels (N, H, W) on the window."""
    structure = request.structure
    top, left = request.problem.placement(structure)
    height, width = structure.span
    inside = wanted[:, top : top + height, left : left + width]
    energy = wanted.square().sum((1, 2))
    missed = energy - inside.square().sum((1, 2))

    def loss(kernels: Kernels) -> Tensor:
        composed = compose(kernels, structure.grid)
        wrong = (composed - inside).square().sum((1, 2)) + missed
        power = (composed.square().sum((1, 2)) - energy).square()
        total = composed.sum((1, 2)).square()
        return (
            recipe.mse_weight * wrong
            + recipe.energy_weight * power
            + recipe.admissibility_weight * total
        )

    return loss


def _descend(kernels: Kernels, loss: _Loss, recipe: Recipe, budget: Budget) -> None:
    """Step down the gradient of one stage after the other, in place."""
    with torch.enable_grad():
        for _ in range(recipe.steps):
            if budget.used_up():
                break
            for stage in range(len(kernels)):
                active = kernels[stage].detach().requires_grad_()
                trial = [*kernels[:stage], active, *kernels[stage + 1 :]]
                (gradient,) = torch.autograd.grad(loss(trial).sum(), active)
                kernels[stage] = (active - recipe.rate * gradient).detach()


def _warn_inadmissible(target: Tensor) -> None:
    sums = target.sum((1, 2)).abs()
    count = int((sums > _ADMISSIBLE * target.abs().sum((1, 2))).sum())
    if count:
        warnings.warn(
            f"{count} of {len(target)} target kernels are not admissible (their sum is not 0, up "
            f"to {float(sums.max()):.3g}), so the admissibility weight pulls away from them",
            stacklevel=3,
        )
