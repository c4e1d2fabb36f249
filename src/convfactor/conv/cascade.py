"""Cascades of small convolutions and their algebra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from convfactor.conv.geometry import Pair, pair


@dataclass(frozen=True)
class StageShape:
    """One convolution of a cascade without its weight.

    One int for ``kernel_size``, ``stride`` or ``dilation`` stands for both sides.

    Attributes:
        in_channels: Channels read.
        out_channels: Channels written.
        kernel_size: Taps (vertical, horizontal).
        stride: Step in pixels of the stage's own input.
        dilation: Tap distance in pixels of the stage's own input.
        groups: Number of groups.
    """

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        """Read one int as the same for both sides."""
        for name in ("kernel_size", "stride", "dilation"):
            object.__setattr__(self, name, pair(getattr(self, name), name))

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Shape of the stage's weight as torch stores it."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)


@dataclass(frozen=True)
class Structure:
    """What a cascade looks like, without weights: hashable, and enough to cost and to time it.

    Attributes:
        stages: The stages, first applied first.
        offset: (row, col) of the equivalent kernel's corner relative to the original's.
    """

    stages: tuple[StageShape, ...]
    offset: Pair = (0, 0)

    def __post_init__(self) -> None:
        """Check that the stages fit together."""
        if not self.stages:
            raise ValueError("stages must hold at least one stage")
        for i, (first, second) in enumerate(zip(self.stages, self.stages[1:], strict=False)):
            if first.out_channels != second.in_channels:
                raise ValueError(
                    f"stage {i} writes {first.out_channels} channels, "
                    f"but stage {i + 1} reads {second.in_channels}"
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Hidden channel counts between the stages."""
        return tuple(stage.out_channels for stage in self.stages[:-1])

    @property
    def groups(self) -> int:
        """Number of independent groups of the whole cascade."""
        return math.gcd(*(stage.groups for stage in self.stages))

    @property
    def is_chain(self) -> bool:
        """Whether every stage keeps its channels apart, one chain of kernels for each."""
        return all(stage.groups == stage.in_channels for stage in self.stages)

    @property
    def steps(self) -> tuple[Pair, ...]:
        """Per stage, the distance of its input's pixels in pixels of the cascade's input."""
        steps = [(1, 1)]
        for stage in self.stages:
            steps.append((steps[-1][0] * stage.stride[0], steps[-1][1] * stage.stride[1]))
        return tuple(steps[:-1])

    @property
    def stride(self) -> Pair:
        """Stride of the whole cascade."""
        return (
            math.prod(stage.stride[0] for stage in self.stages),
            math.prod(stage.stride[1] for stage in self.stages),
        )

    @property
    def span(self) -> Pair:
        """Side lengths of the equivalent kernel: ``1 + sum (k_i - 1) d_i prod_{j<i} s_j``."""
        reach = [
            ((s.kernel_size[0] - 1) * s.dilation[0] * y, (s.kernel_size[1] - 1) * s.dilation[1] * x)
            for s, (y, x) in zip(self.stages, self.steps, strict=True)
        ]
        return 1 + sum(y for y, _ in reach), 1 + sum(x for _, x in reach)

    @property
    def macs(self) -> int:
        """Multiplies per output pixel: a stage before a stride runs on a denser grid."""
        density, total = 1, 0
        for stage in reversed(self.stages):
            total += math.prod(stage.weight_shape) * density
            density *= math.prod(stage.stride)
        return total

    def dilated(self, dilation: Pair) -> Structure:
        """Spread the taps, as the cascade of a convolution with that dilation."""
        (dy, dx) = dilation
        return Structure(
            tuple(
                replace(s, dilation=(s.dilation[0] * dy, s.dilation[1] * dx)) for s in self.stages
            ),
            (self.offset[0] * dy, self.offset[1] * dx),
        )

    def cascade(self, weights: Sequence[Tensor]) -> Cascade:
        """Fill in the weights.

        Args:
            weights: One per stage, of the stage's ``weight_shape`` (or reshapable to it).
        """
        return Cascade(
            tuple(
                Stage(weight.reshape(s.weight_shape), s.stride, s.dilation, s.groups)
                for weight, s in zip(weights, self.stages, strict=True)
            ),
            self.offset,
        )

    def random(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Cascade:
        """Draw a cascade of this structure whose stages keep the power of white noise."""
        generator = torch.Generator().manual_seed(seed)
        weights = []
        for stage in self.stages:
            shape = stage.weight_shape
            weight = torch.randn(shape, generator=generator, dtype=torch.float64)
            weights.append((weight / math.sqrt(math.prod(shape[1:]))).to(dtype))
        return self.cascade(weights)

    def __str__(self) -> str:
        """Name the structure for a table, for instance ``3x3 3x3 (24)``."""
        parts = []
        for stage in self.stages:
            text = "x".join(map(str, stage.kernel_size))
            if stage.stride != (1, 1):
                text += "/" + "x".join(map(str, dict.fromkeys(stage.stride)))
            if stage.dilation != (1, 1):
                text += "@" + "x".join(map(str, dict.fromkeys(stage.dilation)))
            parts.append(text)
        widths = f" ({', '.join(map(str, self.widths))})" if self.widths else ""
        return " ".join(parts) + widths


@dataclass(frozen=True, eq=False)
class Stage:
    """One convolution of a cascade.

    Attributes:
        weight: (C_out, C_in/groups, kH, kW), correlated with the input as torch does.
        stride: Step in pixels of the stage's own input.
        dilation: Tap distance in pixels of the stage's own input.
        groups: Number of groups.
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
        groups = self.structure.groups
        in_per_group = self.stages[0].weight.shape[1] * self.stages[0].groups // groups
        first = self.stages[0].weight
        eye = torch.eye(in_per_group, dtype=torch.float64, device=first.device)
        kernel = eye.expand(groups, -1, -1)[..., None, None]
        for stage, (y, x) in zip(self.stages, self.structure.steps, strict=True):
            spacing = (stage.dilation[0] * y, stage.dilation[1] * x)
            kernel = convolve(kernel, _blocks(stage, groups), spacing)
        return kernel.flatten(0, 1)

    def dilated(self, dilation: Pair) -> Cascade:
        """Spread the taps, as the cascade of a convolution with that dilation."""
        return self.structure.dilated(dilation).cascade([s.weight for s in self.stages])

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
        groups = self.structure.groups
        stages = list(self.stages)
        in_per_group = stages[0].weight.shape[1] * stages[0].groups // groups
        eye = torch.eye(in_per_group, dtype=torch.float64, device=stages[0].weight.device)
        kernel = eye.expand(groups, -1, -1)[..., None, None]
        for i, (y, x) in enumerate(self.structure.steps[:-1]):
            stage, after = stages[i], stages[i + 1]
            spacing = (stage.dilation[0] * y, stage.dilation[1] * x)
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


def _blocks(stage: Stage, groups: int) -> Tensor:
    """Expand a stage to one dense block per group of the cascade, (groups, out, in, kH, kW)."""
    inner = stage.groups // groups
    weight = stage.weight.to(torch.float64)
    out_channels, in_channels, height, width = weight.shape
    weight = weight.view(groups, inner, out_channels // stage.groups, in_channels, height, width)
    eye = torch.eye(inner, dtype=torch.float64, device=weight.device)
    blocks = torch.einsum("groiyx,rs->grosiyx", weight, eye)
    return blocks.reshape(groups, out_channels // groups, inner * in_channels, height, width)


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
