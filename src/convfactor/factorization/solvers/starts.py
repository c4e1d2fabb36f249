"""Starts for chains: separable terms, stages split off one after the other, and random ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from convfactor.conv.grid import Grid
from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers import separable
from convfactor.factorization.solvers.lift import Lift, Parts
from convfactor.factorization.solvers.refine import Fit, Kernels, compose

_LIFTS = 10


def join(starts: Sequence[Kernels], channels: int) -> Kernels:
    """Put the starts of every channel next to each other."""
    return [
        torch.cat([part.unflatten(0, (channels, -1)) for part in stage], 1).flatten(0, 1)
        for stage in zip(*starts, strict=True)
    ]


def scaled(fit: Fit, kernels: Kernels, grid: Grid) -> Kernels:
    """Scale the last stage so that the error is smallest."""
    composed = fit.weigh(compose(kernels, grid).flatten(1)[:, None])[:, 0]
    wanted = fit.weigh(fit.target[:, None])[:, 0]
    power = composed.square().sum(1)
    share = (composed * wanted).sum(1) / torch.where(power > 0, power, 1)
    return [*kernels[:-1], kernels[-1] * share[:, None, None, None]]


def separable_start(fit: Fit, grid: Grid, count: int) -> Kernels:
    """Split the leading separable terms, where real roots allow it; else shifts and zeros."""
    if separable.undivided(grid.sizes):
        return separable.leading(fit.target.view(-1, *grid.span), grid.sizes, count)
    chains = []
    for target in fit.target:
        kernel = target.view(grid.span)
        try:
            chains.append(separable.split_terms(kernel, grid.sizes, count, exact=False))
        except (ValueError, np.linalg.LinAlgError):
            chains.append([torch.zeros(count, *size, dtype=torch.float64) for size in grid.sizes])
    return [torch.stack(stage).to(fit.target) for stage in zip(*chains, strict=True)]


def folded(fit: Fit, grid: Grid, count: int) -> Kernels:
    """Split off one stage after the other by the lifted matrix; one branch, the others zero."""
    rest = fit.target.view(-1, 1, *grid.span)
    chain: Kernels = []
    for last in range(len(grid.sizes) - 1, 0, -1):
        rest, stage = lifted(rest, grid.merge(range(last), [last]))
        chain.insert(0, stage)
    y, x = grid.spacings[0]
    kernels: Kernels = []
    for stage in [rest[..., ::y, ::x], *chain]:
        others = torch.zeros_like(stage).repeat(1, count - 1, 1, 1)
        others[..., 0, 0] = float(len(kernels) < len(chain))
        kernels.append(torch.cat([stage, others], 1))
    return kernels


def lifted(kernels: Tensor, halves: Grid) -> Kernels:
    """Split kernels (N, 1, H, W) in two by the lifted matrix, of rank one for an exact split."""
    lift = Lift(halves.span, halves.sizes[1], halves.spacings[1], kernels)

    def truncate(values: Tensor, _: Parts) -> tuple[Parts, Tensor]:
        matrix = values.flatten(2)
        small = torch.linalg.eigh(matrix @ matrix.mT)[1][:, :, -1:]
        large = small.mT @ matrix
        return (small, large), (small @ large).view(values.shape)

    small, large = lift.split(kernels[:, 0], truncate, (kernels, kernels), _LIFTS, Budget())
    return [large.view(-1, 1, *halves.sizes[0]), small.reshape(-1, 1, *halves.sizes[1])]


def drawn(fit: Fit, grid: Grid, count: int, starts: int, generator: torch.Generator) -> Kernels:
    """Draw several starts for every channel."""
    kernels = noise(grid, len(fit.target) * starts, count, generator, fit.target.device)
    return scaled(fit.repeat(starts), kernels, grid)


def noise(
    grid: Grid, batch: int, count: int, generator: torch.Generator, device: torch.device
) -> Kernels:
    """Draw the weights of chains, (batch, count, kH, kW) per stage."""
    shapes = [(batch, count, *size) for size in grid.sizes]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(device) for s in shapes]
