"""Linear constraints on a cascade, met by projecting its last stage."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from convfactor.cascade import Cascade, Stage
from convfactor.solvers.problem import Problem
from convfactor.solvers.reduction import Reduction

_FLOOR = 1e-10
_TOLERANCE = 1e-9


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
    ``tr(C S C')``. A wavelet keeps its sum of zero.

    Args:
        problem: Target and metric.
        cascade: A cascade of the problem's channels and groups.

    Returns:
        The float64 cascade, scaled to unit noise power between its stages.

    Raises:
        ValueError: No last stage reaches the sums: it reads fewer channels, or channels whose sums
            are more alike, than they need.
    """
    groups, _, inputs = problem.target.shape[:3]
    cascade = cascade.to(torch.float64).balanced()
    last = cascade.stages[-1]
    outputs, read, height, width = last.weight.shape
    # One block for each group of the last stage; the others' channels are out of its reach.
    blocks = (groups, last.groups // groups)
    heads = _heads(cascade).unflatten(0, (*blocks, read))
    weight = last.weight.view(*blocks, outputs // last.groups, read * height * width)
    target = problem.target.double().unflatten(1, (blocks[1], -1))
    wanted = target.sum((4, 5))
    sums = heads.sum((4, 5)).repeat_interleave(height * width, 2)
    direction = _solve_metric(problem, cascade, heads, sums)
    inverse = torch.linalg.pinv(sums.mT @ direction, hermitian=True)
    for _ in range(3):
        missing = wanted - weight @ sums
        weight = weight + missing @ inverse @ direction.mT
    missing = (wanted - weight @ sums).abs().amax(3)
    reach = heads.abs().sum((3, 4, 5)).repeat_interleave(height * width, 2)[..., None]
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
    last, (y, x) = structure.stages[-1], structure.steps[-1]
    spacing = (last.dilation[0] * y, last.dilation[1] * x)
    rows, cols = heads.shape[-2:]
    taps = []
    for row in range(last.kernel_size[0]):
        for col in range(last.kernel_size[1]):
            tap = heads.new_zeros((*heads.shape[:-2], *structure.span))
            top, left = row * spacing[0], col * spacing[1]
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
