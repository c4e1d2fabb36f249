"""Where the taps of stages lie on the pixels that the first stage reads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from convfactor.conv.geometry import Pair


@dataclass(frozen=True)
class Grid:
    """Taps of the stages on the pixel grid of the composed kernel.

    Attributes:
        sizes: Taps (vertical, horizontal) of each stage.
        spacings: Distance of each stage's taps in pixels of the cascade's input.
    """

    sizes: tuple[Pair, ...]
    spacings: tuple[Pair, ...]

    @cached_property
    def spans(self) -> tuple[Pair, ...]:
        """Side lengths of the kernel before the first and after each stage."""
        spans = [(1, 1)]
        for (rows, cols), (y, x) in zip(self.sizes, self.spacings, strict=True):
            height, width = spans[-1]
            spans.append((height + (rows - 1) * y, width + (cols - 1) * x))
        return tuple(spans)

    @property
    def span(self) -> Pair:
        """Side lengths of the composed kernel."""
        return self.spans[-1]

    @property
    def taps(self) -> int:
        """Taps of all stages of one chain."""
        return sum(height * width for height, width in self.sizes)

    @property
    def is_plain(self) -> bool:
        """Whether the taps of every stage are neighbours."""
        return all(spacing == (1, 1) for spacing in self.spacings)

    @cached_property
    def is_free(self) -> bool:
        """Whether no two ways through the taps end on one pixel, so that each is set by itself."""
        ends = {(0, 0)}
        for size, spacing in zip(self.sizes, self.spacings, strict=True):
            ends = {(y + dy, x + dx) for y, x in ends for dy, dx in positions(size, spacing)}
        return len(ends) == math.prod(map(math.prod, self.sizes))

    @property
    def reversed(self) -> Grid:
        """The same stages, the last one first."""
        return Grid(self.sizes[::-1], self.spacings[::-1])

    def select(self, stages: Sequence[int]) -> Grid:
        """Keep some of the stages."""
        return Grid(tuple(self.sizes[i] for i in stages), tuple(self.spacings[i] for i in stages))

    def merge(self, first: Sequence[int], rest: Sequence[int]) -> Grid:
        """Join stages to one with free taps, put first, and keep the rest."""
        kept = self.select(rest)
        return Grid((self.select(first).span, *kept.sizes), ((1, 1), *kept.spacings))


def positions(size: Pair, spacing: Pair) -> Iterator[Pair]:
    """Pixels (row, col) of a stage's taps from its first one, row by row."""
    (rows, cols), (y, x) = size, spacing
    return ((row * y, col * x) for row in range(rows) for col in range(cols))


def side_sizes(taps: int) -> tuple[int, ...]:
    """Stage sizes whose composition has the given taps: threes, then a two for an even side."""
    return (3,) * ((taps - 1) // 2) + ((2,) if taps % 2 == 0 else ())


def stage_sizes(kernel_size: Pair) -> tuple[Pair, ...]:
    """Sizes of the stages for a kernel; stages get shorter on a side that needs fewer of them."""
    rows, cols = (side_sizes(k) for k in kernel_size)
    return tuple(itertools.zip_longest(rows, cols, fillvalue=1)) or ((1, 1),)
