"""Cascades whose every channel is a sum of chains that share nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import Pair
from convfactor.conv.structure import StageShape, Structure

_ORDERS = 5000


@dataclass(frozen=True)
class Layout:
    """Taps of the stages on the pixel grid of the composed kernel.

    Attributes:
        sizes: Kernel size of each stage.
        spacings: Distance of the taps of each stage in input pixels.
    """

    sizes: tuple[Pair, ...]
    spacings: tuple[Pair, ...]

    @classmethod
    def of(cls, structure: Structure) -> Layout:
        """Read the layout of a structure."""
        return cls(
            tuple(stage.kernel_size for stage in structure.stages),
            tuple(
                (stage.dilation[0] * y, stage.dilation[1] * x)
                for stage, (y, x) in zip(structure.stages, structure.steps, strict=True)
            ),
        )

    @property
    def span(self) -> Pair:
        """Side lengths of the composed kernel."""
        parts = list(zip(self.sizes, self.spacings, strict=True))
        return (
            1 + sum((k[0] - 1) * d[0] for k, d in parts),
            1 + sum((k[1] - 1) * d[1] for k, d in parts),
        )

    @property
    def taps(self) -> int:
        """Taps of all stages of one chain."""
        return sum(height * width for height, width in self.sizes)

    def select(self, stages: Sequence[int]) -> Layout:
        """Keep some of the stages."""
        return Layout(tuple(self.sizes[i] for i in stages), tuple(self.spacings[i] for i in stages))

    def merge(self, first: Sequence[int], rest: Sequence[int]) -> Layout:
        """Join stages to one with free taps, put first, and keep the rest."""
        kept = self.select(rest)
        return Layout(
            (self.select(first).span, *kept.sizes),
            ((1, 1), *kept.spacings),
        )


def chain_structure(
    groups: int,
    out_per_group: int,
    sizes: Sequence[Pair],
    branches: int = 1,
    offset: Pair = (0, 0),
) -> Structure:
    """Describe parallel chains: 1 -> R, R -> R (grouped fully), R -> 1 for each output channel.

    Args:
        groups: Groups of the whole, each reading one channel.
        out_per_group: Output channels per group; each has chains of its own.
        sizes: Kernel size of each stage.
        branches: Number R of parallel chains per output channel.
        offset: (row, col) of the equivalent kernel's corner relative to the original's.

    Raises:
        ValueError: Several branches, but one stage only.
    """
    if len(sizes) == 1:
        if branches != 1:
            raise ValueError(f"branches must be 1 where there is one stage, got {branches}")
        return Structure(
            (StageShape(groups, groups * out_per_group, sizes[0], groups=groups),), offset
        )
    outputs = groups * out_per_group
    hidden = outputs * branches
    stages = [StageShape(groups, hidden, sizes[0], groups=groups)]
    stages += [StageShape(hidden, hidden, size, groups=hidden) for size in sizes[1:-1]]
    stages.append(StageShape(hidden, outputs, sizes[-1], groups=outputs))
    return Structure(tuple(stages), offset)


def branches(structure: Structure, groups: int, out_per_group: int) -> int:
    """Count the parallel chains per output channel.

    Args:
        structure: As ``chain_structure`` makes it; stages may be strided and dilated.
        groups: Groups of the target.
        out_per_group: Output channels per group of the target.

    Raises:
        ValueError: The structure mixes channels in another way.
    """
    hidden = structure.stages[0].out_channels
    count = max(1, hidden // (groups * out_per_group))
    sizes = [stage.kernel_size for stage in structure.stages]
    allowed = None
    if len(sizes) > 1 or count == 1:
        allowed = chain_structure(groups, out_per_group, sizes, count)
    if allowed is None or any(
        (a.in_channels, a.out_channels, a.groups) != (b.in_channels, b.out_channels, b.groups)
        for a, b in zip(allowed.stages, structure.stages, strict=True)
    ):
        raise ValueError(
            f"structure {structure} is not made of parallel chains: for {groups} groups of one "
            f"input and {out_per_group} output channels the first stage must have {groups} groups, "
            f"the last {groups * out_per_group}, and those between one per channel; "
            "use the dense solver for other structures"
        )
    return count


def pack(structure: Structure, kernels: Sequence[Tensor]) -> Cascade:
    """Make a cascade of the chains' kernels, one tensor (outputs, branches, kH, kW) per stage."""
    return Cascade.of(structure, kernels)


def unpack(cascade: Cascade, count: int) -> list[Tensor]:
    """Read the chains' kernels, one float64 tensor (outputs, branches, kH, kW) per stage."""
    return [
        stage.weight.double().reshape(-1, count, *stage.weight.shape[2:])
        for stage in cascade.stages
    ]


def embed(cascade: Cascade, structure: Structure, count: int, smaller: int) -> list[Tensor]:
    """Write a smaller cascade of chains as one of a larger structure.

    Stages that are left over become shifts by whole taps, branches that are left over end in
    zeros.

    Args:
        cascade: The smaller one.
        structure: The larger one.
        count: Branches of the structure.
        smaller: Branches of the cascade.

    Returns:
        Float64 kernels as ``unpack`` gives them, with the same composed kernel.

    Raises:
        ValueError: The structure can't hold the cascade.
    """
    layout, inner = Layout.of(structure), Layout.of(cascade.structure)
    shift = [a - b for a, b in zip(cascade.offset, structure.offset, strict=True)]
    orders = itertools.permutations(range(len(layout.sizes)), len(inner.sizes))
    for places in itertools.islice(orders, _ORDERS):
        stages = dict(zip(places, range(len(inner.sizes)), strict=True))
        corners = [_corners(layout, inner, stages, axis, shift[axis]) for axis in (0, 1)]
        if smaller <= count and corners[0] is not None and corners[1] is not None:
            break
    else:
        raise ValueError(
            f"starts must hold cascades that fit in the structure {structure} at "
            f"{structure.offset} with {count} branches, got {cascade.structure} at "
            f"{cascade.offset} with {smaller} branches"
        )
    kernels = []
    old = unpack(cascade, smaller)
    outputs = old[0].shape[0]
    for stage, (size, spacing) in enumerate(zip(layout.sizes, layout.spacings, strict=True)):
        kernel = old[0].new_zeros((outputs, count, *size))
        y, x = corners[0][stage], corners[1][stage]
        if stage in stages:
            part, apart = old[stages[stage]], inner.spacings[stages[stage]]
            dy, dx = (max(1, a // b) for a, b in zip(apart, spacing, strict=True))
            height, width = part.shape[-2:]
            kernel[
                :, :smaller, y : y + (height - 1) * dy + 1 : dy, x : x + (width - 1) * dx + 1 : dx
            ] = part
        else:
            kernel[:, :smaller, y, x] = 1
        kernels.append(kernel)
    return kernels


def _corners(
    layout: Layout, inner: Layout, stages: dict[int, int], axis: int, shift: int
) -> list[int] | None:
    """Taps by which each stage is moved so that together they move by ``shift`` pixels."""
    slacks = []
    for stage, (sizes, spacings) in enumerate(zip(layout.sizes, layout.spacings, strict=True)):
        size, spacing, taken = sizes[axis], spacings[axis], 1
        if stage in stages:
            length, apart = inner.sizes[stages[stage]][axis], inner.spacings[stages[stage]][axis]
            if length > 1 and apart % spacing:
                return None
            taken = (length - 1) * apart // spacing + 1
        if taken > size:
            return None
        slacks.append((spacing, size - taken))

    @cache
    def place(stage: int, left: int) -> list[int] | None:
        if stage == len(slacks):
            return [] if left == 0 else None
        spacing, slack = slacks[stage]
        # From the middle outwards: a shift in the middle of a stage leaves room on both sides.
        for corner in sorted(range(slack + 1), key=lambda c: abs(2 * c - slack)):
            rest = place(stage + 1, left - corner * spacing)
            if rest is not None:
                return [corner, *rest]
        return None

    return place(0, shift)
