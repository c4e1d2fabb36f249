"""One-dimensional filters with their borders, as banded matrices cut into tiles.

A filter that takes n samples to n * rows / cols samples is a matrix that repeats itself every
`rows` rows and `cols` columns, except near both ends, where the extension of the signal folds
taps back. Three small blocks hold it for every n: the first rows, one tile of the interior, the
last rows. Applied to all windows at once the tile is a polyphase convolution in the form of a
matrix product; signals too short for tiles take the whole matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        """The filter on signals of `size` samples: (size * phases / cols, size)."""
        weight = self.weight
        phases, length = weight.shape
        count = size // self.cols
        device = weight.device
        periods = torch.arange(0, self.cols * count, self.cols, device=device)
        starts = torch.stack([periods + start for start in self.starts], dim=1)
        taps = torch.arange(0, self.spacing * length, self.spacing, device=device)
        index = (starts[..., None] + taps).reshape(count * phases, length)
        values = weight.repeat(count, 1)
        if self.symmetric:
            index = torch.remainder(index, 2 * size)
            index = torch.minimum(index, 2 * size - 1 - index)
        else:
            values = values * ((index >= 0) & (index < size)).to(values.dtype)
            index = index.clamp(0, size - 1)
        matrix = torch.zeros(count * phases, size, dtype=weight.dtype, device=device)
        return matrix.scatter_add(1, index, values)

    @property
    def reach(self) -> int:
        """Samples that a period of outputs reads beyond its own, on the longer side."""
        last = max(self.starts) + self.spacing * (self.weight.shape[1] - 1)
        return max(-min(self.starts), last - self.cols + 1, 0)


class Banded(NamedTuple):
    """The blocks of a matrix that advances by `cols` columns every `rows` rows.

    Attributes:
        first: The rows that the beginning of the signal folds into.
        tile: Rows of the interior, with all the columns that they use.
        last: Rows at the end, at least as many as a tile and the end together.
        rows: Rows of a period.
        cols: Columns of a period.
    """

    first: Tensor
    tile: Tensor
    last: Tensor
    rows: int
    cols: int

    @property
    def head(self) -> int:
        """Periods at either end that are not like the interior."""
        return self.first.shape[0] // self.rows

    @property
    def reach(self) -> int:
        """Columns that a period uses on either side of its own."""
        return self.first.shape[1] - self.head * self.cols

    @property
    def periods(self) -> int:
        """Periods of a tile."""
        return self.tile.shape[0] // self.rows

    def tiles(self, size: int) -> int:
        """How many whole tiles lie between the ends for `size` inputs; may be negative."""
        return (size // self.cols - 2 * self.head) // self.periods


def cut(taps: Taps, tile: int, reach: int, transposed: bool = False) -> Banded:
    """Cut a filter's matrix, or its transpose, into blocks.

    Args:
        taps: The filter.
        tile: Rows of a tile, rounded to whole periods.
        reach: The filter's reach or more: filters that are added need the same.
        transposed: Whether to take the transpose, which is the filter's adjoint.
    """
    rows, cols = len(taps.starts), taps.cols
    if transposed:
        rows, cols, reach = cols, rows, rows * -(-reach // cols)
    head = max(1, -(-reach // cols))
    periods = max(1, tile // rows)
    total = 3 * head + 2 * periods + 1
    matrix = taps.matrix(total * taps.cols)
    if transposed:
        matrix = matrix.T
    start, end = head * cols - reach, (head + periods) * cols + reach
    tail = head + periods
    return Banded(
        matrix[: rows * head, : cols * head + reach].contiguous(),
        matrix[rows * head : rows * (head + periods), start:end].contiguous(),
        matrix[-rows * tail :, -(cols * tail + reach) :].contiguous(),
        rows,
        cols,
    )


def apply(operators: Sequence[Banded | Tensor], signals: Sequence[Tensor], axis: int) -> Tensor:
    """Apply each operator to its signal along an axis, and add the results.

    Args:
        operators: Whole matrices, or blocks of equal layout.
        signals: As many tensors (N, H, W), of one shape.
        axis: -2 filters the columns, -1 the rows of the images.

    Returns:
        (N, H', W) or (N, H, W').
    """
    blocks = [operator for operator in operators if isinstance(operator, Banded)]
    if not blocks:
        return _product([o for o in operators if isinstance(o, Tensor)], signals, axis)
    shape, size = blocks[0], signals[0].shape[axis]
    head, reach, cols = shape.head, shape.reach, shape.cols
    periods, count = shape.periods, shape.tiles(size)
    begin = _product(
        [block.first for block in blocks],
        [signal.narrow(axis, 0, head * cols + reach) for signal in signals],
        axis,
    )
    middle = _windows(
        [block.tile for block in blocks],
        [signal.narrow(axis, head * cols - reach, count * periods * cols + 2 * reach)
         for signal in signals],
        periods * cols,
        axis,
    )  # fmt: skip
    tail = size // cols - head - count * periods
    length = tail * cols + reach
    end = _product(
        [block.last[-tail * shape.rows :, -length:] for block in blocks],
        [signal.narrow(axis, size - length, length) for signal in signals],
        axis,
    )
    return torch.cat((begin, middle, end), dim=axis)


def _product(matrices: Sequence[Tensor], signals: Sequence[Tensor], axis: int) -> Tensor:
    """Sum of products, as one product: a second one would pass over the result again."""
    matrix = torch.cat(tuple(matrices), dim=1)
    signal = torch.cat(tuple(signals), dim=axis)
    return torch.matmul(matrix, signal) if axis == -2 else torch.matmul(signal, matrix.T)


def _windows(matrices: Sequence[Tensor], signals: Sequence[Tensor], step: int, axis: int) -> Tensor:
    """Sum of products over all windows that start `step` samples apart."""
    matrix = torch.cat(tuple(matrices), dim=1)
    windows = [signal.unfold(axis, matrices[0].shape[1], step) for signal in signals]
    if axis == -2:
        stacked = torch.cat([window.transpose(-1, -2) for window in windows], dim=-2)
        return torch.matmul(matrix, stacked).flatten(1, 2)
    return torch.matmul(torch.cat(windows, dim=-1), matrix.T).flatten(-2)
