"""Solvers: each takes a Problem and a Structure and returns a Cascade."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from convfactor.cascade import Cascade, Structure
from convfactor.solvers import dense, levenberg
from convfactor.solvers.problem import Problem

__all__ = ["Effort", "Problem", "solve"]

Effort = Literal["draft", "full"]


def solve(
    problem: Problem,
    structure: Structure,
    *,
    starts: Sequence[Cascade] = (),
    seed: int = 0,
    ridge: float = 0.0,
    effort: Effort = "full",
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
    """
    solver = levenberg.solve if levenberg.handles(problem, structure) else dense.solve
    return solver(problem, structure, starts=starts, seed=seed, ridge=ridge, effort=effort)
