"""Ways to split a stride, and a reach, over the stages of a cascade."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from convfactor.conv.geometry import ConvGeometry, Pair

# Taps that strided stages may reach beyond the kernel in all.
WIDEST = 4
# Beyond it there are too many ways to count them all.
MOST_STRIDED = 32


def stride_placements(kernel: ConvGeometry, count: int) -> Iterator[tuple[Pair, ...]]:
    """Ways to split the stride over the stages; all of it on the last stage comes first."""
    ones = ((1, 1),) * (count - 1)
    yield (*ones, kernel.stride)
    (sy, sx) = kernel.stride
    if sy != sx or sy == 1 or count > MOST_STRIDED:
        return
    room = max(kernel.kernel_size) + WIDEST - 1
    for split in _splits(sy, count, 1, room):
        if split[-1] != sy:
            yield tuple((s, s) for s in split)


def _splits(step: int, count: int, density: int, room: int) -> Iterator[tuple[int, ...]]:
    """Write a stride as a product over stages of three taps that together reach within a room.

    Args:
        step: The stride that is left.
        count: Stages that are left.
        density: Product of the strides before.
        room: Pixels that are left from the first tap to the last.
    """
    room -= 2 * density
    if room < 0:
        return
    if count == 1:
        yield (step,)
        return
    for factor in range(1, min(step, room) + 1):
        if step % factor == 0:
            for rest in _splits(step // factor, count - 1, density * factor, room):
                yield (factor, *rest)


def growing_dilations(reach: int, count: int) -> tuple[int, ...] | None:
    """Growing dilations that sum to ``reach`` and leave no holes, as even as possible."""

    @functools.cache
    def best(least: int, left: int, stages: int) -> tuple[int, tuple[int, ...]] | None:
        """The least sum of squares of the stages that are left, and their dilations."""
        if stages == 0:
            return (0, ()) if left == 0 else None
        found = []
        for dilation in range(least, min(1 + 2 * (reach - left), left // stages) + 1):
            rest = best(dilation, left - dilation, stages - 1)
            if rest is not None:
                found.append((rest[0] + dilation**2, (dilation, *rest[1])))
        return min(found, default=None)

    whole = best(1, reach, count)
    return None if whole is None else whole[1]
