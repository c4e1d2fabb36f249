"""Cascades whose every channel is a sum of chains that share nothing."""

from __future__ import annotations

from collections.abc import Sequence

from convfactor.conv.geometry import Pair
from convfactor.conv.structure import StageShape, Structure
from convfactor.factorization.solvers.problem import Problem


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


def branches(problem: Problem, structure: Structure) -> int:
    """Count the parallel chains per output channel.

    Args:
        problem: Its target has one input channel per group, and any number of output channels.
        structure: As ``chain_structure`` makes it; stages may be strided and dilated.

    Raises:
        ValueError: The target has more input channels, or the structure mixes channels in another
            way.
    """
    groups, out_per_group, inputs = problem.target.shape[:3]
    if inputs != 1:
        raise ValueError(f"problem.target must have one input channel per group, got {inputs}")
    hidden = structure.stages[0].out_channels
    count = max(1, hidden // (groups * out_per_group))
    sizes = structure.grid.sizes
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
