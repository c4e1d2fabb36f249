"""What every solver is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from convfactor.conv.cascade import Cascade
from convfactor.conv.structure import Structure
from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers.problem import Problem

Effort = Literal["draft", "full"]
# Called with the share of the work done and the relative error reached.
Progress = Callable[[float, float], None]


@dataclass(frozen=True, eq=False)
class Request:
    """The best weights for a structure, and how hard to look for them.

    Attributes:
        problem: Target kernel and metric.
        structure: The structure to fill.
        starts: Cascades of this structure or a smaller one (fewer or smaller stages, fewer
            channels) to start from as well; the answer is never worse than the best of them.
        seed: Seed of what is drawn.
        ridge: White noise added to the input patches, relative to their mean power: it keeps the
            composed kernel near the target where the covariance does not say.
        effort: "draft" for an answer good enough to search with, "full" for the best one.
        needed: Relative error above which an answer is of no use: a search that may take few steps,
            is far above it and comes down too slowly, ends; the dense solver heeds it. 0 for the
            best answer whatever it is.
        progress: Called with the share of the work done and the relative error reached.
        budget: Time to stop after, with the best so far.
    """

    problem: Problem
    structure: Structure
    starts: Sequence[Cascade] = ()
    seed: int = 0
    ridge: float = 0.0
    effort: Effort = "full"
    needed: float = 0.0
    progress: Progress = lambda share, error: None
    budget: Budget = field(default_factory=Budget)
