"""Linear constraints on a cascade, met by projecting one of its stages."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from torch import Tensor

from convfactor.conv.cascade import Cascade, Stage
from convfactor.conv.grid import positions
from convfactor.factorization.solvers.problem import Problem
from convfactor.factorization.solvers.reduction import Reduction

_FLOOR = 1e-10
_TOLERANCE = 1e-9
_ROUNDING = 1e-13


def weigh_dc(problem: Problem, weight: float = 100.0) -> Problem:
    """Let errors of the kernels' sums count more, so that ``preserve_dc`` has little left to move.

    Args:
        problem: Target and metric.
        weight: Power of a constant image, relative to that of all taps.
    """
    groups, _, inputs, height, width = problem.target.shape
    taps = height * width
    constant = torch.ones((taps, taps), dtype=torch.float64, device=problem.target.device)
    eye = torch.eye(inputs, dtype=torch.float64, device=problem.target.device)
    images = torch.kron(eye, constant).expand(groups, -1, -1)
    if problem.covariance is None:
        noise = torch.eye(inputs * taps, dtype=torch.float64, device=problem.target.device)
        return replace(problem, covariance=noise + weight / taps * images)
    power = problem.covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    return replace(problem, covariance=problem.covariance + weight / taps * power * images)


def preserve_dc(problem: Problem, cascade: Cascade) -> Cascade:
    """Make the sum of every composed kernel that of the target's.

    The weights of the last stage change as little as possible in the problem's metric: of all
    changes ``C`` of the composed kernel that they can make, with the sums given, that of least
    ``tr(C S C')``. In chains of single channels the order does not matter, and it is the stage
    that ends with the least error. A wavelet keeps its sum of zero.

    Args:
        problem: Target and metric.
        cascade: A cascade of the problem's channels and groups.

    Returns:
        The float64 cascade, scaled to unit noise power between its stages.

    Raises:
        ValueError: No last stage reaches the sums: it reads fewer channels, or channels whose sums
            are more alike, than they need.
    """
    cascade = cascade.to(torch.float64).balanced()
    count = len(cascade.stages)
    if not _commute(cascade):
        return _project(problem, cascade)
    found = []
    for i in range(count):
        order = [*(k for k in range(count) if k != i), i]
        moved = tuple(cascade.stages[k] for k in order)
        with contextlib.suppress(ValueError):
            stages = _project(problem, replace(cascade, stages=moved)).stages
            back = tuple(stages[order.index(k)] for k in range(count))
            found.append(replace(cascade, stages=back))
    if not found:
        return _project(problem, cascade)  # which says why it can't be
    errors = torch.stack([problem.channel_errors(trial).flatten() for trial in found])
    best = errors.argmin(0)
    channels = torch.arange(len(best), device=best.device)
    chosen = [
        replace(stage, weight=torch.stack([t.stages[k].weight for t in found])[best, channels])
        for k, stage in enumerate(cascade.stages)
    ]
    return replace(cascade, stages=tuple(chosen))


def _commute(cascade: Cascade) -> bool:
    """Whether the stages are single channels without strides, in any order the same."""
    channels = cascade.stages[0].weight.shape[0]
    return all(
        stage.weight.shape[:2] == (channels, 1)
        and stage.groups == channels
        and tuple(stage.stride) == (1, 1)
        for stage in cascade.stages
    )


def _project(problem: Problem, cascade: Cascade) -> Cascade:
    """Meet the sums by the last stage."""
    groups, _, inputs = problem.target.shape[:3]
    last = cascade.stages[-1]
    outputs, read, height, width = last.weight.shape
    # One block for each group of the last stage; the others' channels are out of its reach.
    blocks = (groups, last.groups // groups)
    heads = _heads(cascade).unflatten(0, (*blocks, read))
    weight = last.weight.view(*blocks, outputs // last.groups, read * height * width)
    target = problem.target.double().unflatten(1, (blocks[1], -1))
    wanted = target.sum((4, 5))
    sums = heads.sum((4, 5)).repeat_interleave(height * width, 2)
    reach = heads.abs().sum((3, 4, 5)).repeat_interleave(height * width, 2)[..., None]
    # Sums that are zero but for rounding can't be divided by, and need not be.
    sums = torch.where(sums.abs() > _ROUNDING * reach, sums, 0)
    direction = _solve_metric(problem, cascade, heads, sums)
    inverse = torch.linalg.pinv(sums.mT @ direction, hermitian=True)
    for _ in range(3):
        missing = wanted - weight @ sums
        weight = weight + missing @ inverse @ direction.mT
    missing = (wanted - weight @ sums).abs().amax(3)
    size = target.abs().sum((3, 4, 5)) + (weight.abs() @ reach)[..., 0]
    if bool((missing > _TOLERANCE * size).any()):
        raise ValueError(
            f"preserve_dc can't be met: the last stage of {cascade.structure} reads {read} hidden "
            f"channels, and their sums do not span the sums over {inputs} input channels; "
            f"make the last hidden width at least {inputs} per group, or drop preserve_dc"
        )
    stage = replace(last, weight=weight.reshape(last.weight.shape))
    return replace(cascade, stages=(*cascade.stages[:-1], stage))


def _heads(cascade: Cascade) -> Tensor:
    """Kernels of the channels that the last stage reads, (channels, in/groups, H, W)."""
    last = cascade.stages[-1]
    read = last.weight.shape[1]
    eye = torch.eye(read, dtype=torch.float64, device=last.weight.device)
    passing = Stage(eye.repeat(last.groups, 1)[..., None, None], groups=last.groups)
    return replace(cascade, stages=(*cascade.stages[:-1], passing)).compose()


def _solve_metric(problem: Problem, cascade: Cascade, heads: Tensor, right: Tensor) -> Tensor:
    """Solve ``M X = right``, where ``w M w'`` is the power of the last stage's weights ``w``."""
    structure = cascade.structure
    grid, (rows, cols) = structure.grid, heads.shape[-2:]
    taps = []
    for top, left in positions(grid.sizes[-1], grid.spacings[-1]):
        tap = heads.new_zeros((*heads.shape[:-2], *grid.span))
        tap[..., top : top + rows, left : left + cols] = heads
        taps.append(tap.flatten(3))
    features = torch.stack(taps, 3).flatten(2, 3)
    covariance = Reduction.of(problem, structure).covariance
    weighed = features if covariance is None else features @ covariance[:, None]
    metric = weighed @ features.mT
    diagonal = metric.diagonal(dim1=2, dim2=3)
    floor = _FLOOR * diagonal.mean(2, keepdim=True)
    diagonal += torch.where(floor > 0, floor, 1)
    solution: Tensor = torch.linalg.solve(metric, right)
    return solution
