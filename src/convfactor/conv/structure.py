"""What a cascade looks like, without weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from convfactor.conv.geometry import Pair, pair
from convfactor.conv.grid import Grid


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

    Example:
        >>> from convfactor import StageShape
        >>> StageShape(3, 8, 3).weight_shape
        (8, 3, 3, 3)
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

    Example:
        >>> from convfactor import StageShape, Structure
        >>> structure = Structure((StageShape(3, 8, 3), StageShape(8, 16, 3)))
        >>> print(structure, structure.span, structure.macs)
        3x3 3x3 (8) (5, 5) 1368
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
    def grid(self) -> Grid:
        """The stages' taps on the pixels of the cascade's input."""
        return Grid(
            tuple(stage.kernel_size for stage in self.stages),
            tuple(
                (stage.dilation[0] * y, stage.dilation[1] * x)
                for stage, (y, x) in zip(self.stages, self.steps, strict=True)
            ),
        )

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
        return self.grid.span

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

    def __str__(self) -> str:
        """Name the structure for a table, for instance ``3x3 3x3 (24)``.

        Depthwise stages between others that mix channels are marked: ``1x1 dw5x5 1x1 (24, 24)``.
        """
        parts, groups = [], self.groups
        mixes = groups < self.stages[0].in_channels
        for stage in self.stages:
            text = "x".join(map(str, stage.kernel_size))
            if mixes and stage.groups == stage.in_channels > groups:
                text = f"dw{text}"
            if stage.stride != (1, 1):
                text += "/" + "x".join(map(str, dict.fromkeys(stage.stride)))
            if stage.dilation != (1, 1):
                text += "@" + "x".join(map(str, dict.fromkeys(stage.dilation)))
            parts.append(text)
        widths = f" ({', '.join(map(str, self.widths))})" if self.widths else ""
        return " ".join(parts) + widths
