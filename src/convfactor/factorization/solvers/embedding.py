"""A smaller cascade written as one of a larger structure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.grid import Grid
from convfactor.conv.structure import Structure
from convfactor.factorization.solvers.chains import branches
from convfactor.factorization.solvers.composition import Layout
from convfactor.factorization.solvers.request import Request
from convfactor.factorization.solvers.starts import noise

_ORDERS = 5000


@dataclass(frozen=True)
class _Place:
    """What a stage of the larger structure holds.

    Attributes:
        stage: The smaller cascade's stage; None where the input is passed on.
        taps: Which of the stage's taps hold it (vertical, horizontal).
    """

    stage: int | None
    taps: tuple[slice, slice]


def embed_chains(start: Cascade, request: Request) -> list[Tensor]:
    """Write a smaller cascade of chains as one of a larger structure.

    Stages that are left over become shifts by whole taps; branches that are left over are drawn
    and end in zeros, as one of zeros alone would have no derivative. The order of the stages does
    not matter.

    Args:
        start: The smaller one.
        request: Problem and structure, and the seed for the new branches.

    Returns:
        Float64 kernels per stage, (outputs, branches, kH, kW), with the same composed kernel.

    Raises:
        ValueError: The structure can't hold the cascade.
    """
    structure, grid = request.structure, request.structure.grid
    count = branches(request.problem, structure)
    smaller = branches(request.problem, start.structure)
    orders = itertools.permutations(range(len(grid.sizes)), len(start.stages))
    places = _place(start.structure, structure, orders) if smaller <= count else None
    if places is None:
        raise ValueError(
            f"starts must hold cascades that fit in the structure {structure} at "
            f"{structure.offset} with {count} branches, got {start.structure} at "
            f"{start.offset} with {smaller} branches"
        )
    outputs, like = structure.stages[-1].out_channels, start.stages[0].weight
    generator = torch.Generator().manual_seed(request.seed)
    kernels = noise(grid, outputs, count, generator, like.device)
    kernels[-1].zero_()
    for kernel, size, spot in zip(kernels, grid.sizes, places, strict=True):
        kernel /= math.sqrt(math.prod(size))
        kernel[:, :smaller] = 0
        part: Tensor | float = 1.0
        if spot.stage is not None:
            weight = start.stages[spot.stage].weight
            part = weight.double().reshape(outputs, smaller, *weight.shape[2:])
        rows, cols = spot.taps
        kernel[:, :smaller, rows, cols] = part
    return kernels


def embed_dense(start: Cascade, request: Request) -> Tensor:
    """Write a smaller cascade as one of the structure, with the same composed kernel.

    Hidden channels that the start lacks read at random and are not read; a stage that it lacks
    passes its input on.

    Args:
        start: Cascade of no more stages, channels and taps.
        request: The structure to embed in, and the seed for the new channels.

    Returns:
        Float64 (groups, weights), in the order of ``Layout``.

    Raises:
        ValueError: The start does not fit.
    """
    own, structure = start.structure, request.structure
    layout, small, groups = Layout.of(structure), Layout.of(own), structure.groups
    alike = (own.groups, own.stride) == (groups, structure.stride)
    places = _place(own, structure, _orders(small, layout)) if alike else None
    if places is None:
        raise ValueError(
            f"starts must hold cascades of the structure {structure} at {structure.offset} "
            f"or of a smaller one, got {own} at {own.offset}"
        )
    generator = torch.Generator().manual_seed(request.seed)
    given = [s.weight.to(torch.float64).unflatten(0, (groups, -1)).flatten(2) for s in start.stages]
    active = layout.channels[0]
    parts = []
    for index, (size, spot) in enumerate(zip(layout.grid.sizes, places, strict=True)):
        outputs, columns = layout.shapes[index]
        shape = (groups, outputs, columns // math.prod(size), *size)
        weight = torch.randn(shape, generator=generator, dtype=torch.float64)
        weight = weight.to(given[0].device) / math.sqrt(columns)
        apart = layout.groups[index] > 1
        if spot.stage is None:
            eye = torch.eye(active, dtype=torch.float64, device=weight.device)
            taps = eye.diagonal()[:, None] if apart else eye
            taps = taps[:, :, None, None].expand(groups, -1, -1, 1, 1)
        else:
            taps = given[spot.stage]
            taps = taps[:, :, None] if apart else small.dense(taps, spot.stage)
            taps = taps.reshape(*weight.shape[:1], taps.shape[1], -1, *small.grid.sizes[spot.stage])
        active = taps.shape[1]
        weight[:, :active] = 0
        rows, cols = spot.taps
        weight[:, :active, : taps.shape[2], rows, cols] = taps
        parts.append(weight.flatten(1))
    return torch.cat(parts, 1)


def _orders(small: Layout, large: Layout) -> Iterator[tuple[int, ...]]:
    """Places for the stages, in their order, where there are channels for what they write."""
    if (small.channels[0], small.channels[-1]) != (large.channels[0], large.channels[-1]):
        return
    for chosen in itertools.combinations(range(large.stages), small.stages):
        # A stage that passes its input on writes as many channels as the one before.
        done = [sum(place <= stage for place in chosen) for stage in range(large.stages)]
        narrow = all(
            small.channels[n] <= most for n, most in zip(done, large.channels[1:], strict=True)
        )
        stages = {at: stage for stage, at in enumerate(chosen)}
        if narrow and all(_holds(small, stages.get(at), large, at) for at in range(large.stages)):
            yield chosen


def _holds(small: Layout, stage: int | None, large: Layout, at: int) -> bool:
    """Whether the groups of a stage can hold those of another, or pass their input on."""
    groups, channels = large.groups[at], large.channels[at : at + 2]
    if groups == 1:
        return True
    if stage is None:
        return (groups, groups) == channels
    own = small.channels[stage : stage + 2]
    if (groups, groups) == channels:
        return (small.groups[stage], small.groups[stage]) == own
    return (small.groups[stage], *own) == (groups, *channels)


def _place(
    small: Structure, large: Structure, orders: Iterable[Sequence[int]]
) -> list[_Place] | None:
    """Find an order in which the larger structure's stages hold the smaller one's.

    Args:
        small: The smaller structure.
        large: The larger one.
        orders: Which of the larger one's stages to try for those of the smaller one.
    """
    for order in itertools.islice(orders, _ORDERS):
        stages = {at: stage for stage, at in enumerate(order)}
        axes = [
            _along(small.grid, large.grid, stages, axis, small.offset[axis] - large.offset[axis])
            for axis in (0, 1)
        ]
        rows, cols = axes
        if rows is not None and cols is not None:
            taps = enumerate(zip(rows, cols, strict=True))
            return [_Place(stages.get(at), pair) for at, pair in taps]
    return None


def _along(
    small: Grid, large: Grid, stages: Mapping[int, int], axis: int, shift: int
) -> list[slice] | None:
    """Taps along one axis, so that the stages together move by ``shift`` pixels, if there are."""
    lengths, steps, slacks = [], [], []
    for at, (size, spacing) in enumerate(zip(large.sizes, large.spacings, strict=True)):
        length, step = 1, 1
        if at in stages and small.sizes[stages[at]][axis] > 1:
            step, uneven = divmod(small.spacings[stages[at]][axis], spacing[axis])
            if uneven:
                return None
            length = (small.sizes[stages[at]][axis] - 1) * step + 1
        if length > size[axis]:
            return None
        lengths.append(length)
        steps.append(step)
        slacks.append(size[axis] - length)

    @cache
    def corners(at: int, left: int) -> list[int] | None:
        if at == len(slacks):
            return [] if left == 0 else None
        slack = slacks[at]
        # From the middle outwards: a shift in the middle of a stage leaves room on both sides.
        for corner in sorted(range(slack + 1), key=lambda c: abs(2 * c - slack)):
            rest = corners(at + 1, left - corner * large.spacings[at][axis])
            if rest is not None:
                return [corner, *rest]
        return None

    found = corners(0, shift)
    if found is None:
        return None
    return [slice(c, c + n, step) for c, n, step in zip(found, lengths, steps, strict=True)]
