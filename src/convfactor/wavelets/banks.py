"""The three filters of a level, ready for both axes, both directions and every size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from convfactor.wavelets.banded import Banded, Taps, cut

# Whole matrices of short signals, kept as long as the filter that they belong to.
_matrices: WeakIdKeyDictionary = WeakIdKeyDictionary()


T = TypeVar("T")


class Sizes(NamedTuple):
    """How a level is computed; the result does not depend on it.

    The defaults were measured on a CPU with AVX-512, 64x64 to 1080x1920 (`benchmarks/wavelets.py`).

    Attributes:
        tile: Outputs per tile along an axis.
        whole: Signals of fewer outputs take the whole matrix.
        chunk: Output pixels worked on at a time in eager mode, to stay in the cache.
    """

    tile: int = 16
    whole: int = 48
    chunk: int = 1 << 17


class Filter(NamedTuple):
    """A filter and its adjoint, in blocks."""

    taps: Taps
    direct: Banded
    transposed: Banded

    def operator(self, size: int, transposed: bool, whole: int) -> Banded | Tensor:
        """The matrix for an input of `size` samples, whole where that is shorter."""
        blocks = self.transposed if transposed else self.direct
        if size // blocks.cols * blocks.rows >= whole and blocks.tiles(size) > 0:
            return blocks
        samples = size // blocks.cols * blocks.rows if transposed else size
        matrix = _matrix(self.taps, samples)
        return matrix.T if transposed else matrix


class Bank(NamedTuple):
    """Low and high filter of a level; `half` is the high one over the square root of two.

    The quads of a complex pair carry that factor: once for lh and hl, and so for hh, where
    it comes with the rows.
    """

    low: Filter
    high: Filter
    half: Filter
    sizes: Sizes


def _matrix(taps: Taps, size: int) -> Tensor:
    if torch.compiler.is_compiling():
        return taps.matrix(size)
    kept: dict[tuple[int, bool], Tensor] = _matrices.setdefault(taps.weight, {})
    if (size, taps.symmetric) not in kept:
        with torch.inference_mode(False):
            matrix = taps.matrix(size)
        if type(matrix) is not Tensor:  # fake tensors must not outlive their mode
            return matrix
        kept[size, taps.symmetric] = matrix
    return kept[size, taps.symmetric]


def bank(low: Taps, high: Taps, sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Bank:
    """Prepare a level's filters.

    Args:
        low: Low filter, float64 on the CPU.
        high: High filter, likewise.
        sizes: How the level is computed.
        dtype: Dtype of the blocks.
        device: Device of the blocks.
    """
    reach = max(low.reach, high.reach)

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype)

    def blocks(taps: Taps, transposed: bool) -> Banded:
        banded = cut(taps, sizes.tile, reach, transposed)
        first, tile, last = (move(block) for block in banded[:3])
        return Banded(first, tile, last, banded.rows, banded.cols)

    def prepare(taps: Taps) -> Filter:
        return Filter(
            taps._replace(weight=move(taps.weight)), blocks(taps, False), blocks(taps, True)
        )

    half = high._replace(weight=high.weight / math.sqrt(2))
    return Bank(prepare(low), prepare(high), prepare(half), sizes)


def level1_taps(taps: Tensor, symmetric: bool) -> Taps:
    """A level-1 filter from its correlation order; odd length."""
    return Taps(taps.reshape(1, -1), (-(taps.numel() // 2),), 1, 1, symmetric)


def synthesis_taps(tree_a: Tensor, tree_b: Tensor, highpass: bool) -> Taps:
    """A synthesis filter of the levels above 1, both trees interleaved.

    Every two samples become four: the even and the odd taps of either tree, as in
    `colifilt` of N. Kingsbury's toolbox.

    Args:
        tree_a: Filter of tree a in correlation order.
        tree_b: Filter of tree b in correlation order.
        highpass: Whether it is the high filter, which reads the trees the other way round.
    """
    a, b = tree_a.reshape(-1), tree_b.reshape(-1)
    half = a.numel() // 2
    if half % 2 == 0:
        phases = (b[::2], a[::2], b[1::2], a[1::2])
        reads = (1, 0, 3, 2) if highpass else (0, 1, 2, 3)
    else:
        phases = (b[1::2], a[1::2], b[::2], a[::2])
        reads = (2, 1, 2, 1) if highpass else (1, 2, 1, 2)
    return Taps(torch.stack(phases), tuple(read - half for read in reads), 2, 2, True)


def analysis_taps(tree_a: Tensor, tree_b: Tensor, highpass: bool) -> Taps:
    """An analysis filter of the levels above 1: every four samples become two, one per tree.

    Args:
        tree_a: Filter of tree a in correlation order.
        tree_b: Filter of tree b in correlation order.
        highpass: Whether it is the high filter, whose trees come the other way round.
    """
    phases = [tree_b.reshape(-1), tree_a.reshape(-1)]
    starts = [2 - tree_a.numel(), 3 - tree_a.numel()]
    if highpass:
        phases.reverse()
        starts.reverse()
    return Taps(torch.stack(phases), tuple(starts), 4, 2, True)


def replace(bank: T, kind: type[Any], function: Callable[[Any], Any]) -> T:
    """Copy nested tuples with every item of a type replaced."""
    if isinstance(bank, kind):
        return cast(T, function(bank))
    if not isinstance(bank, tuple):
        return bank
    items = [replace(item, kind, function) for item in bank]
    return cast(T, type(bank)(*items) if hasattr(bank, "_fields") else type(bank)(items))
