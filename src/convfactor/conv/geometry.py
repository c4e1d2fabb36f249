"""The integers of a convolution."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

Pair = tuple[int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def pair(value: int | Sequence[int], name: str, least: int = 1) -> Pair:
    """Read an int, or two of them, as torch's convolutions do.

    Args:
        value: One int for both sides, or (vertical, horizontal).
        name: The argument's name, for the error.
        least: Smallest value allowed.

    Raises:
        ValueError: ``value`` is neither, or is smaller than ``least``.
    """
    try:
        given = value if isinstance(value, Sequence) else (value,)
        values = tuple(operator.index(v) for v in given)  # NumPy's ints as well, as torch does
    except TypeError:
        values = ()
    if len(values) not in (1, 2) or min(values) < least:
        raise ValueError(f"{name} must be an int >= {least} or a pair of them, got {value!r}")
    return values[0], values[-1]


@dataclass(frozen=True)
class ConvGeometry:
    """Shape and placement of one 2-D convolution, hashable and without weights.

    Attributes:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Taps (vertical, horizontal).
        stride: Step of the output grid in input pixels.
        padding: Pixels added (left, right, top, bottom), the order of ``F.pad``.
        dilation: Distance of neighbouring taps in input pixels.
        groups: Number of groups.
        padding_mode: What the added pixels hold, as ``nn.Conv2d`` names it.

    Example:
        >>> from torch import nn
        >>> from convfactor import ConvGeometry
        >>> geometry = ConvGeometry.from_conv(nn.Conv2d(8, 16, 5, stride=2, padding=2))
        >>> geometry.macs, geometry.output_size(32, 32)
        (3200, (16, 16))
    """

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    padding_mode: PaddingMode = "zeros"

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> ConvGeometry:
        """Read the geometry of a module."""
        return cls.from_shape(
            conv.weight.shape,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            padding_mode=conv.padding_mode,
        )

    @classmethod
    def from_shape(
        cls,
        weight_shape: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: PaddingMode = "zeros",
    ) -> ConvGeometry:
        """Read the geometry of a functional call ``F.conv2d(x, weight, ...)``.

        Args:
            weight_shape: (C_out, C_in/groups, kH, kW).
            stride: As in ``F.conv2d``.
            padding: As in ``F.conv2d``; "same" puts an odd pixel to the right and bottom.
            dilation: As in ``F.conv2d``.
            groups: As in ``F.conv2d``.
            padding_mode: As in ``nn.Conv2d``.

        Raises:
            ValueError: An argument that torch's convolution would not accept either.
        """
        out_channels, in_per_group, height, width = weight_shape
        dilation = pair(dilation, "dilation")
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, (height, width), strict=True)]
            top, left = (t // 2 for t in total)
            pads = (left, total[1] - left, top, total[0] - top)
        elif padding == "valid":
            pads = (0, 0, 0, 0)
        elif isinstance(padding, str):
            raise ValueError(f"padding must be an int, a pair, 'same' or 'valid', got {padding!r}")
        else:
            vertical, horizontal = pair(padding, "padding", least=0)
            pads = (horizontal, horizontal, vertical, vertical)
        return cls(
            in_channels=in_per_group * groups,
            out_channels=out_channels,
            kernel_size=(height, width),
            stride=pair(stride, "stride"),
            padding=pads,
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
        )

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the weight, (C_out, C_in/groups, kH, kW)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @property
    def is_depthwise(self) -> bool:
        """Whether every group reads one channel and writes one."""
        return self.groups == self.in_channels == self.out_channels

    @property
    def overlaps(self) -> bool:
        """Whether neighbouring outputs read pixels in common.

        Where they do not, as in a patch embedding, the stages of a cascade have nothing to share.
        """
        return any(
            (taps - 1) * math.gcd(step, apart) >= step
            for taps, step, apart in zip(self.kernel_size, self.stride, self.dilation, strict=True)
        )

    @property
    def extent(self) -> Pair:
        """Input pixels from the first to the last tap, per side."""
        (height, width), (dy, dx) = self.kernel_size, self.dilation
        return (height - 1) * dy + 1, (width - 1) * dx + 1

    @property
    def macs(self) -> int:
        """Multiplies per output pixel."""
        out_channels, in_per_group, height, width = self.weight_shape
        return out_channels * in_per_group * height * width

    def padded(self, pads: tuple[int, int, int, int]) -> ConvGeometry:
        """The same with more padding (left, right, top, bottom)."""
        left, right, top, bottom = map(operator.add, self.padding, pads)
        return replace(self, padding=(left, right, top, bottom))

    def output_size(self, height: int, width: int) -> Pair:
        """Output height and width for an input of the given height and width."""
        left, right, top, bottom = self.padding
        return (
            (height + top + bottom - self.extent[0]) // self.stride[0] + 1,
            (width + left + right - self.extent[1]) // self.stride[1] + 1,
        )
