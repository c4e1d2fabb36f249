"""Zeros around an image as TensorFlow's "same" padding adds them: as many as its size needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from convfactor.conv.geometry import ConvGeometry, Pair


@dataclass(frozen=True)
class Same:
    """The integers of a convolution on which the zeros depend.

    Attributes:
        extent: Input pixels from its first tap to the last.
        stride: Step of its output grid in input pixels.
    """

    extent: Pair
    stride: Pair

    @classmethod
    def of(cls, geometry: ConvGeometry) -> Same:
        """Read them off a geometry."""
        return cls(geometry.extent, geometry.stride)

    def pads(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Zeros for an image of a size (left, right, top, bottom)."""
        rows, cols = (
            max((-(-size // step) - 1) * step + extent - size, 0)
            for size, step, extent in zip((height, width), self.stride, self.extent, strict=True)
        )
        return cols // 2, cols - cols // 2, rows // 2, rows - rows // 2

    def padded(self, x: Tensor) -> Tensor:
        """Pad an image."""
        return F.pad(x, self.pads(x.shape[-2], x.shape[-1]))
