"""Which cascades could replace a kernel: stage sizes, strides, dilations and widths."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from convfactor.conv.geometry import ConvGeometry, Pair
from convfactor.conv.grid import stage_sizes
from convfactor.conv.structure import StageShape, Structure
from convfactor.factorization.splits import WIDEST, growing_dilations, stride_placements

FEWEST_MIXED = 16
# On a 5x5 64->32 layer of SRCNN 1x1 at both ends of dense stages loses at every cost.
FEWEST_BETWEEN = 128
# At equal multiplies, widths (4, 4, 4) instead of (1, 1, 4) took the calibrated error of SRCNN's
# 9x9 1->64 from 8.0 to 0.4 %: what a narrow stage loses, no later one brings back.
NARROWEST = 4
TAPER = 0.5
# Beyond it there are too many ways to count them all.
LARGEST_DILATED = 255
# Unknowns per channel of parallel chains, which are all solved for together.
MOST_TAPS = 300


@dataclass(frozen=True)
class Family:
    """Cascades for one kernel that differ only in their widths.

    Attributes:
        kernel: The convolution to be replaced; its padding and dilation do not matter here.
        kernel_sizes: Taps of each stage.
        strides: Stride of each stage.
        dilations: Dilation of each stage, in taps of the kernel.
        offset: (row, col) of the composed kernel's corner relative to the kernel's, in taps.
        apart: The stages that keep their channels apart, between others that mix them.
    """

    kernel: ConvGeometry
    kernel_sizes: tuple[Pair, ...]
    strides: tuple[Pair, ...]
    dilations: tuple[Pair, ...]
    offset: Pair = (0, 0)
    apart: range = range(0)

    def structure(self, widths: Sequence[int]) -> Structure:
        """Fill in the hidden widths (total channel counts, divisible by the groups).

        Depthwise kernels become parallel chains: hidden stages stay within one chain.
        """
        kernel = self.kernel
        channels = [kernel.in_channels, *widths, kernel.out_channels]
        stages = []
        for i, (size, stride, dilation) in enumerate(
            zip(self.kernel_sizes, self.strides, self.dilations, strict=True)
        ):
            groups = kernel.groups
            if i in self.apart or (kernel.is_depthwise and channels[i] == channels[i + 1]):
                groups = channels[i]
            stages.append(StageShape(channels[i], channels[i + 1], size, stride, dilation, groups))
        return Structure(tuple(stages), self.offset)

    def widths(self, scale: float, taper: float = TAPER) -> tuple[int, ...]:
        """Hidden widths between the channel counts at both ends, times ``scale``.

        They grow geometrically from the end with fewer channels to the other, by as much as the
        channels with a ``taper`` of 1, not at all with 0. None is below ``NARROWEST`` unless all
        are. Around stages that keep their channels apart they are all the same.
        """
        kernel, count = self.kernel, len(self.kernel_sizes)
        first = kernel.in_channels // kernel.groups
        last = kernel.out_channels // kernel.groups
        if kernel.is_depthwise:
            return (max(1, round(scale)) * kernel.groups,) * (count - 1)
        middle = math.sqrt(first * last)
        if self.apart:
            return (max(1, round(scale * middle)) * kernel.groups,) * (count - 1)
        widths = [
            scale * middle * (last / first) ** (taper * (i / count - 0.5)) for i in range(1, count)
        ]
        least = min(NARROWEST, max(widths, default=1))
        return tuple(max(1, round(max(width, least))) * kernel.groups for width in widths)

    def ladder(self, most_macs: int, multiple: int = 1, taper: float = TAPER) -> list[Structure]:
        """Structures of growing width, cheapest first, within a budget of multiplies.

        Args:
            most_macs: Multiplies per output pixel allowed.
            multiple: Round widths above it to its multiples, for hardware that works in blocks.
            taper: How much the widths follow the channel counts, see ``widths``.
        """
        groups = self.kernel.groups
        rungs: list[Structure] = []
        widths: tuple[int, ...] = ()
        scale = 0.0
        while True:
            previous, scale = widths, scale * 1.02 + 1e-2
            widths = self.widths(scale, taper)
            if multiple > 1 and not self.kernel.is_depthwise:
                widths = tuple(_round_up(w // groups, multiple) * groups for w in widths)
            if widths == previous and widths:
                continue
            structure = self.structure(widths)
            too_many = self.kernel.is_depthwise and rungs and _taps(structure) > MOST_TAPS
            if structure.macs > most_macs or too_many:
                return rungs
            rungs.append(structure)
            if not widths:
                return rungs


def _taps(structure: Structure) -> int:
    """Unknowns of the chains of one channel."""
    return sum(math.prod(stage.weight_shape) for stage in structure.stages) // structure.groups


def _round_up(width: int, multiple: int) -> int:
    """Next block size: powers of two below ``multiple``, its multiples above."""
    if width >= multiple:
        return -(-width // multiple) * multiple
    return 1 << (width - 1).bit_length()


def families(kernel: ConvGeometry) -> list[Family]:
    """Every family of 3x3 cascades worth trying for a kernel; none where nothing is shared."""
    if not kernel.overlaps:
        return []
    return [*full(kernel), *cropped(kernel), *dilated(kernel), *pointwise(kernel)]


def whole(kernel: ConvGeometry) -> Family:
    """The kernel itself, for a convolution that is another one in disguise."""
    return _centred(kernel, (kernel.kernel_size,), (kernel.stride,))


def full(kernel: ConvGeometry, stages: int | None = None) -> Iterator[Family]:
    """Undilated cascades of 3x3 stages, one for every placement of the stride.

    Args:
        kernel: The kernel.
        stages: How many stages; None takes as many as the kernel's taps need, and fewer where an
            early stride makes them reach as far.
    """
    natural = stage_sizes(kernel.kernel_size)
    counts = range(1, len(natural) + 1) if stages is None else [stages]
    for count in counts:
        for strides in stride_placements(kernel, count):
            at_end = all(s == (1, 1) for s in strides[:-1])
            if at_end and stages is None and count < len(natural):
                continue
            if at_end and count == len(natural):
                yield _centred(kernel, natural, strides)
                continue
            sizes = tuple(
                (3 if kernel.kernel_size[0] > 1 else 1, 3 if kernel.kernel_size[1] > 1 else 1)
                for _ in range(count)
            )
            family = _centred(kernel, sizes, strides)
            span = family.structure(family.widths(1)).span
            reaches = all(
                k <= s <= k + WIDEST for k, s in zip(kernel.kernel_size, span, strict=True)
            )
            if stages is not None or reaches:
                yield family


def cropped(kernel: ConvGeometry, rings: int = 1) -> Iterator[Family]:
    """Cascades of the kernel without its outer rings."""
    inner = tuple(max(k - 2 * rings, 1) for k in kernel.kernel_size)
    sizes = stage_sizes((inner[0], inner[1]))
    if max(inner) >= 3 and sizes != stage_sizes(kernel.kernel_size):
        yield _centred(kernel, sizes, next(stride_placements(kernel, len(sizes))))


def dilated(kernel: ConvGeometry) -> Iterator[Family]:
    """Cascades of fewer 3x3 stages that reach as far by dilation, without holes."""
    height, width = kernel.kernel_size
    if height != width or height % 2 == 0 or not 7 <= height <= LARGEST_DILATED:
        return
    natural = (height - 1) // 2
    shortest = next(n for n in range(1, natural) if 3**n >= height)
    for count in sorted({shortest, min(shortest + 1, natural - 1)}):
        dilations = growing_dilations(natural, count)
        if dilations is not None:
            strides = next(stride_placements(kernel, count))
            yield Family(
                kernel, ((3, 3),) * count, strides, tuple((d, d) for d in dilations), (0, 0)
            )


def pointwise(kernel: ConvGeometry) -> Iterator[Family]:
    """Cascades that mix and drop channels by 1x1 first, for kernels that read many of them.

    At equal multiplies and small widths that took 5 to 14 % off the calibrated error of a 5x5
    64->32 layer of SRCNN. Kernels that also write many channels may end in 1x1 as well.
    """
    inner = stage_sizes(kernel.kernel_size)
    sizes = ((1, 1), *inner)
    if kernel.in_channels // kernel.groups >= FEWEST_MIXED:
        yield _centred(kernel, sizes, next(stride_placements(kernel, len(sizes))))
    if min(kernel.in_channels, kernel.out_channels) // kernel.groups >= FEWEST_BETWEEN:
        yield _between(kernel, inner, apart=False)


def separable_pair(kernel: ConvGeometry) -> Iterator[Family]:
    """The pair Kx1, 1xK (Jaderberg et al., 2014)."""
    (height, width), (sy, sx) = kernel.kernel_size, kernel.stride
    if min(height, width) > 1 and kernel.overlaps:
        yield Family(
            kernel, ((height, 1), (1, width)), ((sy, 1), (1, sx)), ((1, 1), (1, 1)), (0, 0)
        )


def low_rank(kernel: ConvGeometry) -> Iterator[Family]:
    """Stages between 1x1 ones that choose the channels.

    A depthwise KxK, a chain of depthwise 3x3, a depthwise Kx1 and 1xK (the polyadic form of Lebedev
    et al., 2015), and a dense KxK between many channels (Tucker-2, Kim et al., 2016).
    """
    if not kernel.overlaps:
        return
    height, width = kernel.kernel_size
    if min(kernel.in_channels, kernel.out_channels) > kernel.groups:
        yield _between(kernel, ((height, width),))
        yield _between(kernel, stage_sizes(kernel.kernel_size))
        if min(height, width) > 1:
            yield _between(kernel, ((height, 1), (1, width)))
    if min(kernel.in_channels, kernel.out_channels) // kernel.groups >= FEWEST_BETWEEN:
        yield _between(kernel, ((height, width),), apart=False)


def one_row(kernel: ConvGeometry) -> Iterator[Family]:
    """All taps of a kernel of one row or column, and a 1x1 at the end with more channels.

    What the separable pair is for other kernels: the best of its rank is known.
    """
    if min(kernel.kernel_size) > 1 or kernel.is_depthwise or not kernel.overlaps:
        return
    taps, point = (kernel.kernel_size, kernel.stride), ((1, 1), (1, 1))
    widens = kernel.out_channels >= kernel.in_channels
    stages = (taps, point) if widens else (point, taps)
    sizes, strides = zip(*stages, strict=True)
    yield Family(kernel, sizes, strides, ((1, 1), (1, 1)))


def _between(kernel: ConvGeometry, inner: tuple[Pair, ...], apart: bool = True) -> Family:
    """Put stages between two of 1x1; the last of them that reaches along an axis strides there."""
    (sy, sx) = kernel.stride
    last = [max((i for i, k in enumerate(inner) if k[axis] > 1), default=0) for axis in (0, 1)]
    strides = ((sy if i == last[0] else 1, sx if i == last[1] else 1) for i in range(len(inner)))
    family = _centred(kernel, ((1, 1), *inner, (1, 1)), ((1, 1), *strides, (1, 1)))
    return replace(family, apart=range(1, len(inner) + 1) if apart else range(0))


def _centred(kernel: ConvGeometry, sizes: tuple[Pair, ...], strides: tuple[Pair, ...]) -> Family:
    """Place undilated stages so that the composed kernel and the kernel share their centre."""
    family = Family(kernel, sizes, strides, ((1, 1),) * len(sizes))
    span = family.structure(family.widths(1)).span
    offset = tuple((k - s) // 2 for k, s in zip(kernel.kernel_size, span, strict=True))
    return replace(family, offset=(offset[0], offset[1]))
