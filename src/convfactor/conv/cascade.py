"""Cascades of small convolutions and their algebra."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from convfactor.conv.blocks import block_diagonal
from convfactor.conv.geometry import Pair
from convfactor.conv.structure import StageShape, Structure


@dataclass(frozen=True, eq=False)
class Stage:
    """One convolution of a cascade.

    Attributes:
        weight: (C_out, C_in/groups, kH, kW), correlated with the input as torch does.
        stride: Step in pixels of the stage's own input.
        dilation: Tap distance in pixels of the stage's own input.
        groups: Number of groups.

    Example:
        >>> import torch
        >>> from convfactor import Stage
        >>> Stage(torch.ones(4, 2, 3, 3), groups=2).shape.in_channels
        4
    """

    weight: Tensor
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def shape(self) -> StageShape:
        """The stage without its weight."""
        out_channels, in_per_group, height, width = self.weight.shape
        return StageShape(
            in_per_group * self.groups,
            out_channels,
            (height, width),
            self.stride,
            self.dilation,
            self.groups,
        )


@dataclass(frozen=True, eq=False)
class Cascade:
    """Convolutions applied one after the other, unpadded.

    Attributes:
        stages: The stages, first applied first.
        offset: (row, col) of the equivalent kernel's corner relative to the original's.

    Example:
        >>> import torch
        >>> from convfactor import Cascade, Stage
        >>> box = Stage(torch.ones(1, 1, 3, 3))
        >>> Cascade((box, box)).compose()[0, 0, 2].tolist()
        [3.0, 6.0, 9.0, 6.0, 3.0]
    """

    stages: tuple[Stage, ...]
    offset: Pair = (0, 0)

    def __post_init__(self) -> None:
        """Check that the stages fit together."""
        _ = self.structure

    def __repr__(self) -> str:
        """Name the structure, the dtype and the cost, without the weights."""
        dtype = str(self.stages[0].weight.dtype).removeprefix("torch.")
        return f"Cascade({self.structure}, {dtype}, {self.structure.macs} multiplies)"

    @classmethod
    def of(cls, structure: Structure, weights: Iterable[Tensor]) -> Cascade:
        """Fill weights into a structure.

        Args:
            structure: What the cascade looks like.
            weights: One per stage, of the stage's ``weight_shape`` (or reshapable to it).
        """
        return cls(
            tuple(
                Stage(weight.reshape(s.weight_shape), s.stride, s.dilation, s.groups)
                for weight, s in zip(weights, structure.stages, strict=True)
            ),
            structure.offset,
        )

    @classmethod
    def random(
        cls, structure: Structure, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> Cascade:
        """Draw a cascade of a structure whose stages keep the power of white noise."""
        generator = torch.Generator().manual_seed(seed)
        weights = []
        for stage in structure.stages:
            shape = stage.weight_shape
            weight = torch.randn(shape, generator=generator, dtype=torch.float64)
            weights.append((weight / math.sqrt(math.prod(shape[1:]))).to(dtype))
        return cls.of(structure, weights)

    @property
    def structure(self) -> Structure:
        """The cascade without its weights."""
        return Structure(tuple(stage.shape for stage in self.stages), self.offset)

    def compose(self) -> Tensor:
        """Compute the equivalent kernel.

        Returns:
            Float64 (C_out, C_in/groups, spanH, spanW), its taps at input pixels; applied with the
            cascade's stride it gives the cascade's output.
        """
        groups, kernel = self.structure.groups, self._input()
        for stage, spacing in zip(self.stages, self.structure.grid.spacings, strict=True):
            kernel = convolve(kernel, _blocks(stage, groups), spacing)
        return kernel.flatten(0, 1)

    def dilated(self, dilation: Pair) -> Cascade:
        """Spread the taps, as the cascade of a convolution with that dilation."""
        return Cascade.of(self.structure.dilated(dilation), [s.weight for s in self.stages])

    def noise_gain(self) -> float:
        """Amplification of rounding in the intermediates.

        Every intermediate is taken to be rounded once, relative to its own power under white
        noise; what that adds to the output is given relative to one rounding of the output. Times
        the epsilon of a dtype it is the relative error to expect from running in it.
        """
        power = float(self.compose().square().sum())
        noise = 0.0
        for cut in range(1, len(self.stages)):
            before = replace(self, stages=self.stages[:cut]).compose()
            after = replace(self, stages=self.stages[cut:]).compose()
            variance = before.flatten(1).square().sum(1)
            groups = math.gcd(*(stage.groups for stage in self.stages[cut:]))
            gain = after.square().sum((2, 3)).unflatten(0, (groups, -1)).sum(1).flatten()
            noise += float(variance @ gain)
        return math.sqrt(noise / power) if power > 0 else 0.0

    def to(self, dtype: torch.dtype) -> Cascade:
        """Round the weights to a dtype."""
        return replace(
            self, stages=tuple(replace(s, weight=s.weight.to(dtype)) for s in self.stages)
        )

    def balanced(self) -> Cascade:
        """Scale hidden channels so that white noise keeps unit power in every one of them.

        The composed kernel stays the same; a hidden channel that is always zero stays zero.
        """
        groups, kernel = self.structure.groups, self._input()
        stages = list(self.stages)
        for i, spacing in enumerate(self.structure.grid.spacings[:-1]):
            stage, after = stages[i], stages[i + 1]
            kernel = convolve(kernel, _blocks(stage, groups), spacing)
            power = kernel.flatten(2).norm(dim=2)
            power = torch.where(power > 0, power, torch.ones_like(power))
            kernel = kernel / power[..., None, None, None]
            gain = power.flatten().to(stage.weight.dtype)
            stages[i] = replace(stage, weight=stage.weight / gain[:, None, None, None])
            out_channels, in_channels = after.weight.shape[:2]
            weight = after.weight.unflatten(0, (after.groups, out_channels // after.groups))
            weight = weight * gain.view(after.groups, 1, in_channels, 1, 1)
            stages[i + 1] = replace(after, weight=weight.flatten(0, 1))
        return replace(self, stages=tuple(stages))

    def _input(self) -> Tensor:
        """Kernel that passes a group's channels on, float64 (groups, in, in, 1, 1)."""
        first, groups = self.stages[0], self.structure.groups
        count = first.weight.shape[1] * first.groups // groups
        eye = torch.eye(count, dtype=torch.float64, device=first.weight.device)
        return eye.expand(groups, -1, -1)[..., None, None]


class Factorized(Protocol):
    """What a factorization hands to a layer."""

    @property
    def cascade(self) -> Cascade:
        """The cascade that replaces the kernel."""

    @property
    def bias_shift(self) -> Tensor:
        """Change of the bias, (C_out,)."""


def _blocks(stage: Stage, groups: int) -> Tensor:
    """Expand a stage to one dense block per group of the cascade, (groups, out, in, kH, kW)."""
    inner = stage.groups // groups
    weight = stage.weight.to(torch.float64)
    out_channels, in_channels, height, width = weight.shape
    weight = weight.view(groups, inner, out_channels // stage.groups, in_channels, height, width)
    return block_diagonal(weight)


def convolve(first: Tensor, second: Tensor, spacing: Pair = (1, 1)) -> Tensor:
    """Compose two stages: the kernel of ``second`` applied after ``first``.

    Args:
        first: (..., hidden, in, h1, w1).
        second: (..., out, hidden, h2, w2).
        spacing: Distance of the taps of ``second`` on the grid of ``first``.

    Returns:
        (..., out, in, h1 + (h2 - 1) * spacing[0], w1 + (w2 - 1) * spacing[1]).
    """
    height, width = first.shape[-2:]
    rows, cols = second.shape[-2:]
    shape = (
        *second.shape[:-3],
        first.shape[-3],
        height + (rows - 1) * spacing[0],
        width + (cols - 1) * spacing[1],
    )
    result = torch.zeros(shape, dtype=first.dtype, device=first.device)
    flat = first.flatten(-3)
    for row in range(rows):
        for col in range(cols):
            y, x = row * spacing[0], col * spacing[1]
            tap = (second[..., row, col] @ flat).unflatten(-1, first.shape[-3:])
            result[..., y : y + height, x : x + width] += tap
    return result
