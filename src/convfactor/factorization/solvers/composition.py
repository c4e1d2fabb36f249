"""The composed kernel of a batch of cascades as a function of their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from convfactor.conv.geometry import Pair
from convfactor.conv.grid import Grid, positions
from convfactor.conv.structure import Structure


@dataclass(frozen=True)
class Layout:
    """Where the weights of one group of a cascade stand in a flat vector.

    Attributes:
        channels: Channels before, between and after the stages.
        grid: Where the stages' taps lie.
    """

    channels: tuple[int, ...]
    grid: Grid

    @classmethod
    def of(cls, structure: Structure) -> Layout:
        """Describe one group of a structure."""
        stages, groups = structure.stages, structure.groups
        channels = (stages[0].in_channels, *(stage.out_channels for stage in stages))
        return cls(tuple(count // groups for count in channels), structure.grid)

    @cached_property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.grid.sizes)

    @cached_property
    def shapes(self) -> tuple[Pair, ...]:
        """Per stage (out, in * kH * kW), the weight as a matrix."""
        return tuple(
            (after, before * math.prod(size))
            for before, after, size in zip(
                self.channels, self.channels[1:], self.grid.sizes, strict=False
            )
        )

    @cached_property
    def counts(self) -> list[int]:
        """Number of weights per stage."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def transposed(self) -> Layout:
        """Layout of the transposed kernel's cascade: every stage transposed, the last one first."""
        return Layout(self.channels[::-1], self.grid.reversed)

    def transpose(self, flat: Tensor) -> Tensor:
        """Turn (batch, weights) into those of the transposed cascade."""
        parts = []
        for stage, weight in enumerate(self.split(flat)):
            taps = weight.unflatten(2, (self.channels[stage], -1)).transpose(1, 2)
            parts.append(taps.flatten(1))
        return torch.cat(parts[::-1], 1)

    def split(self, flat: Tensor) -> list[Tensor]:
        """View (batch, weights) as one (batch, out, in * kH * kW) per stage."""
        parts = flat.split(self.counts, dim=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def kernel(self, matrix: Tensor, stage: int) -> Tensor:
        """View (batch, out, in * H * W) after ``stage`` stages with its taps apart."""
        apart: Tensor = matrix.unflatten(2, (self.channels[0], *self.grid.spans[stage]))
        return apart

    def first(self, weight: Tensor) -> Tensor:
        """Kernel (batch, out, in, H, W) of the first stage alone."""
        taps: Tensor = weight.unflatten(2, (self.channels[0], *self.grid.sizes[0]))
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

    Args:
        layout: The cascades' common layout.
        flat: Float64 (batch, weights).
    """

    def __init__(self, layout: Layout, flat: Tensor) -> None:
        """Compose."""
        self.layout = layout
        self.weights = layout.split(flat)
        kernel = layout.first(self.weights[0])
        self._windows = [flat.new_empty(0)]
        for stage in range(1, layout.stages):
            self._windows.append(layout.windows(kernel, stage))
            kernel = layout.kernel(self.weights[stage] @ self._windows[stage], stage + 1)
        self.kernel = kernel.flatten(2)

    @property
    def last_inputs(self) -> Tensor:
        """What the taps of the last stage see, (batch, hidden * kH * kW, in * H * W)."""
        if self.layout.stages > 1:
            return self._windows[-1]
        channels = self.layout.channels[0]
        eye = torch.eye(channels, dtype=self.kernel.dtype, device=self.kernel.device)
        kernel = eye[:, :, None, None].expand(len(self.kernel), -1, -1, 1, 1)
        return self.layout.windows(kernel, 0)

    def pull(self, kernel: Tensor) -> Tensor:
        """Gradient (batch, weights) of ``sum(composed * kernel)`` for a given kernel."""
        layout = self.layout
        parts = []
        for stage in range(layout.stages - 1, 0, -1):
            parts.append((kernel @ self._windows[stage].mT).flatten(1))
            kernel = layout.fold(self.weights[stage].mT @ kernel, stage).flatten(2)
        (y, x), first = layout.grid.spacings[0], layout.kernel(kernel, 1)
        parts.append(first[..., ::y, ::x].flatten(1))
        return torch.cat(parts[::-1], 1)
