"""The composed kernel of a batch of cascades as a function of their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from types import EllipsisType

import torch
from torch import Tensor

from convfactor.conv.blocks import block_diagonal, diagonal_blocks
from convfactor.conv.geometry import Pair
from convfactor.conv.grid import Grid, positions
from convfactor.conv.structure import Structure

_Place = tuple[EllipsisType, slice, slice]


@dataclass(frozen=True)
class Layout:
    """Where the weights of one group of a cascade stand in a flat vector.

    Attributes:
        channels: Channels before, between and after the stages.
        grid: Where the stages' taps lie.
        groups: Groups of each stage within the one group of the cascade.
    """

    channels: tuple[int, ...]
    grid: Grid
    groups: tuple[int, ...]

    @classmethod
    def of(cls, structure: Structure) -> Layout:
        """Describe one group of a structure."""
        stages, groups = structure.stages, structure.groups
        channels = (stages[0].in_channels, *(stage.out_channels for stage in stages))
        inner = tuple(stage.groups // groups for stage in stages)
        return cls(tuple(count // groups for count in channels), structure.grid, inner)

    @cached_property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.grid.sizes)

    @cached_property
    def shapes(self) -> tuple[Pair, ...]:
        """Per stage (out, in / groups * kH * kW), the weight as a matrix."""
        return tuple(
            (after, before // groups * math.prod(size))
            for before, after, groups, size in zip(
                self.channels, self.channels[1:], self.groups, self.grid.sizes, strict=False
            )
        )

    @cached_property
    def counts(self) -> list[int]:
        """Number of weights per stage."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def transposed(self) -> Layout:
        """Layout of the transposed kernel's cascade: every stage transposed, the last one first."""
        return Layout(self.channels[::-1], self.grid.reversed, self.groups[::-1])

    def transpose(self, flat: Tensor) -> Tensor:
        """Turn (batch, weights) into those of the transposed cascade."""
        parts = []
        for groups, weight, size in zip(
            self.groups, self.split(flat), self.grid.sizes, strict=True
        ):
            taps = weight.unflatten(2, (-1, math.prod(size))).unflatten(1, (groups, -1))
            parts.append(taps.transpose(2, 3).flatten(1))
        return torch.cat(parts[::-1], 1)

    def split(self, flat: Tensor) -> list[Tensor]:
        """View (batch, weights) as one (batch, out, in / groups * kH * kW) per stage."""
        parts = flat.split(self.counts, dim=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def kernel(self, matrix: Tensor, stage: int) -> Tensor:
        """View (batch, out, in * H * W) after ``stage`` stages with its taps apart."""
        apart: Tensor = matrix.unflatten(2, (self.channels[0], *self.grid.spans[stage]))
        return apart

    def dense(self, weight: Tensor, stage: int) -> Tensor:
        """Write the groups of a stage out, (batch, out, in, kH * kW)."""
        taps = math.prod(self.grid.sizes[stage])
        return block_diagonal(
            weight.unflatten(2, (-1, taps)).unflatten(1, (self.groups[stage], -1))
        )

    def own(self, dense: Tensor, stage: int) -> Tensor:
        """Take a stage's own weights out of a dense one, (batch, out, in * kH * kW)."""
        return diagonal_blocks(dense, self.groups[stage]).flatten(1, 2)

    def first(self, weight: Tensor) -> Tensor:
        """Kernel (batch, out, in, H, W) of the first stage alone."""
        taps: Tensor = self.dense(weight, 0).unflatten(3, self.grid.sizes[0])
        y, x = self.grid.spacings[0]
        if (y, x) == (1, 1):
            return taps
        kernel = taps.new_zeros(*taps.shape[:3], *self.grid.spans[1])
        kernel[..., ::y, ::x] = taps
        return kernel

    def windows(self, kernel: Tensor, stage: int) -> Tensor:
        """Shift a kernel to every tap of the stage that follows.

        Args:
            kernel: (batch, hidden, in, h, w) before stage ``stage``.
            stage: Index of the stage.

        Returns:
            (batch, hidden * kH * kW, in * H * W); the stage's weight times this is its output.
        """
        batch, hidden, channels, height, width = kernel.shape
        taps = list(positions(self.grid.sizes[stage], self.grid.spacings[stage]))
        result = kernel.new_zeros(batch, hidden, len(taps), channels, *self.grid.spans[stage + 1])
        for tap, (y, x) in enumerate(taps):
            result[:, :, tap, :, y : y + height, x : x + width] = kernel
        return result.view(batch, hidden * len(taps), -1)

    def is_apart(self, stage: int) -> bool:
        """Whether a stage reads one channel in each group."""
        return self.groups[stage] == self.channels[stage] > 1

    def fold(self, shifted: Tensor, stage: int) -> Tensor:
        """Transpose of ``windows``: add up what each tap of the stage saw."""
        height, width = self.grid.spans[stage]
        hidden, inputs = self.channels[stage], self.channels[0]
        taps = list(positions(self.grid.sizes[stage], self.grid.spacings[stage]))
        kernels = shifted.view(-1, hidden, len(taps), inputs, *self.grid.spans[stage + 1])
        result = kernels.new_zeros(len(kernels), hidden, inputs, height, width)
        for tap, (y, x) in enumerate(taps):
            result += kernels[:, :, tap, :, y : y + height, x : x + width]
        return result


class Composition:
    """A batch of cascades, their composed kernels, and the derivative there.

    A stage that mixes channels is a product with the kernel before it, shifted to every tap; one
    that keeps them apart is a sum of shifts, which needs no copy of the kernel for each.

    Args:
        layout: The cascades' common layout.
        flat: Float64 (batch, weights).
    """

    def __init__(self, layout: Layout, flat: Tensor) -> None:
        """Compose."""
        self.layout = layout
        self.weights = layout.split(flat)
        kernel = layout.first(self.weights[0])
        # Per stage what it reads: the kernel before it, or that kernel shifted to every tap.
        self._inputs = [flat.new_empty(0)]
        for stage in range(1, layout.stages):
            if layout.is_apart(stage):
                self._inputs.append(kernel)
                kernel = self._spread(kernel, stage)
                continue
            self._inputs.append(layout.windows(kernel, stage))
            weight = layout.dense(self.weights[stage], stage).flatten(2)
            kernel = layout.kernel(weight @ self._inputs[stage], stage + 1)
        self.kernel = kernel.flatten(2)

    @property
    def last_inputs(self) -> Tensor:
        """What the taps of a dense last stage see, (batch, hidden * kH * kW, in * H * W)."""
        if self.layout.stages > 1:
            return self._inputs[-1]
        channels = self.layout.channels[0]
        eye = torch.eye(channels, dtype=self.kernel.dtype, device=self.kernel.device)
        kernel = eye[:, :, None, None].expand(len(self.kernel), -1, -1, 1, 1)
        return self.layout.windows(kernel, 0)

    def pull(self, kernel: Tensor) -> Tensor:
        """Gradient (batch, weights) of ``sum(composed * kernel)`` for a given kernel."""
        layout = self.layout
        parts = []
        for stage in range(layout.stages - 1, 0, -1):
            if layout.is_apart(stage):
                slope, kernel = self._gather(layout.kernel(kernel, stage + 1), stage)
                parts.append(slope.flatten(1))
                continue
            parts.append(layout.own(kernel @ self._inputs[stage].mT, stage).flatten(1))
            weight = layout.dense(self.weights[stage], stage).flatten(2)
            kernel = layout.fold(weight.mT @ kernel, stage).flatten(2)
        (y, x), first = layout.grid.spacings[0], layout.kernel(kernel, 1)
        parts.append(layout.own(first[..., ::y, ::x].flatten(2), 0).flatten(1))
        return torch.cat(parts[::-1], 1)

    def _spread(self, kernel: Tensor, stage: int) -> Tensor:
        """Apply a stage that keeps channels apart to (batch, hidden, in, h, w)."""
        kernel = kernel.repeat_interleave(self.weights[stage].shape[1] // kernel.shape[1], 1)
        values, image, places, _ = self._sides(kernel, stage)
        result = kernel.new_zeros(*kernel.shape[:3], *self.layout.grid.spans[stage + 1])
        for i, place in enumerate(places):
            result[place].addcmul_(image, values[..., i, None, None])
        return result

    def _gather(self, outer: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """Transpose of ``_spread`` in the weight, and in the kernel (batch, hidden, in * h * w)."""
        weight, kernel = self.weights[stage], self._inputs[stage]
        copies = weight.shape[1] // kernel.shape[1]
        read = kernel.repeat_interleave(copies, 1)
        values, image, places, by_taps = self._sides(read, stage)
        of_values, of_image = [], outer.new_zeros(*outer.shape[:3], *image.shape[3:])
        for i, place in enumerate(places):
            of_values.append((outer[place] * image).sum((3, 4)))
            of_image.addcmul_(outer[place], values[..., i, None, None])
        both = torch.stack(of_values, 3), of_image.flatten(3)
        taps, pixels = both if by_taps else both[::-1]
        return taps.sum(2), pixels.unflatten(1, (-1, copies)).sum(2).flatten(2)

    def _sides(self, kernel: Tensor, stage: int) -> tuple[Tensor, Tensor, list[_Place], bool]:
        """Tell which is larger: the taps of a stage that keeps channels apart, or what it reads.

        Returns:
            The values of the smaller one, (batch, hidden, in or 1, values), the larger one with its
            rows and columns, where each value puts that in the composed kernel, and whether the
            values are the taps.
        """
        (rows, cols), (y, x) = self.layout.grid.sizes[stage], self.layout.grid.spacings[stage]
        taps = self.weights[stage].unflatten(2, (1, rows, cols))
        height, width = kernel.shape[-2:]
        if rows * cols <= height * width:
            corners = positions((rows, cols), (y, x))
            places = [(..., slice(i, i + height), slice(j, j + width)) for i, j in corners]
            return taps.flatten(3), kernel, places, True
        corners = positions((height, width), (1, 1))
        down, across = (rows - 1) * y + 1, (cols - 1) * x + 1
        places = [(..., slice(i, i + down, y), slice(j, j + across, x)) for i, j in corners]
        return kernel.flatten(3), taps, places, False
