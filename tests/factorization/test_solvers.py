"""What every solver promises, over every kind of problem it takes, against torch and numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.structure import StageShape, Structure
from convfactor.factorization.budget import Budget
from convfactor.factorization.solvers import (
    Problem,
    Request,
    alternating,
    dense,
    levenberg,
    separable,
    solve,
)
from convfactor.factorization.solvers.chains import chain_structure

THREES = [(3, 3), (3, 3)]
FEW = alternating.Recipe(starts=8)
SOLVERS: dict[str, Callable[[Request], Cascade]] = {
    "any": solve,
    "chains": levenberg.solve,
    "dense": dense.solve,
    "separable": separable.solve,
    "original": lambda request: alternating.solve(request, FEW).cascade,
}
# Those that start from given cascades.
STARTED = ("any", "chains", "dense")


def stages(*shapes: tuple[int, ...], groups: int = 1) -> Structure:
    """Stages of (in, out, size, stride, dilation), the channels per group."""
    return Structure(
        tuple(
            StageShape(i * groups, o * groups, (k, k), (s, s), (d, d), groups)
            for i, o, k, s, d in shapes
        )
    )


def between(
    *sizes: tuple[int, int], stride: int = 1, dilation: int = 1, groups: int = 1
) -> Structure:
    """Depthwise stages between 1x1 ones, the stride and the dilation in the last of them."""
    width = 2 * groups
    middle = [StageShape(width, width, size, groups=width) for size in sizes]
    middle[-1] = replace(middle[-1], stride=(stride, stride), dilation=(dilation, dilation))
    ends = (
        StageShape(3 * groups, width, 1, groups=groups),
        StageShape(width, width, 1, groups=groups),
    )
    return Structure((ends[0], *middle, ends[1]))


# Each with its structure, a window, and the solvers that take it.
KINDS: dict[str, tuple[Structure, int, tuple[str, ...]]] = {
    "single channel": (chain_structure(1, 1, THREES), 5, tuple(SOLVERS)),
    "parallel chains": (
        chain_structure(1, 1, [(3, 5), (5, 3)], branches=2),
        7,
        ("any", "chains", "separable", "original"),
    ),
    "depthwise": (chain_structure(3, 1, THREES), 5, tuple(SOLVERS)),
    "depth multiplier": (
        chain_structure(2, 2, THREES),
        5,
        ("any", "chains", "separable", "original"),
    ),
    "smaller than the window": (chain_structure(2, 1, THREES, offset=(1, 1)), 7, tuple(SOLVERS)),
    "strided chains": (
        stages((1, 1, 3, 2, 1), (1, 1, 3, 1, 1), groups=2),
        7,
        ("any", "chains", "dense", "original"),
    ),
    "dilated chains": (
        stages((1, 1, 3, 1, 1), (1, 1, 3, 1, 2), groups=2),
        7,
        ("any", "chains", "dense", "original"),
    ),
    "dense": (stages((3, 2, 3, 1, 1), (2, 4, 3, 1, 1)), 5, ("any", "dense")),
    "many to few": (stages((4, 2, 3, 1, 1), (2, 2, 3, 1, 1)), 5, ("any", "dense")),
    "grouped": (stages((2, 2, 3, 1, 1), (2, 3, 3, 1, 1), groups=2), 5, ("any", "dense")),
    "strided": (stages((2, 2, 3, 2, 1), (2, 3, 3, 1, 1)), 7, ("any", "dense")),
    "dilated": (stages((2, 2, 3, 1, 2), (2, 3, 3, 1, 1)), 7, ("any", "dense")),
    "polyadic": (between((5, 1), (1, 5)), 5, ("any", "dense")),
    "polyadic, rows first": (between((1, 3), (5, 1)), 5, ("any", "dense")),
    "depthwise between": (between((5, 5), groups=2), 5, ("any", "dense")),
    "depthwise chain between": (between((3, 3), (3, 3), dilation=2), 7, ("any", "dense")),
    "strided depthwise between": (between((3, 3), (3, 3), stride=2), 5, ("any", "dense")),
    "depthwise ends": (
        Structure(
            (StageShape(3, 6, 3, groups=3), StageShape(6, 2, 1), StageShape(2, 4, 3, groups=2))
        ),
        5,
        ("any", "dense"),
    ),
    "groups inside": (
        Structure((StageShape(4, 4, 3, groups=2), StageShape(4, 2, 3, 2), StageShape(2, 3, 1))),
        5,
        ("any", "dense"),
    ),
}
# One stage of two groups on a part of 5x5 taps.
CROPPED = chain_structure(2, 2, [(3, 3)], offset=(1, 1))
DILATED = Structure((StageShape(2, 4, (3, 3), dilation=(2, 1), groups=2),), (0, 1))
STRIDED = Structure((StageShape(4, 6, (3, 2), (2, 2), groups=2),), (1, 2))
CASES = [(kind, name) for kind, (_, _, names) in KINDS.items() for name in names]


class Clock:
    """A clock that goes on by one second whenever it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return float(self.reads)


def problem_of(structure: Structure, window: int, correlated: bool) -> Problem:
    """A target that the structure nearly holds, so that its own cascade is a good start."""
    generator = torch.Generator().manual_seed(1)
    groups = structure.groups
    kernel = hidden(structure).compose().unflatten(0, (groups, -1))
    (top, left), (height, width) = structure.offset, structure.span
    target = F.pad(kernel, (left, window - left - width, top, window - top - height))
    noise = torch.randn(target.shape, generator=generator, dtype=torch.float64)
    covariance = None
    if correlated:
        size = target[0, 0].numel()
        root = torch.randn(groups, size, size, generator=generator, dtype=torch.float64)
        covariance = root @ root.mT / size + 0.1 * torch.eye(size, dtype=torch.float64)
    return Problem(target + 0.1 * noise * target.std(), covariance)


def hidden(structure: Structure) -> Cascade:
    return Cascade.random(structure, 7)


def impulse_response(cascade: Cascade) -> np.ndarray:
    """Kernel (C_out, C_in, H, W) over all channels, by running the stages on single pixels."""
    channels = cascade.structure.stages[0].in_channels
    size = (channels, *cascade.structure.span)
    x = torch.eye(int(np.prod(size)), dtype=torch.float64).view(-1, *size)
    for stage in cascade.stages:
        x = F.conv2d(
            x, stage.weight, stride=stage.stride, dilation=stage.dilation, groups=stage.groups
        )
    assert x.shape[2:] == (1, 1)
    return x[:, :, 0, 0].T.reshape(-1, *size).numpy()


def block_diagonal(target: Tensor) -> np.ndarray:
    """Grouped kernels (groups, out, in, H, W) over all channels."""
    groups, outputs, inputs, height, width = target.shape
    result = np.zeros((groups * outputs, groups * inputs, height, width))
    for group, kernel in enumerate(target.numpy()):
        own = slice(group * outputs, (group + 1) * outputs)
        result[own, group * inputs : (group + 1) * inputs] = kernel
    return result


def oracle_error(problem: Problem, cascade: Cascade) -> float:
    """Relative error of the running cascade, over all channels."""
    true = block_diagonal(problem.target)
    wrong = -true
    (top, left), kernel = cascade.offset, impulse_response(cascade)
    wrong[:, :, top : top + kernel.shape[2], left : left + kernel.shape[3]] += kernel
    groups, outputs, inputs, *_ = problem.target.shape
    powers = []
    for difference in (wrong, true):
        power = 0.0
        for group in range(groups):
            reads = slice(group * inputs, (group + 1) * inputs)
            rows = difference[group * outputs : (group + 1) * outputs, reads].reshape(outputs, -1)
            metric = np.eye(rows.shape[1])
            if problem.covariance is not None:
                metric = problem.covariance[group].numpy()
            power += float(np.einsum("op,pq,oq->", rows, metric, rows))
        powers.append(power)
    return float(np.sqrt(powers[0] / powers[1]))


@pytest.mark.parametrize("correlated", [False, True], ids=["white", "correlated"])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_what_every_solver_promises(kind: str, name: str, correlated: bool) -> None:
    structure, window, _ = KINDS[kind]
    problem, run = problem_of(structure, window, correlated), SOLVERS[name]
    starts = [hidden(structure), Cascade.random(structure, 8)] if name in STARTED else []
    ticking = Clock()
    request = Request(problem, structure, starts=starts, seed=3, effort="draft")
    cascade = run(replace(request, budget=Budget(1e9, ticking)))

    assert cascade.structure == structure
    assert all(stage.weight.dtype == torch.float64 for stage in cascade.stages)
    error = problem.error(cascade)
    assert error == pytest.approx(oracle_error(problem, cascade), rel=1e-9)
    for start in starts:
        assert error <= oracle_error(problem, start) * (1 + 1e-9)
    if not starts and not correlated:
        assert error < 1  # better than nothing at all

    again = run(request)
    for first, second in zip(cascade.stages, again.stages, strict=True):
        assert torch.equal(first.weight, second.weight)

    clock = Clock()
    budget = Budget(0, clock)
    hasty = run(replace(request, budget=budget))
    assert budget.cut_short
    assert clock.reads <= ticking.reads
    assert hasty.structure == structure
    reached = oracle_error(problem, hasty)
    assert problem.error(hasty) == pytest.approx(reached, rel=1e-9)
    for start in starts:
        assert reached <= oracle_error(problem, start) * (1 + 1e-9)


@pytest.mark.parametrize("correlated", [False, True], ids=["white", "correlated"])
@pytest.mark.parametrize(
    ("structure", "name"),
    [
        *((CROPPED, name) for name in STARTED),
        *((DILATED, name) for name in STARTED),
        (STRIDED, "any"),
        (STRIDED, "dense"),
    ],
)
def test_one_stage_is_least_squares(structure: Structure, name: str, correlated: bool) -> None:
    inputs, outputs = (structure.stages[0].in_channels // 2, structure.stages[0].out_channels // 2)
    problem = problem_of(stages((inputs, outputs, 5, 1, 1), groups=2), 5, correlated)
    cascade = SOLVERS[name](Request(problem, structure))
    stage = structure.stages[0]
    taps = np.zeros((5, 5), dtype=bool)
    (top, left), (dy, dx), (rows, cols) = structure.offset, stage.dilation, stage.kernel_size
    taps[top : top + rows * dy : dy, left : left + cols * dx : dx] = True
    seen = np.tile(taps.ravel(), inputs)
    for group in range(2):
        metric = np.eye(len(seen))
        if problem.covariance is not None:
            metric = problem.covariance[group].numpy()
        root = np.linalg.cholesky(metric)
        target = problem.target[group].flatten(1).numpy()
        best = np.linalg.lstsq(root[seen].T, (target @ root).T, rcond=None)[0].T
        found = cascade.stages[0].weight.unflatten(0, (2, -1))[group].flatten(1).numpy()
        np.testing.assert_allclose(found, best, rtol=1e-6, atol=1e-8)
