"""Cascades of dense or grouped stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.factorization.solvers import polyadic
from convfactor.factorization.solvers.composition import Composition, Layout
from convfactor.factorization.solvers.descent import Descent
from convfactor.factorization.solvers.embedding import embed_dense
from convfactor.factorization.solvers.lifted import drawn, is_matrix, lifted
from convfactor.factorization.solvers.reduction import Reduction
from convfactor.factorization.solvers.request import Effort, Request

# Random starts are drawn while their evaluations together take less work than this; the lifted
# start leads them at first even where it ends above, hence the long trial.
_DRAWING = 9e7
_DRAWS = 6
# A cascade of few weights has many bad ends, and many starts of it take little longer than one.
_FEW, _MANY_DRAWS = 256, 32
_TRIAL = 50
_LONG_TRIAL = 400
_SOONEST = 100
_EXACT = 1e-28
# A search may come down to a third, or to an exact answer, after 100 steps without much progress.
# One that may take no more than the least steps has no time for that: where it is further above
# what is needed, it is believed to become three times as fast, no more.
_FAR, _FASTER = 4.0, 3.0
_TOLD = 20
# Error of a kernel rounded to single precision; that of half precision is worth no less care.
_SINGLE = 1e-7


@dataclass(frozen=True)
class _Limits:
    """How long to search.

    Attributes:
        work: Floating-point operations after which to stop.
        least: Iterations allowed however large the problem.
        most: Iterations allowed however small the problem.
        window: Iterations over which progress is looked at.
        settled: Relative decrease of the squared error over the window that ends the search.
    """

    work: float
    least: int
    most: int
    window: int
    settled: float


_LIMITS = {
    "draft": _Limits(work=3e10, least=60, most=300, window=50, settled=0.05),
    "full": _Limits(work=1.25e11, least=200, most=4000, window=100, settled=0.0005),
}


def solve(request: Request) -> Cascade:
    """Find the best weights for a structure.

    The lifted split of the target, the given starts and, where they cost little, random ones
    descend together for a while, all stages at once; the best of each group goes on. On large
    kernels the lifted split has always won.

    Args:
        request: All stages of its structure have the problem's groups.

    Returns:
        A balanced float64 cascade of the structure.

    Raises:
        ValueError: The structure or a start does not fit the problem.
    """
    problem, structure, budget = request.problem, request.structure, request.budget
    if structure.groups != problem.groups:
        raise ValueError(
            f"structure must have {problem.groups} groups, as the problem has, got "
            f"{[stage.groups for stage in structure.stages]} in its stages"
        )
    layout, reduction = Layout.of(structure), Reduction.of(problem, structure, request.ridge)
    generator = torch.Generator().manual_seed(request.seed)
    given = [_scaled(embed_dense(start, request), layout, reduction) for start in request.starts]
    # White noise does not tell a kernel from its transpose, so both get the same, cheaper, answer.
    turned = reduction.covariance is None and layout.channels[0] > layout.channels[-1]
    if turned:
        given = [layout.transpose(flat) for flat in given]
        reduction = reduction.transposed(layout.channels[0])
        layout = layout.transposed
    known = reduction.covariance is None and is_matrix(layout)
    draws = 0 if known else _draws(layout, reduction)
    flats = []
    if polyadic.handles(layout):
        flats.append(polyadic.polyadic(layout, reduction, request, generator))
    elif max(layout.groups) == 1:
        flats.append(lifted(layout, reduction.target, generator, budget))
    else:
        draws = max(draws, 1)
    flats.append(drawn(layout, draws * problem.groups, generator).to(reduction.target.device))
    flats = [_refit(layout, reduction, torch.cat(flats)), *given]
    descent = Descent(layout, reduction, torch.cat(flats))
    if known or layout.stages == 1:  # of one stage alone, least squares is the answer
        flat = descent.flat[_best(descent.loss, problem.groups)]
    else:
        limits = _limits(request.effort, layout, reduction)
        flat = _descend(descent, _LONG_TRIAL if draws else _TRIAL, limits, request)
    if turned:
        flat, layout = layout.transpose(flat), layout.transposed
    weights = layout.split(flat)
    weights[-1] = weights[-1] * reduction.scale[:, None, None]
    return Cascade.of(structure, [weight.flatten(0, 1) for weight in weights]).balanced()


def _scaled(flat: Tensor, layout: Layout, reduction: Reduction) -> Tensor:
    """Divide a start's last stage by the target's scale."""
    scale = torch.where(reduction.scale > 0, reduction.scale, 1.0)[:, None]
    flat = flat.to(scale.device)
    last = layout.counts[-1]
    return torch.cat([flat[:, :-last], flat[:, -last:] / scale], 1)


def _refit(layout: Layout, reduction: Reduction, flat: Tensor) -> Tensor:
    """Solve for the last stage, the others held fixed: least squares with one Gram matrix.

    A last stage of several groups is left to the descent.
    """
    if layout.groups[-1] > 1:
        return flat
    inputs = Composition(layout, flat).last_inputs
    weighed = reduction.weigh(inputs)
    gram = weighed @ inputs.mT
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    gram = gram / torch.where(mean > 0, mean, 1.0)
    right = weighed @ reduction.repeated(len(flat)).mT / torch.where(mean > 0, mean, 1.0)
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(gram + 1e-10 * eye)
    last = torch.cholesky_solve(right, factor)
    last = last + torch.cholesky_solve(right - gram @ last, factor)
    return torch.cat([flat[:, : -layout.counts[-1]], last.mT.flatten(1)], 1)


def _descend(descent: Descent, trial: int, limits: _Limits, request: Request) -> Tensor:
    """Descend from several starts, after a trial only from each group's best."""
    groups = descent.groups
    history: list[Tensor] = []
    path: list[float] = []
    needed = request.needed if limits.most <= limits.least else 0.0
    exact = max(_EXACT, min(request.problem.rounding, _SINGLE) ** 2)
    for iteration in range(limits.most):
        lowest = float(descent.loss.view(-1, groups).amin(0).mean())
        if lowest < exact or request.budget.used_up():
            break
        if iteration == trial:
            descent.keep(_best(descent.loss, groups))
            history.clear()
        descent.step()
        history.append(descent.loss.view(-1, groups).mean(1))
        if iteration % 10 == 9:
            request.progress((iteration + 1) / limits.most, math.sqrt(lowest))
        # A start that still comes down may end below the one that leads.
        now, earlier = history[-1], history[-1 - limits.window :][0]
        settled = now > (1 - limits.settled) * earlier
        if iteration >= _SOONEST and len(history) > limits.window and bool(settled.all()):
            break
        if needed:
            path.append(float(descent.loss.amin()))
            if _out_of_reach(path, limits.most, needed):
                break
    return descent.flat[_best(descent.loss, groups)]


def _out_of_reach(path: Sequence[float], most: int, needed: float) -> bool:
    """Whether a search is far above the error that is needed and comes down too slowly.

    Args:
        path: Squared error of the best group after each iteration.
        most: Iterations allowed.
        needed: Relative error.
    """
    count, now = len(path), path[-1]
    if count < _TOLD or now <= (_FAR * needed) ** 2:
        return False
    half = count // 2
    fall = math.log(path[half] / now) / (count - 1 - half)
    return now * math.exp(-_FASTER * fall * (most - count)) > needed**2


def _draws(layout: Layout, reduction: Reduction) -> int:
    """How many random starts each group gets."""
    draws = min(int(_DRAWING / _work(layout, reduction)), _DRAWS)
    if sum(layout.counts) <= _FEW:
        draws = max(draws, _MANY_DRAWS // len(reduction.target))
    return draws


def _limits(effort: Effort, layout: Layout, reduction: Reduction) -> _Limits:
    """How long to search for a problem of a size."""
    limits = _LIMITS[effort]
    allowed = limits.work / _work(layout, reduction)
    return replace(limits, most=round(min(max(allowed, limits.least), limits.most)))


def _best(loss: Tensor, groups: int) -> Tensor:
    """Rows of the best start of each group."""
    best = loss.view(-1, groups).argmin(0)
    return best * groups + torch.arange(groups, device=best.device)


def _work(layout: Layout, reduction: Reduction) -> float:
    """Estimate the floating-point operations of an evaluation, calls and memory counted as such."""
    total = 0.0
    for (outputs, inputs), span in zip(layout.shapes[1:], layout.grid.spans[2:], strict=True):
        total += 6 * outputs * inputs * layout.channels[0] * math.prod(span)
    if reduction.covariance is not None:
        total += max(2 * layout.channels[-1], 24) * reduction.covariance.shape[-1] ** 2
    return 1.5e7 * layout.stages + total * len(reduction.target)
