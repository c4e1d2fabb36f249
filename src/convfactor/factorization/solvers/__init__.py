"""Solvers: each takes a Request and returns a Cascade."""

from __future__ import annotations

import torch

from convfactor.conv.cascade import Cascade
from convfactor.factorization.solvers import dense, levenberg, separable
from convfactor.factorization.solvers.problem import Problem
from convfactor.factorization.solvers.request import Effort, Progress, Request
from convfactor.factorization.solvers.size import Size

__all__ = ["Effort", "Problem", "Progress", "Request", "Size", "solve"]


def solve(request: Request) -> Cascade:
    """Find the best weights for a structure with the solver made for its kind.

    Chains of single channels, parallel ones included, go to the batched Levenberg-Marquardt
    solver with its exact starts; everything else to the dense solver.
    """
    if not levenberg.handles(request.problem, request.structure):
        return dense.solve(request)
    exact = _exact(request)
    return levenberg.solve(request) if exact is None else exact


def _exact(request: Request) -> Cascade | None:
    """The exact split of separable kernels, its stages in the order of the least rounding."""
    problem, structure = request.problem, request.structure
    outputs = structure.stages[-1].out_channels
    chains = structure.widths[0] // outputs if structure.widths else 1
    values = torch.linalg.svdvals(problem.target[:, :, 0])
    if bool((values[..., chains:].norm(dim=2) > problem.exact * values.norm(dim=2)).any()):
        return None
    try:
        cascade = separable.solve(request)
    except ValueError:
        return None
    return cascade if problem.error(cascade) <= problem.exact else None
