"""Solvers: each takes a Request and returns a Cascade."""

from __future__ import annotations

from dataclasses import replace

import torch

from convfactor.conv.cascade import Cascade
from convfactor.factorization.solvers import dense, levenberg, separable
from convfactor.factorization.solvers.compression import Compression
from convfactor.factorization.solvers.problem import Problem
from convfactor.factorization.solvers.request import Effort, Progress, Request
from convfactor.factorization.solvers.size import Size

__all__ = ["Effort", "Problem", "Progress", "Request", "Size", "solve"]


def solve(request: Request) -> Cascade:
    """Find the best weights for a structure with the solver made for its kind.

    Chains of single channels, parallel ones included, go to the batched Levenberg-Marquardt
    solver with its exact starts; everything else to the dense solver, but that a kernel which few
    combinations of its channels make up is solved between those.
    """
    if not levenberg.handles(request.problem, request.structure):
        compression = Compression.of(request.problem, request.structure)
        if compression is None:
            return dense.solve(request)
        small = compression.request(request)
        chain = compression.chain(small.structure)
        if chain not in (None, small.structure):  # whose exact split the dense solver does not know
            start = solve(replace(small, structure=chain, starts=()))
            small = replace(small, starts=[*small.starts, start])
        return compression.expanded(solve(small)).balanced()
    known = _known(request)
    return levenberg.solve(request) if known is None else known


def _known(request: Request) -> Cascade | None:
    """The answer where no search is needed, its stages in the order of the least rounding.

    That is the exact split of separable kernels and, for white noise, the leading terms of any
    kernel where no column or row has to be split.
    """
    problem, structure = request.problem, request.structure
    sizes = structure.grid.sizes
    outputs = structure.stages[-1].out_channels
    chains = structure.widths[0] // outputs if structure.widths else 1
    best = problem.covariance is None and len(sizes) > 1 and separable.undivided(sizes)
    if not best:
        values = torch.linalg.svdvals(problem.target[:, :, 0])
        left = values[..., chains:].norm(dim=2) > problem.exact * values.norm(dim=2)
        if bool(left.any()):
            return None
    try:
        cascade = separable.solve(request)
    except ValueError:
        return None
    return cascade if best or problem.error(cascade) <= problem.exact else None
