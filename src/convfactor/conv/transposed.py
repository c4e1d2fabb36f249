"""Transposed convolutions as plain ones of their phases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convfactor.conv.geometry import Pair


@dataclass(frozen=True)
class Transposed:
    """The integers of a transposed convolution that its plain one does not know.

    Attributes:
        kernel_size: Its taps.
        stride: Output pixels from one input pixel to the next.
        padding: Pixels cut off on either side.
        output_padding: Pixels added at the bottom and on the right.
    """

    kernel_size: Pair
    stride: Pair
    padding: Pair
    output_padding: Pair

    @property
    def taps(self) -> Pair:
        """Taps of every phase; those of shorter ones are zero."""
        (height, width), (sy, sx) = self.kernel_size, self.stride
        return -(-height // sy), -(-width // sx)

    @property
    def crop(self) -> tuple[int, int, int, int]:
        """Pixels to cut off the interleaved phases (left, right, top, bottom)."""
        (top, left) = (p % s for p, s in zip(self.padding, self.stride, strict=True))
        bottom, right = (
            s - 1 - (k - 1 + more - p) % s
            for k, s, p, more in zip(
                self.kernel_size, self.stride, self.padding, self.output_padding, strict=True
            )
        )
        return left, right, top, bottom

    def interleaved(self, y: Tensor) -> Tensor:
        """The output, from that of the plain convolution of all phases."""
        return _interleaved(y, self.stride, self.crop)

    def pads(self, dilation: Pair) -> tuple[int, int, int, int]:
        """Padding of the plain convolution (left, right, top, bottom); below 0 there is none."""
        found = []
        for axis in (1, 0):
            size, step, cut = self.kernel_size[axis], self.stride[axis], self.padding[axis]
            reach = dilation[axis] * (size - 1)
            if step == 1:
                found += [reach - cut, reach - cut + self.output_padding[axis]]
                continue
            found += [self.taps[axis] - 1 - cut // step]
            found += [(reach + self.output_padding[axis] - cut) // step]
        left, right, top, bottom = found
        return left, right, top, bottom


@torch.fx.wrap
def _interleaved(y: Tensor, stride: Pair, crop: tuple[int, int, int, int]) -> Tensor:
    """Put the phases, which are channels, in their places, and cut off what is too much."""
    (sy, sx), (left, right, top, bottom) = stride, crop
    if sy == sx:
        y = F.pixel_shuffle(y, sy)
    else:
        y = y.unflatten(-3, (-1, sy, sx)).movedim(-4, -2).movedim(-4, -1)
        y = y.flatten(-2).flatten(-3, -2)
    if not any(crop):
        return y
    last = y.dim() == 4 and not y.is_contiguous()
    y = y[..., top : y.shape[-2] - bottom, left : y.shape[-1] - right]
    return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
