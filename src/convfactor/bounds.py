"""Worst-case bounds of the difference between two convolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from convfactor.geometry import ConvGeometry


@dataclass(frozen=True)
class Bounds:
    """How far the output of a cascade can be from the original's, per unit of input.

    Attributes:
        l_inf: Largest output difference for inputs of magnitude at most 1, any padding.
        spectral: Largest 2-norm of the output difference for inputs of 2-norm 1, over images of
            every size; ``inf`` where the padding allows no such bound.
    """

    l_inf: float
    spectral: float

    @classmethod
    def from_residual(cls, residual: Tensor, groups: int, geometry: ConvGeometry) -> Bounds:
        """Bound the convolution with a residual kernel.

        The frequency response of K taps is, but for a phase, a trigonometric polynomial of degree
        ``n = (K - 1)/2``, which exceeds its largest value on N > K equispaced points at most by
        ``1/cos(pi n/N)`` (Ehlich and Zeller, 1964); so do its singular values, as ``u' D v`` is
        such a polynomial for every u and v. Zeros around the image change nothing, nor does a
        stride, which only drops outputs. With circular padding the outputs are part of a periodic
        convolution, with reflected padding of one over the doubled period, and replicated padding
        repeats the outermost pixels.

        Args:
            residual: (C_out, C_in/groups, H, W), float64, its taps at input pixels.
            groups: Groups of ``residual``.
            geometry: The original convolution.

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
        spectral = _spectral_norm(residual, groups)
        if spectral:
            spectral *= _padding_gain(geometry, (shape[2], shape[3]))
        return cls(l_inf, spectral)


def _spectral_norm(residual: Tensor, groups: int) -> float:
    """Bound the largest singular value of the frequency response over all frequencies."""
    out_channels, in_channels, height, width = residual.shape
    block = (out_channels // groups, in_channels)
    # About a second of work and a quarter of a GB: 4 % too high for few channels, at most
    # twice too high for very many.
    effort = groups * math.prod(block) * height * width / 2 * max(min(block) / 2**30, 1 / 2**23)
    density = next((d for d in range(8, 2, -1) if d**2 * effort <= 1), 2)
    points = (density * height, density * width)
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


def _padding_gain(geometry: ConvGeometry, span: tuple[int, int]) -> float:
    """Largest factor by which padding can raise the norm; ``inf`` if none is known."""
    if geometry.padding_mode == "zeros":
        return 1.0
    left, right, top, bottom = geometry.padding
    gain = 1.0
    axes = zip(geometry.extent, span, ((top, bottom), (left, right)), strict=True)
    for extent, taps, (before, after) in axes:
        if not before + after:
            continue
        # A residual wider than the kernel reads zeros behind the padding, which are in no period.
        fits = taps <= extent
        if geometry.padding_mode == "replicate":
            known = fits and min(before, after) < extent
            gain *= math.sqrt(1 + max(before, after))
        else:
            known = fits and before + after < extent
            gain *= math.sqrt(2 if geometry.padding_mode == "reflect" else 1)
        if not known:
            return math.inf
    return gain
