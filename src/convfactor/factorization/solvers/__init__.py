"""Solvers: each takes a Problem and a Structure and returns a Cascade."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from convfactor.conv.cascade import Cascade
from convfactor.conv.structure import Structure
from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers import dense, levenberg, separable
from convfactor.factorization.solvers.problem import Effort, Problem, Progress
from convfactor.factorization.solvers.size import Size

__all__ = ["Effort", "Problem", "Progress", "Size", "solve"]


def solve(
    problem: Problem,
    structure: Structure,
    *,
    starts: Sequence[Cascade] = (),
    seed: int = 0,
    ridge: float = 0.0,
    effort: Effort = "full",
    progress: Progress | None = None,
    budget: Budget | None = None,
) -> Cascade:
    """Find the best weights for a structure with the solver made for its kind.

    Chains of single channels, parallel ones included, go to the batched Levenberg-Marquardt
    solver with its exact starts; everything else to the dense solver.

    Args:
        problem: Target kernel and metric.
        structure: The structure to fill.
        starts: Cascades of this structure or a smaller one to start from as well.
        seed: Seed of the random starts.
        ridge: White noise added to the input patches, relative to their mean power.
        effort: "draft" for an answer good enough to search with, "full" for the best one.
        progress: Called with the share of the work done and the relative error reached.
        budget: Time to stop after, with the best so far; None for no end.
    """
    chains = levenberg.handles(problem, structure)
    if chains:
        exact = _exact(problem, structure, budget)
        if exact is not None:
            return exact
    solver = levenberg.solve if chains else dense.solve
    return solver(
        problem,
        structure,
        starts=starts,
        seed=seed,
        ridge=ridge,
        effort=effort,
        progress=progress,
        budget=budget,
    )


def _exact(problem: Problem, structure: Structure, budget: Budget | None) -> Cascade | None:
    """The exact split of separable kernels, its stages in the order of the least rounding."""
    outputs = structure.stages[-1].out_channels
    chains = structure.widths[0] // outputs if structure.widths else 1
    values = torch.linalg.svdvals(problem.target[:, :, 0])
    if bool((values[..., chains:].norm(dim=2) > problem.exact * values.norm(dim=2)).any()):
        return None
    try:
        cascade = separable.solve(problem, structure, budget)
    except ValueError:
        return None
    return cascade if problem.error(cascade) <= problem.exact else None
