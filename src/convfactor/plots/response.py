"""The picture of a kernel and of its cascade, frequency by frequency."""

from __future__ import annotations

from typing import Literal

import numpy as np
from matplotlib.figure import Figure

from convfactor.conv.geometry import Pair
from convfactor.plots.comparison import Array, Comparison, Kernel, Source, largest_magnitude
from convfactor.plots.style import MAGNITUDE, styled

DECIBELS = 80.0


@styled
def plot_response(
    target: Kernel,
    cascade: Source,
    *,
    channel: Pair | None = None,
    dilation: int | Pair | None = None,
    size: int = 64,
    scale: Literal["log", "linear"] = "log",
    title: str | None = None,
) -> Figure:
    """Show the frequency magnitude of a kernel, of its cascade, and of their difference.

    Args:
        target: (kH, kW) or (C_out, C_in/groups, kH, kW).
        cascade: Its cascade; the factorization, or the entry of a plan, that holds it.
        channel: (output, input within its group) to show; None for the pair of most energy.
        dilation: Dilation of the convolution, whose cascade has it in its stages; None for that of
            the factorization or of the planned layer, and 1 for a cascade alone.
        size: Frequencies per axis; the kernels are extended with zeros to it.
        scale: "log" shows decibels below the target's largest magnitude, all on one scale;
            "linear" shows magnitudes, the difference on a scale of its own.
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
        >>> figure = plots.plot_response(kernel, factorize(kernel, stages=2))
        >>> [axis.get_title() for axis in figure.axes][:3]
        ['original', 'cascade', 'difference']
    """
    if scale not in ("log", "linear"):
        raise ValueError(f"scale must be 'log' or 'linear', got {scale!r}")
    shown = Comparison.read(target, cascade, channel, dilation)
    least = max(shown.target.shape)
    if size < least:
        raise ValueError(f"size must be at least the {least} taps of the kernels, got {size}")
    kernels = (shown.target, shown.composed, shown.composed - shown.target)
    panels = np.stack([_magnitudes(kernel, size) for kernel in kernels])
    if scale == "log":
        panels = _decibels(panels)
        scales, label = [(slice(3), -DECIBELS, max(0.0, float(panels.max())))], "dB"
    else:
        halves = slice(2), slice(2, 3)
        scales = [(half, 0.0, largest_magnitude(panels[half])) for half in halves]
        label = "magnitude"
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    start = -(size // 2 + 0.5) / size  # pixels are centred on their frequencies
    extent = (start, start + 1, start + 1, start)
    for part, low, high in scales:
        for axis, values in zip(axes[part], panels[part], strict=True):
            image = axis.imshow(values, cmap=MAGNITUDE, vmin=low, vmax=high, extent=extent)
        figure.colorbar(image, ax=list(axes[part]), shrink=0.85, label=label)
    for axis, name in zip(axes, ("original", "cascade", "difference"), strict=True):
        axis.set_xticks([-0.5, 0, 0.5])
        axis.set_yticks([-0.5, 0, 0.5])
        axis.set_title(name)
    axes[0].set_ylabel("vertical (cycles per pixel)")
    axes[1].set_xlabel("horizontal (cycles per pixel)")
    figure.suptitle(str(shown) if title is None else title)
    return figure


def _magnitudes(kernel: Array, size: int) -> Array:
    """Magnitudes (size, size) of a kernel's response, the lowest frequency in the middle."""
    return np.abs(np.fft.fftshift(np.fft.fft2(kernel, (size, size))))


def _decibels(panels: Array) -> Array:
    """Magnitudes relative to the largest of the first panel, down to a floor."""
    ratio = panels / largest_magnitude(panels[0])
    levels: Array = 20 * np.log10(np.maximum(ratio, 10 ** (-DECIBELS / 20)))
    return levels
