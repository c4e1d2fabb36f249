"""Starts for chains: separable terms, stages split off one after the other, and random ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from convfactor.factorization.solvers import separable
from convfactor.factorization.solvers.chains import Layout
from convfactor.factorization.solvers.refine import Fit, Kernels, compose

_LIFTS = 10


def join(starts: Sequence[Kernels], channels: int) -> Kernels:
    """Put the starts of every channel next to each other."""
    return [
        torch.cat([part.unflatten(0, (channels, -1)) for part in stage], 1).flatten(0, 1)
        for stage in zip(*starts, strict=True)
    ]


def scaled(fit: Fit, kernels: Kernels, layout: Layout) -> Kernels:
    """Scale the last stage so that the error is smallest."""
    composed = fit.weigh(compose(kernels, layout).flatten(1)[:, None])[:, 0]
    wanted = fit.weigh(fit.target[:, None])[:, 0]
    power = composed.square().sum(1)
    share = (composed * wanted).sum(1) / torch.where(power > 0, power, 1)
    return [*kernels[:-1], kernels[-1] * share[:, None, None, None]]


def separable_start(fit: Fit, layout: Layout, count: int) -> Kernels:
    """Split the leading separable terms, where real roots allow it; else shifts and zeros."""
    chains = []
    for target in fit.target:
        kernel = target.view(layout.span)
        try:
            chains.append(separable.split_terms(kernel, layout.sizes, count, exact=False))
        except (ValueError, np.linalg.LinAlgError):
            chains.append([torch.zeros(count, *size, dtype=torch.float64) for size in layout.sizes])
    return [torch.stack(stage).to(fit.target) for stage in zip(*chains, strict=True)]


def folded(fit: Fit, layout: Layout, count: int) -> Kernels:
    """Split off one stage after the other by the lifted matrix; one branch, the others zero."""
    rest = fit.target.view(-1, 1, *layout.span)
    chain: Kernels = []
    for last in range(len(layout.sizes) - 1, 0, -1):
        rest, stage = lifted(rest, layout.merge(range(last), [last]))
        chain.insert(0, stage)
    y, x = layout.spacings[0]
    kernels: Kernels = []
    for stage in [rest[..., ::y, ::x], *chain]:
        others = torch.zeros_like(stage).repeat(1, count - 1, 1, 1)
        others[..., 0, 0] = float(len(kernels) < len(chain))
        kernels.append(torch.cat([stage, others], 1))
    return kernels


def lifted(kernels: Tensor, halves: Layout) -> Kernels:
    """Split kernels (N, 1, H, W) in two by the lifted matrix, of rank one for an exact split.

    ``T[p, q]`` with ``W[r] = sum_{p+q=r} T[p, q]``: truncation to rank one alternates with the
    projection on that constraint.
    """
    target = kernels.flatten(1)
    (height, width), (rows, cols) = halves.sizes
    dy, dx = halves.spacings[1]
    grid = torch.arange(target.shape[1], device=target.device).view(halves.span)
    index = torch.stack(
        [
            grid[y * dy : y * dy + height, x * dx : x * dx + width].flatten()
            for y in range(rows)
            for x in range(cols)
        ]
    )
    times = torch.bincount(index.flatten(), minlength=grid.numel()).clamp_min(1).to(target)
    lift = (target / times)[:, index]
    for _ in range(_LIFTS):
        small = torch.linalg.eigh(lift @ lift.mT)[1][:, :, -1:]
        large = small.mT @ lift
        truncated = small @ large
        back = torch.zeros_like(target).index_add_(1, index.flatten(), truncated.flatten(1))
        lift = truncated + ((target - back) / times)[:, index]
    return [large.view(-1, 1, height, width), small.reshape(-1, 1, rows, cols)]


def drawn(fit: Fit, layout: Layout, count: int, starts: int, generator: torch.Generator) -> Kernels:
    """Draw several starts for every channel."""
    kernels = []
    for size in layout.sizes:
        shape = (len(fit.target) * starts, count, *size)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        kernels.append(noise.to(fit.target.device))
    return scaled(fit.repeat(starts), kernels, layout)
