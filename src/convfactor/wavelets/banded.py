"""One-dimensional filters with their borders, as banded matrices cut into tiles.

A filter that takes n samples to n * rows / cols samples is a matrix that repeats itself every
`rows` rows and `cols` columns, except near both ends, where the extension of the signal folds
taps back. Three small blocks hold it for every n: the first rows, one tile of the interior, the
last rows. Applied to all windows at once the tile is a polyphase convolution in the form of a
matrix product; signals too short for tiles take the whole matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Taps(NamedTuple):
    """A polyphase filter: output `len(starts) * i + p` reads `starts[p] + cols * i + spacing * k`.

    Attributes:
        weight: (phases, length), correlated.
        starts: First sample that each phase reads.
        cols: Samples read on per `len(starts)` outputs.
        spacing: Distance of neighbouring taps.
        symmetric: Half-sample symmetric extension; zeros otherwise.
    """

    weight: Tensor
    starts: tuple[int, ...]
    cols: int
    spacing: int
    symmetric: bool

    def matrix(self, size: int) -> Tensor:
        """The filter on signals of `size` samples: (size * phases / cols, size).

        Every entry gathers the taps that read its sample, by itself or through a mirror: no entry
        is written twice, which compiles to one loop.
        """
        phases, length = self.weight.shape
        device = self.weight.device
        periods = torch.arange(0, size // self.cols * self.cols, self.cols, device=device)
        starts = torch.stack([periods + start for start in self.starts], dim=1).reshape(-1, 1)
        phase = torch.arange(starts.shape[0], device=device).remainder(phases)[:, None] * length
        offset = self._images(size) - starts
        tap = torch.div(offset, self.spacing, rounding_mode="floor")
        read = (tap >= 0) & (tap < length) & (tap * self.spacing == offset)
        values = self.weight.reshape(-1)[tap.clamp(0, length - 1) + phase]
        return (values * read.to(values.dtype)).sum(0)

    def _images(self, size: int) -> Tensor:
        """The samples, and their mirror images wherever a tap reads: (images, 1, size)."""
        samples = torch.arange(size, device=self.weight.device)
        if not self.symmetric:
            return samples[None, None]
        first = min(self.starts)
        last = size - self.cols + max(self.starts) + self.spacing * (self.weight.shape[1] - 1)
        images = []
        for image, low, high in ((samples, 0, size - 1), (-1 - samples, -size, -1)):
            begin, end = -((high - first) // (2 * size)), (last - low) // (2 * size)
            images += [image + 2 * size * turn for turn in range(begin, end + 1)]
        return torch.stack(images)[:, None]

    @property
    def reach(self) -> int:
        """Samples that a period of outputs reads beyond its own, on the longer side."""
        last = max(self.starts) + self.spacing * (self.weight.shape[1] - 1)
        return max(-min(self.starts), last - self.cols + 1, 0)


class Layout(NamedTuple):
    """How a matrix that advances by `cols` columns every `rows` rows is cut into blocks.

    Attributes:
        rows: Rows of a period.
        cols: Columns of a period.
        reach: Columns that a period uses on either side of its own, or more.
        periods: Periods of a tile.
    """

    rows: int
    cols: int
    reach: int
    periods: int

    @property
    def head(self) -> int:
        """Periods at either end that are not like the interior."""
        return max(1, -(-self.reach // self.cols))

    def tiles(self, size: int) -> int:
        """How many whole tiles lie between the ends for `size` inputs; may be negative."""
        return (size // self.cols - 2 * self.head) // self.periods

    def tail(self, size: int) -> int:
        """Periods after the last whole tile."""
        return size // self.cols - self.head - self.tiles(size) * self.periods


class Banded(NamedTuple):
    """The blocks of a matrix for signals of one tail.

    Attributes:
        first: The rows that the beginning of the signal folds into.
        tile: Rows of the interior, with all the columns that they use.
        last: The rows after the last whole tile.
        layout: How it is cut.
    """

    first: Tensor
    tile: Tensor
    last: Tensor
    layout: Layout


def layout(taps: Taps, tile: int, reach: int, transposed: bool = False) -> Layout:
    """Choose the blocks of a filter's matrix, or of its transpose.

    Args:
        taps: The filter.
        tile: Rows of a tile, rounded to whole periods.
        reach: The filter's reach or more: filters that are added need the same.
        transposed: Whether to take the transpose, which is the filter's adjoint.
    """
    rows, cols = len(taps.starts), taps.cols
    if transposed:
        rows, cols, reach = cols, rows, rows * -(-reach // cols)
    return Layout(rows, cols, reach, max(1, tile // rows))


def cut(taps: Taps, shape: Layout, tail: int, transposed: bool = False) -> Banded:
    """Cut a filter's matrix, or its transpose, into blocks.

    Args:
        taps: The filter.
        shape: Its layout.
        tail: Periods after the last whole tile.
        transposed: As for the layout.
    """
    rows, cols, reach, periods = shape
    head = shape.head
    matrix = taps.matrix((2 * head + periods + tail) * taps.cols)
    if transposed:
        matrix = matrix.T
    start, end = head * cols - reach, (head + periods) * cols + reach
    return Banded(
        matrix[: rows * head, : cols * head + reach],
        matrix[rows * head : rows * (head + periods), start:end],
        matrix[-rows * tail :, -(cols * tail + reach) :],
        shape,
    )


def beside(operators: Sequence[Banded | Tensor]) -> Banded | Tensor:
    """Put matrices of one shape side by side: applied to as many signals, they add the results."""
    blocks = [operator for operator in operators if isinstance(operator, Banded)]
    if not blocks:
        return torch.cat([one for one in operators if isinstance(one, Tensor)], dim=1)
    first, tile, last = (
        torch.cat(parts, dim=1) for parts in zip(*(block[:3] for block in blocks), strict=True)
    )
    return Banded(first, tile, last, blocks[0].layout)


def each(operator: Banded | Tensor, function: Callable[[Tensor], Tensor]) -> Banded | Tensor:
    """Replace every matrix of an operator."""
    if isinstance(operator, Tensor):
        return function(operator)
    first, tile, last, shape = operator
    return Banded(function(first), function(tile), function(last), shape)


def apply(operator: Banded | Tensor, signals: Sequence[Tensor], axis: int) -> Tensor:
    """Apply matrices to their signals along an axis, and add the results.

    Args:
        operator: As many matrices side by side as there are signals, whole or in blocks.
        signals: Tensors (N, H, W) of one shape.
        axis: -2 filters the columns, -1 the rows of the images.

    Returns:
        (N, H', W) or (N, H, W').
    """
    if isinstance(operator, Tensor):
        return _product(operator, signals, axis)
    shape, size = operator.layout, signals[0].shape[axis]
    head, reach, cols = shape.head, shape.reach, shape.cols
    step, count = shape.periods * cols, shape.tiles(size)
    ends = head * cols + reach, shape.tail(size) * cols + reach

    def part(start: int, length: int) -> list[Tensor]:
        return [signal.narrow(axis, start, length) for signal in signals]

    begin = _product(operator.first, part(0, ends[0]), axis)
    inside = part(head * cols - reach, count * step + 2 * reach)
    middle = _windows(operator.tile, inside, step, axis)
    end = _product(operator.last, part(size - ends[1], ends[1]), axis)
    return torch.cat((begin, middle, end), dim=axis)


def _product(matrix: Tensor, signals: Sequence[Tensor], axis: int) -> Tensor:
    """Sum of products, as one product: a second one would pass over the result again."""
    signal = _joined(signals, axis)
    return torch.matmul(matrix, signal) if axis == -2 else torch.matmul(signal, matrix.T)


def _windows(matrix: Tensor, signals: Sequence[Tensor], step: int, axis: int) -> Tensor:
    """Sum of products over all windows that start `step` samples apart."""
    width = matrix.shape[1] // len(signals)
    windows = [signal.unfold(axis, width, step) for signal in signals]
    if axis == -2:
        stacked = _joined([window.transpose(-1, -2) for window in windows], -2)
        return torch.matmul(matrix, stacked).flatten(1, 2)
    return torch.matmul(_joined(windows, -1), matrix.T).flatten(-2)


def _joined(signals: Sequence[Tensor], axis: int) -> Tensor:
    return torch.cat(tuple(signals), dim=axis)
