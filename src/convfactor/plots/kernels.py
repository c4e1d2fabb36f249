"""The picture of a kernel and of its cascade, tap by tap."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from convfactor.conv.geometry import Pair
from convfactor.pictures.kernels import even_columns, magnification, magnified
from convfactor.plots.comparison import (
    Array,
    Comparison,
    Kernel,
    Source,
    as_array,
    largest_magnitude,
)
from convfactor.plots.style import SIGNED, styled

PANELS_PER_ROW = 6


@styled
def plot_kernels(
    target: Kernel,
    cascade: Source,
    *,
    channel: Pair | None = None,
    dilation: int | Pair | None = None,
    error_scale: float | None = None,
    title: str | None = None,
) -> Figure:
    """Show a kernel, the stages of its cascade, what they compose to, and the scaled error.

    Target, composed kernel and error share one colour scale; every stage has its own, as a factor
    can be moved from one stage to another. Of a weight with several channels one pair is shown:
    the first stage's kernels that read its input, all those between, and the last stage's kernels
    that write its output.

    Args:
        target: (kH, kW) or (C_out, C_in/groups, kH, kW).
        cascade: Its cascade; the factorization, or the entry of a plan, that holds it.
        channel: (output, input within its group) to show; None for the pair of most energy.
        dilation: Dilation of the convolution, whose cascade has it in its stages; None for that of
            the factorization or of the planned layer, and 1 for a cascade alone.
        error_scale: Factor by which the error is enlarged, > 0; None for the largest of 1, 2 and 5
            times a power of ten with which it stays within the colours. The title names it.
        title: Of the figure; None for the pair and the error over all channels: that of the output,
            where it was calibrated, before that of the weights.

    Raises:
        TypeError: An argument is of another type.
        ValueError: The shapes do not fit together, an argument is out of range, or the entry of a
            plan has no cascade.

    Example:
        >>> import torch
        >>> from convfactor import factorize, plots
        >>> kernel = torch.ones(7, 7)
        >>> figure = plots.plot_kernels(kernel, factorize(kernel, stages=2))
        >>> [axis.get_title() for axis in figure.axes][:1]
        ['original']
    """
    if error_scale is not None and not (error_scale > 0 and math.isfinite(error_scale)):
        raise ValueError(f"error_scale must be a positive number, got {error_scale!r}")
    shown = Comparison.read(target, cascade, channel, dilation)
    stages = _stage_kernels(shown)
    count = len(stages) + 3
    cols = even_columns(count, PANELS_PER_ROW)
    rows = math.ceil(count / cols)
    figure = Figure(figsize=(1.75 * cols + 0.9, 2.2 * rows + 0.45), layout="constrained")
    axes = figure.subplots(rows, cols, squeeze=False).ravel().tolist()
    for axis in axes:
        axis.set_axis_off()
    first, *between, last_but_one, last = axes[:count]
    limit = largest_magnitude(shown.target, shown.composed)
    error = shown.composed - shown.target
    if error_scale is None:
        error_scale = magnification(float(np.abs(error).max()), limit)
    for axis, name, values in (
        (first, "original", shown.target),
        (last_but_one, "composed", shown.composed),
        (last, magnified(error_scale), error_scale * error),
    ):
        image = axis.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit)
        axis.set_title(name)
    figure.colorbar(image, ax=axes, shrink=0.8, aspect=25, pad=0.01)
    for i, (axis, kernels) in enumerate(zip(between, stages, strict=True)):
        _draw_stage(axis, kernels, f"stage {i + 1}")
    figure.suptitle(str(shown) if title is None else title)
    return figure


def _stage_kernels(shown: Comparison) -> list[Array]:
    """Per stage (count, kH, kW): the kernels on the way from the pair's input to its output."""
    stages, groups = shown.cascade.stages, shown.cascade.structure.groups
    (output, into), (outputs, inputs) = shown.channel, shown.channels
    group = output * groups // outputs
    found = []
    for i, stage in enumerate(stages):
        weight = as_array(stage.weight)
        out_channels, per_group = weight.shape[:2]
        written = np.arange(out_channels // groups) + group * (out_channels // groups)
        if i == len(stages) - 1:
            written = np.array([output])
        kernels = weight[written]
        if i == 0:
            read = group * inputs + into
            reads = written * stage.groups // out_channels == read // per_group
            kernels = kernels[reads][:, [read % per_group]]
        found.append(kernels.reshape(-1, *weight.shape[2:]))
    return found


def _draw_stage(axis: Axes, kernels: Array, name: str) -> None:
    """One kernel with its taps in figures, or the mosaic of several."""
    count, height, width = kernels.shape
    limit = largest_magnitude(kernels)
    values = _mosaic(kernels)
    axis.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit)
    if count == 1 and height <= 3 and width <= 3:
        for (row, col), tap in np.ndenumerate(values):
            color = "white" if abs(tap) > 0.7 * limit else "black"
            axis.text(
                col, row, _short(float(tap)), ha="center", va="center", color=color, fontsize=7
            )
    many = "" if count == 1 else f"{count} of "
    axis.set_title(f"{name}\n{many}{height}x{width}, ±{limit:.3g}")


def _mosaic(kernels: Array) -> Array:
    """Kernels in rows, as square as their number allows, with a line of NaN between them."""
    count, height, width = kernels.shape
    cols = math.ceil(math.sqrt(count))
    rows = math.ceil(count / cols)
    grid = np.full((rows * (height + 1) - 1, cols * (width + 1) - 1), np.nan)
    for i, kernel in enumerate(kernels):
        top, left = i // cols * (height + 1), i % cols * (width + 1)
        grid[top : top + height, left : left + width] = kernel
    return grid


def _short(value: float) -> str:
    """Two figures, or three before the point."""
    return f"{value:.3g}" if abs(value) >= 100 else f"{value:.2g}"
