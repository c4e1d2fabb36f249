"""Solver for kernels with one input channel per group: single-channel and depthwise ones.

All channels and all starts are fitted together by batched Levenberg-Marquardt. The starts are the
exact split of the separable part, stages peeled off one after the other, and random ones; pairs
of stages of the best answer are then merged and split again.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.structure import Structure
from convfactor.factorization.solvers.chain_search import ChainSearch
from convfactor.factorization.solvers.chains import branches
from convfactor.factorization.solvers.efforts import affordable
from convfactor.factorization.solvers.embedding import embed_chains
from convfactor.factorization.solvers.problem import Problem
from convfactor.factorization.solvers.reduction import Reduction
from convfactor.factorization.solvers.refine import Fit, Kernels
from convfactor.factorization.solvers.request import Request

_FLOOR = 1e-12


def handles(problem: Problem, structure: Structure) -> bool:
    """Tell whether ``solve`` is made for a problem and a structure."""
    try:
        branches(problem, structure)
    except ValueError:
        return False
    return True


def solve(request: Request) -> Cascade:
    """Find the best chains for every channel.

    Args:
        request: Its problem has one input channel per group, and any number of output channels;
            its structure is one chain, or several in parallel, for every output channel, as
            ``chain_structure`` makes them, with stages of any size, stride and dilation.

    Returns:
        A balanced float64 cascade of exactly this structure.

    Raises:
        ValueError: The structure mixes channels in another way or does not fit in the window, the
            target is not finite, or a start does not fit in the structure.
    """
    problem, structure = request.problem, request.structure
    count, grid = branches(problem, structure), structure.grid
    if not bool(problem.target.isfinite().all()):
        raise ValueError("problem.target must be finite, it holds Inf or NaN")
    fit, scale = _normalise(request)
    size = torch.where(scale > 0, scale, 1)
    given = []
    for start in request.starts:
        kernels = [k.to(fit.target) for k in embed_chains(start, request)]
        given.append([*kernels[:-1], kernels[-1] / size[:, None, None, None]])
    power = (scale / size.amax()) ** 2

    def tell(share: float, losses: Tensor) -> None:
        request.progress(share, float(((losses * power).sum() / power.sum()).sqrt()))

    channels, pixels = fit.target.shape
    plan = affordable(channels, count * grid.taps, pixels, request.effort)
    generator = torch.Generator().manual_seed(request.seed)
    best = ChainSearch(plan, generator, request.budget).run(fit, grid, count, given, tell)
    cascade = Cascade.of(structure, _zeroed(best, fit.target)).balanced()
    last = cascade.stages[-1]
    last = replace(last, weight=last.weight * scale[:, None, None, None])
    return replace(cascade, stages=(*cascade.stages[:-1], last))


def _normalise(request: Request) -> tuple[Fit, Tensor]:
    """Restrict the problem to the structure's span and give every channel unit output power."""
    problem = request.problem
    reduction = Reduction.of(problem, request.structure, request.ridge)
    target = reduction.target.flatten(0, 1)
    groups, outputs = problem.target.shape[:2]
    roots = None
    if reduction.covariance is not None:
        values, vectors = torch.linalg.eigh(reduction.covariance)
        # The floor decides what a degenerate metric leaves open.
        roots = vectors * values.clamp_min(_FLOOR).sqrt()[:, None]
    group = torch.arange(groups, device=target.device).repeat_interleave(outputs)
    peak = target.abs().amax(1)
    peak = torch.where(peak > 0, peak, 1)
    fit = Fit(target / peak[:, None], group, roots)
    power = fit.weigh(fit.target[:, None])[:, 0].norm(dim=1)
    power = torch.where(power > 0, power, 1)
    scale = peak * power * reduction.scale.repeat_interleave(outputs)
    return replace(fit, target=fit.target / power[:, None]), scale


def _zeroed(kernels: Kernels, target: Tensor) -> Kernels:
    """Let the chains of all-zero channels pass their input on and end in zeros."""
    empty = (target == 0).all(1)[:, None, None, None]
    shifts = []
    for kernel in kernels[:-1]:
        shift = torch.zeros_like(kernel)
        shift[..., kernel.shape[-2] // 2, kernel.shape[-1] // 2] = 1
        shifts.append(torch.where(empty, shift, kernel))
    return [*shifts, torch.where(empty, 0, kernels[-1])]
