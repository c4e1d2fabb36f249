"""The filters of a level, ready for both axes, both directions and every size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from convfactor.wavelets.banded import Banded, Taps, beside, cut, each, layout

SCALED = {"half": "high", "half_band": "band"}


class Sizes(NamedTuple):
    """How a level is computed; the result does not depend on it.

    The defaults were measured on a CPU with AVX-512, 64x64 to 1080x1920 (`benchmarks/wavelets.py`).

    Attributes:
        tile: Outputs per tile along an axis.
        whole: Signals of fewer outputs take the whole matrix.
        chunk: Output pixels worked on at a time in eager mode, to stay in the cache.

    Example:
        >>> from convfactor.wavelets import Sizes
        >>> Sizes(tile=32).whole
        48
    """

    tile: int = 16
    whole: int = 48
    chunk: int = 1 << 17


class Bank:
    """The filters of a level: low, high, and band for the diagonals where they have their own.

    The quads of a complex pair carry a factor of one over the square root of two. `half` and
    `half_band` are the high and the band filter with it: once for lh and hl, and so for hh,
    where it comes with the rows.

    Args:
        taps: The filters by name: low, high, and band where there is one.
        sizes: How the level is computed.
        dtype: Dtype of the matrices, on the device of the filters unless told.
        device: Device of the matrices.
        fixed: Whether the matrices are constants, which no derivative has to reach.
        backend: What computes the level, see `kernels`.
    """

    def __init__(
        self,
        taps: Mapping[str, Taps],
        sizes: Sizes,
        dtype: torch.dtype,
        device: torch.device,
        fixed: bool,
        backend: str = "torch",
    ) -> None:
        """Keep the filters; matrices are made when they are asked for."""
        self.sizes = sizes
        self.dtype = dtype
        self.fixed = fixed
        self.backend = backend
        self.taps = dict(taps)
        self.diagonal = "band" in taps
        self._device = device
        reach = max(one.reach for one in taps.values())
        self._layouts = [
            layout(taps["low"], sizes.tile, reach, transposed) for transposed in (False, True)
        ]
        self._made: dict[tuple[object, ...], Banded | Tensor] = {}
        self._open = True

    def complete(self, sizes: Iterable[int], adjoints: bool) -> None:
        """Make all filters for signals of these sizes, and keep no more from then on.

        A compiled graph hands what is made here to a function with a gradient of its own, but
        cannot keep what is made inside.

        Args:
            sizes: Samples of the signals.
            adjoints: Whether to make the adjoints as well.
        """
        self._open = True
        rows, cols = self._layouts[False][:2]
        for size in sizes:
            for name in ("low", "high", "half", *(("band", "half_band") * self.diagonal)):
                self.operator((name,), size, False)
                if adjoints:
                    self.operator((name,), size // cols * rows, True)
        self._open = False

    def operator(self, names: tuple[str, ...], size: int, transposed: bool) -> Banded | Tensor:
        """Filters side by side, for an input of `size` samples: whole where that is shorter.

        Args:
            names: Names of the filters, one for each signal that they are applied to.
            size: Samples of a signal.
            transposed: Whether to take the adjoints.
        """
        shape = self._layouts[transposed]
        whole = size // shape.cols * shape.rows < self.sizes.whole or shape.tiles(size) <= 0
        length = size if whole else shape.tail(size)
        key = (names, length, whole, transposed)
        if key in self._made:
            return self._made[key]
        if len(names) > 1:
            made = beside([self.operator((name,), size, transposed) for name in names])
        else:
            exact = self._exact(SCALED.get(names[0], names[0]), length, whole, transposed)
            made = each(exact, lambda block: self._moved(block, names[0] in SCALED))
        if self._open:
            self._made[key] = made
        return made

    def _exact(self, name: str, length: int, whole: bool, transposed: bool) -> Banded | Tensor:
        """A filter in the precision that it came in."""
        key = (name, length, whole, transposed)
        if key in self._made:
            return self._made[key]
        shape, taps = self._layouts[transposed], self.taps[name]
        made: Banded | Tensor
        if not whole:
            made = cut(taps, shape, length, transposed)
        elif transposed:
            made = taps.matrix(length // shape.cols * shape.rows).T
        else:
            made = taps.matrix(length)
        if self._open:
            self._made[key] = made
        return made

    def _moved(self, block: Tensor, scaled: bool) -> Tensor:
        exact = block / math.sqrt(2) if scaled else block
        return exact.to(self._device, self.dtype).contiguous()


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
