"""Worst-case bounds of the difference between two convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convfactor.conv.geometry import ConvGeometry, Pair

# In units of about a second on the coarsest grid.
_MOST_EFFORT = 4


@dataclass(frozen=True)
class Bounds:
    """How far the output of a cascade can be from the original's, per unit of input.

    Attributes:
        l_inf: Largest output difference for inputs of magnitude at most 1, any padding.
        spectral: Largest 2-norm of the output difference for inputs of 2-norm 1, over images of
            every size; ``inf`` where the padding allows no such bound.

    They are those of the kernels: a bias shift is a constant that comes on top of them.

    Example:
        >>> import torch
        >>> from convfactor import Bounds, ConvGeometry
        >>> residual = torch.full((1, 1, 3, 3), 0.01, dtype=torch.float64)
        >>> bounds = Bounds.from_residual(residual, 1, ConvGeometry(1, 1, (3, 3)))
        >>> round(bounds.l_inf, 3)
        0.09
    """

    l_inf: float
    spectral: float

    @classmethod
    def from_residual(
        cls, residual: Tensor, groups: int, geometry: ConvGeometry, origin: Pair = (0, 0)
    ) -> Bounds:
        """Bound the convolution with a residual kernel.

        The residual lives on the taps of the geometry's kernel, so its taps lie the dilation
        apart, and it may be larger or smaller than that kernel.

        The frequency response of K taps is, but for a phase, a trigonometric polynomial of degree
        ``n = (K - 1)/2``, which exceeds its largest value on N > K equispaced points at most by
        ``1/cos(pi n/N)`` (Ehlich and Zeller, 1964); so do its singular values, as ``u' D v`` is
        such a polynomial for every u and v. Zeros around the image change nothing, nor does a
        stride, which only drops outputs. With circular padding the outputs are part of a periodic
        convolution, with reflected padding of one over the doubled period, and replicated padding
        repeats the outermost pixels.

        Args:
            residual: (C_out, C_in/groups, H, W), float64.
            groups: Groups of ``residual``.
            geometry: The original convolution.
            origin: (row, col) of the residual's corner relative to the kernel's, in taps.

        Raises:
            ValueError: ``residual`` does not have the channels of ``geometry``.
        """
        shape = tuple(residual.shape)
        channels = (geometry.out_channels, geometry.in_channels / groups)
        if len(shape) != 4 or shape[:2] != channels:
            raise ValueError(
                f"residual must be (C_out, C_in/groups, H, W) with {geometry.out_channels} output "
                f"and {geometry.in_channels} input channels in {groups} groups, got shape {shape}"
            )
        residual = residual.to(torch.float64)
        l_inf = float(residual.abs().sum((1, 2, 3)).max())
        peak = float(residual.abs().max())
        if not peak:
            return cls(0.0, 0.0)
        spectral = peak * _spectral_norm(residual / peak, groups)  # squares of tiny ones vanish
        inside = [
            corner >= 0 and corner + taps <= size
            for corner, taps, size in zip(origin, shape[2:], geometry.kernel_size, strict=True)
        ]
        return cls(l_inf, spectral * _padding_gain(geometry, inside))


def _spectral_norm(residual: Tensor, groups: int) -> float:
    """Bound the largest singular value of the frequency response over all frequencies."""
    out_channels, in_channels, height, width = residual.shape
    block = (out_channels // groups, in_channels)
    # About a second of work and a quarter of a GB: 4 % too high for few channels, at most
    # twice too high for very many.
    effort = groups * math.prod(block) * height * width / 2 * max(min(block) / 2**30, 1 / 2**23)
    if effort > _MOST_EFFORT:
        return _schur_norm(residual, groups)
    axes = (height > 1) + (width > 1)
    density = next((d for d in range(8, 2, -1) if d**axes * effort <= 1), 2)
    points = [density * taps if taps > 1 else 1 for taps in (height, width)]
    response = torch.fft.rfft2(residual, s=points).unflatten(0, (groups, block[0]))
    response = response.permute(0, 3, 4, 1, 2)
    if block[0] > block[1]:
        response = response.mT
    if min(block) == 1:
        largest = float(torch.linalg.vector_norm(response, dim=-1).max())
    else:
        values = torch.linalg.eigvalsh(response @ response.mH)
        largest = math.sqrt(max(0.0, float(values.max())))
    for taps, count in zip((height, width), points, strict=True):
        largest /= math.cos(math.pi * (taps - 1) / 2 / count)
    return largest


def _schur_norm(residual: Tensor, groups: int) -> float:
    """Bound it by the largest sums of what one output reads and of what one input reaches."""
    sizes = residual.abs().sum((2, 3)).unflatten(0, (groups, -1))
    return math.sqrt(float(sizes.sum(2).max()) * float(sizes.sum(1).max()))


def _padding_gain(geometry: ConvGeometry, inside: Sequence[bool]) -> float:
    """Largest factor by which padding can raise the norm; ``inf`` if none is known.

    Args:
        geometry: The original convolution.
        inside: For each axis, whether the residual reads no more than the kernel does; else it
            reads zeros behind the padding, which are in no period.
    """
    if geometry.padding_mode == "zeros":
        return 1.0
    left, right, top, bottom = geometry.padding
    gain = 1.0
    axes = zip(geometry.extent, inside, ((top, bottom), (left, right)), strict=True)
    for extent, fits, (before, after) in axes:
        if before == after == 0:
            continue
        if not fits or min(before, after) < 0:
            return math.inf
        if geometry.padding_mode == "replicate":
            known = min(before, after) < extent
            gain *= math.sqrt(1 + max(before, after))
        else:
            known = before + after < extent
            gain *= math.sqrt(2 if geometry.padding_mode == "reflect" else 1)
        if not known:
            return math.inf
    return gain
