"""A smaller cascade written as one of a larger structure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import Pair
from convfactor.conv.structure import Structure
from convfactor.factorization.solvers.composition import Layout


def embed(start: Cascade, structure: Structure, seed: int = 0) -> Tensor:
    """Write a smaller cascade as one of the structure, with the same composed kernel.

    Hidden channels that the start lacks read at random and are not read; a stage that it lacks
    passes its input on.

    Args:
        start: Cascade of no more stages, channels and taps.
        structure: The structure to embed in.
        seed: For the new channels.

    Returns:
        Float64 (groups, weights), in the order of ``Layout``.

    Raises:
        ValueError: The start does not fit.
    """
    own = start.structure
    for chosen in itertools.combinations(range(len(structure.stages)), len(own.stages)):
        shifts = _shifts(own, structure, chosen)
        if shifts is not None:
            break
    else:
        raise ValueError(
            f"starts must hold cascades of the structure {structure} at {structure.offset} "
            f"or of a smaller one, got {own} at {own.offset}"
        )
    generator = torch.Generator().manual_seed(seed)
    layout, groups = Layout.of(structure), structure.groups
    active = layout.channels[0]
    stages = iter(start.stages)
    parts = []
    for index, (size, shift) in enumerate(zip(layout.kernel_sizes, shifts, strict=True)):
        shape = (groups, layout.channels[index + 1], layout.channels[index], *size)
        weight = torch.randn(shape, generator=generator, dtype=torch.float64)
        weight = weight.to(start.stages[0].weight.device) / math.sqrt(math.prod(shape[2:]))
        if index in chosen:
            taps = next(stages).weight.to(torch.float64).unflatten(0, (groups, -1))
        else:
            eye = torch.eye(active, dtype=torch.float64, device=weight.device)
            taps = eye[:, :, None, None].expand(groups, -1, -1, 1, 1)
        (top, left), (rows, cols) = shift, taps.shape[-2:]
        outputs = taps.shape[1]
        weight[:, :outputs] = 0
        weight[:, :outputs, :active, top : top + rows, left : left + cols] = taps
        active = outputs
        parts.append(weight.flatten(1))
    return torch.cat(parts, 1)


def _shifts(own: Structure, structure: Structure, chosen: Sequence[int]) -> list[Pair] | None:
    """Where the taps of each stage go if the start's stages are the chosen ones, if that fits."""
    if own.groups != structure.groups or own.stride != structure.stride:
        return None
    small, large = Layout.of(own), Layout.of(structure)
    if small.channels[0] != large.channels[0] or small.channels[-1] != large.channels[-1]:
        return None
    place = {stage: index for index, stage in enumerate(chosen)}
    active = small.channels[0]
    room: list[Pair] = []
    for stage, (rows, cols) in enumerate(large.kernel_sizes):
        height, width = 1, 1
        if stage in place:
            index = place[stage]
            (height, width), spacing = small.kernel_sizes[index], small.spacings[index]
            for taps, mine, theirs in zip(
                (height, width), spacing, large.spacings[stage], strict=True
            ):
                if taps > 1 and mine != theirs:
                    return None
            active = small.channels[index + 1]
        if active > large.channels[stage + 1] or height > rows or width > cols:
            return None
        room.append((rows - height, cols - width))
    ways = []
    for axis in (0, 1):
        way = _split(
            own.offset[axis] - structure.offset[axis],
            [pair[axis] for pair in room],
            [pair[axis] for pair in large.spacings],
        )
        if way is None:
            return None
        ways.append(way)
    return list(zip(*ways, strict=True))


def _split(total: int, room: Sequence[int], spacings: Sequence[int]) -> tuple[int, ...] | None:
    """Write ``total`` as a sum of shifts within ``room``, each times its stage's spacing."""
    reached: dict[int, tuple[int, ...]] = {0: ()}
    for most, spacing in zip(room, spacings, strict=True):
        reached = {
            at + shift * spacing: (*way, shift)
            for at, way in reached.items()
            for shift in range(most + 1)
        }
    return reached.get(total)
