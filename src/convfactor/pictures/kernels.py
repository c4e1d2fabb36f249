"""The strongest kernels of a layer, and how its cascade makes them, as coloured cells."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from convfactor.conv.accuracy import relative_error
from convfactor.conv.cascade import Cascade, Stage
from convfactor.conv.fitting import kernel_on_taps
from convfactor.conv.geometry import ConvGeometry, Pair
from convfactor.pictures.colours import LEVELS, level_name

MOST_PAIRS = 4
MOST_CELLS = 600  # of one kind of picture per layer, which keeps the page small
MOST_ALONE, MOST_COLUMNS = 3, 4  # stages in the only row, and in one of several
LARGEST_CELL, SMALLEST_STAGE_CELL = 14, 11
PICTURE_SIDE = 104


@dataclass(frozen=True)
class Picture:
    """A kernel as coloured cells.

    Attributes:
        title: What it is.
        note: Its scale.
        rows: Cells from top to bottom.
        cols: Cells from left to right.
        cell: Side of a cell in CSS pixels.
        runs: Per colour the path through all cells that have it; the others are zero.
    """

    title: str
    note: str
    rows: int
    cols: int
    cell: float
    runs: tuple[tuple[str, str], ...]

    @classmethod
    def draw(cls, title: str, note: str, kernel: Tensor, scale: float, cell: float) -> Picture:
        """Colour the cells of a kernel.

        Args:
            title: What it is.
            note: Its scale.
            kernel: (rows, cols).
            scale: Magnitude that gets the strongest colour.
            cell: Side of a cell in CSS pixels.
        """
        paths: dict[str, str] = {}
        levels = (kernel / (scale or 1.0) * LEVELS).round().clamp(-LEVELS, LEVELS).int().tolist()
        for y, line in enumerate(levels):
            x = 0
            for level, same in itertools.groupby(line):
                length = len(list(same))
                if level:
                    name = level_name(level)
                    paths[name] = paths.get(name, "") + f"M{x} {y}.5h{length}"
                x += length
        rows, cols = kernel.shape
        return cls(title, note, rows, cols, cell, tuple(paths.items()))


@dataclass(frozen=True)
class Channels:
    """The kernel from one input channel to one output channel, and how the cascade makes it.

    Attributes:
        source: The input channel.
        target: The output channel.
        hidden: The hidden channels on the strongest way between them.
        ways: How many ways there are.
        stages: The stages' kernels on the strongest way.
        composed: What the cascade makes of all ways.
        original: What it stands in for; None where the model was not given.
        error: Their difference.
    """

    source: int
    target: int
    hidden: tuple[int, ...]
    ways: int
    stages: list[Picture]
    composed: Picture
    original: Picture | None
    error: Picture | None

    @property
    def columns(self) -> int:
        """Stages in a row: all of up to three, or as many in each row."""
        count = len(self.stages)
        return even_columns(count, MOST_COLUMNS if count > 2 * MOST_ALONE else MOST_ALONE)


def even_columns(count: int, most: int) -> int:
    """How many of so many pictures stand in a row, so that all rows are about as long.

    Args:
        count: Pictures.
        most: That fit in a row.
    """
    return math.ceil(count / math.ceil(count / most)) if count else 1


def strongest(
    cascade: Cascade, geometry: ConvGeometry, original: Tensor | None, most: int = MOST_PAIRS
) -> list[Channels]:
    """The channel pairs with the largest kernels, of the original where it is known.

    Args:
        cascade: The cascade, in input pixels.
        geometry: The convolution.
        original: Its kernel, (C_out, C_in/groups, kH, kW), or None.
        most: Pairs; of large kernels fewer.
    """
    stages = [replace(s, weight=s.weight.detach().cpu().double()) for s in cascade.stages]
    cascade = replace(cascade, stages=tuple(stages))
    (dy, dx), (y, x) = geometry.dilation, cascade.offset
    composed = cascade.compose()[..., ::dy, ::dx]  # the taps alone, without the gaps
    kernels = [_Kernels(composed, cascade.structure.groups, (y // dy, x // dx))]
    if original is not None:
        kernels.append(_Kernels(original.detach().cpu().double(), geometry.groups, (0, 0)))
    kernels = _on_one_window(kernels)
    rows, cols = kernels[0].weight.shape[2:]
    cell = min(LARGEST_CELL, PICTURE_SIDE / max(rows, cols))
    links = [_links(stage) for stage in cascade.stages]
    found = []
    for source, target in kernels[-1].strongest(min(most, 1 + MOST_CELLS // (rows * cols))):
        pair = [kernel.between(source, target) for kernel in kernels]
        scale = max(float(kernel.abs().max()) for kernel in pair)
        note = f"±{scale:.2g}"
        ways, channels = _strongest_way(links, source, target)
        found.append(
            Channels(
                source,
                target,
                tuple(channels[1:-1]),
                ways,
                _stages(cascade, channels, max(cell, SMALLEST_STAGE_CELL)) if ways else [],
                Picture.draw("composed", note, pair[0], scale, cell),
                None if original is None else Picture.draw("original", note, pair[1], scale, cell),
                None if original is None else _error(pair[0] - pair[1], scale, cell),
            )
        )
    return found


def weight_error(cascade: Cascade, geometry: ConvGeometry, original: Tensor) -> float:
    """Relative error of the composed kernel, over all channels, as for white noise.

    Args:
        cascade: The cascade, in input pixels.
        geometry: The convolution.
        original: Its kernel, (C_out, C_in/groups, kH, kW).
    """
    weight, made = original.detach().cpu().double(), cascade.compose().cpu()
    on_taps = kernel_on_taps(cascade, geometry).cpu()
    beyond = made.square().sum() - on_taps.square().sum()
    wrong = (on_taps - weight).square().sum() + beyond.clamp(min=0)
    return relative_error(float(wrong), float(weight.square().sum()))


@dataclass(frozen=True, eq=False)
class _Kernels:
    """The kernels of a convolution, (C_out, C_in/groups, kH, kW), and where their corner is."""

    weight: Tensor
    groups: int
    corner: Pair

    def between(self, source: int, target: int) -> Tensor:
        """The kernel between two channels, zero where the groups part them."""
        out_channels, in_channels = self.weight.shape[:2]
        index = source - target // (out_channels // self.groups) * in_channels
        if 0 <= index < in_channels:
            return self.weight[target, index]
        return torch.zeros_like(self.weight[0, 0])

    def strongest(self, count: int) -> list[Pair]:
        """The (source, target) channels with the largest kernels."""
        out_channels, in_channels = self.weight.shape[:2]
        norms = self.weight.flatten(2).norm(dim=2).flatten()
        chosen = norms.argsort(descending=True, stable=True)[:count].tolist()
        pairs = []
        for target, index in (divmod(i, in_channels) for i in chosen):
            pairs.append((target // (out_channels // self.groups) * in_channels + index, target))
        return pairs


def _on_one_window(kernels: Sequence[_Kernels]) -> list[_Kernels]:
    """Extend kernels with zeros to the smallest window that holds them all."""
    corners = [kernel.corner for kernel in kernels]
    ends = [
        (y + kernel.weight.shape[2], x + kernel.weight.shape[3])
        for kernel, (y, x) in zip(kernels, corners, strict=True)
    ]
    top, left = (min(sides) for sides in zip(*corners, strict=True))
    bottom, right = (max(sides) for sides in zip(*ends, strict=True))
    moved = []
    for kernel, (y, x), (y_end, x_end) in zip(kernels, corners, ends, strict=True):
        weight = F.pad(kernel.weight, (x - left, right - x_end, y - top, bottom - y_end))
        moved.append(_Kernels(weight, kernel.groups, (top, left)))
    return moved


def _links(stage: Stage) -> Tensor:
    """Norms of a stage's kernels, (C_out, C_in), zero between groups."""
    norms = stage.weight.flatten(2).norm(dim=2)
    links: Tensor = torch.block_diag(*norms.chunk(stage.groups))
    return links


def _strongest_way(links: Sequence[Tensor], source: int, target: int) -> tuple[int, list[int]]:
    """How many ways lead from a channel to another, and the channels of the strongest one."""
    ways = torch.zeros(links[0].shape[1], dtype=torch.float64)
    ways[source] = 1
    strength = ways
    origins = []
    for link in links:
        ways = (link > 0).double() @ ways
        strength, origin = (link * strength).max(dim=1)
        origins.append(origin)
    channels = [target]
    for origin in reversed(origins):
        channels.append(int(origin[channels[-1]]))
    return int(ways[target]), channels[::-1]


def _stages(cascade: Cascade, channels: Sequence[int], cell: float) -> list[Picture]:
    """The stages' kernels along a way."""
    pictures = []
    pairs = zip(cascade.stages, itertools.pairwise(channels), strict=True)
    for i, (stage, (source, target)) in enumerate(pairs):
        kernel = _Kernels(stage.weight, stage.groups, (0, 0)).between(source, target)
        scale = float(kernel.abs().max())
        pictures.append(Picture.draw(f"stage {i + 1}", f"±{scale:.2g}", kernel, scale, cell))
    return pictures


def magnification(error: float, scale: float) -> float:
    """How often an error is enlarged so that it can be seen.

    Args:
        error: Its largest magnitude.
        scale: The magnitude that gets the strongest colour.

    Returns:
        The largest of 1, 2 and 5 times a power of ten with which it stays within the scale; 1
        where there is no error.
    """
    ratio = scale / error if error > 0 else math.inf
    if not (0 < ratio < math.inf):
        return 1.0
    power = 10.0 ** math.floor(math.log10(ratio))
    return next(step * power for step in (5, 2, 1, 0.5) if step * power <= ratio)


def magnified(factor: float) -> str:
    """Title of an error that is enlarged."""
    return "error" if factor == 1 else f"error x{factor:g}"


def _error(error: Tensor, scale: float, cell: float) -> Picture:
    """Draw an error, magnified so that it can be seen."""
    largest = float(error.abs().max())
    if largest == 0:
        return Picture.draw("error", "none", error, scale, cell)
    factor = magnification(largest, scale)
    return Picture.draw(magnified(factor), f"up to {largest:.2g}", error * factor, scale, cell)
