"""Filters of image processing, as kernels to factorize."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from convfactor.errors import did_you_mean
from convfactor.scalars import is_count, is_real

__all__ = ["binomial", "gabor", "gaussian", "log", "make", "wavelet"]

Array: TypeAlias = NDArray[np.float64]
BANDS = ("ll", "lh", "hl", "hh")
# Sides of kernels are odd numbers below this; a larger one is a slip of the pen.
LARGEST = 1023


def gaussian(size: int = 9, sigma: float | None = None) -> Array:
    """Make a Gaussian that sums to 1.

    Args:
        size: Taps per side.
        sigma: Standard deviation in pixels; None for a sixth of the size.

    Returns:
        Float64 (size, size).

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> gaussian(3, 0.5).round(3).tolist()
        [[0.011, 0.084, 0.011], [0.084, 0.619, 0.084], [0.011, 0.084, 0.011]]
    """
    y, x = _grid(size)
    sigma = _positive("sigma", size / 6 if sigma is None else sigma)
    bell: Array = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    bell /= bell.sum()
    return bell


def log(size: int = 9, sigma: float = 1.4) -> Array:
    """Make a Laplacian of a Gaussian, the filter for blobs and edges, that sums to 0.

    Args:
        size: Taps per side.
        sigma: Standard deviation of the Gaussian in pixels.

    Returns:
        Float64 (size, size).

    Raises:
        ValueError: An argument is out of range.

    Source: Marr and Hildreth, "Theory of edge detection", 1980.

    Example:
        >>> kernel = log(9, 1.4)
        >>> kernel.shape, abs(kernel.sum()) < 1e-12, kernel.argmin()
        ((9, 9), True, 40)
    """
    y, x = _grid(size)
    bell = gaussian(size, sigma)
    second: Array = (x**2 + y**2 - 2 * sigma**2) / sigma**4 * bell
    second -= second.mean()
    return second


def gabor(
    size: int = 15,
    wavelength: float = 6.0,
    angle: float = 45.0,
    sigma: float | None = None,
    aspect: float = 1.0,
    phase: float = 0.0,
) -> Array:
    """Make a Gabor filter: a wave under a Gaussian.

    Args:
        size: Taps per side.
        wavelength: Of the wave, in pixels.
        angle: In which the wave runs, in degrees from the rows towards the columns.
        sigma: Standard deviation of the Gaussian along the wave, in pixels; None for half a
            wavelength.
        aspect: Of the Gaussian: ``sigma`` over its standard deviation along the crests.
        phase: Of the wave at the centre, in degrees.

    Returns:
        Float64 (size, size).

    Raises:
        ValueError: An argument is out of range.

    Source: Daugman, "Uncertainty relation for resolution in space, spatial frequency, and
    orientation optimized by two-dimensional visual cortical filters", 1985.

    Example:
        >>> gabor(5, wavelength=4, angle=0)[2].round(4).tolist()
        [-0.0241, 0.0, 0.0398, 0.0, -0.0241]
    """
    y, x = _grid(size)
    wavelength = _positive("wavelength", wavelength)
    sigma = _positive("sigma", wavelength / 2 if sigma is None else sigma)
    aspect = _positive("aspect", aspect)
    turn, shift = (math.radians(_real(*named)) for named in (("angle", angle), ("phase", phase)))
    along = x * math.cos(turn) + y * math.sin(turn)
    across = y * math.cos(turn) - x * math.sin(turn)
    bell = np.exp(-(along**2 + (aspect * across) ** 2) / (2 * sigma**2))
    wave: Array = bell * np.cos(2 * math.pi * along / wavelength + shift)
    return wave * aspect / (2 * math.pi * sigma**2)


def binomial(size: int = 5) -> Array:
    """Make a binomial filter, the integer neighbour of a Gaussian, that sums to 1.

    Args:
        size: Taps per side.

    Returns:
        Float64 (size, size).

    Raises:
        ValueError: ``size`` is out of range.

    Example:
        >>> (binomial(3) * 16).tolist()
        [[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]
    """
    _grid(size)
    row = np.array([math.comb(size - 1, k) / 2 ** (size - 1) for k in range(size)])
    return np.outer(row, row)


def wavelet(name: str, band: str = "ll") -> Array:
    """Make a filter of the level-1 synthesis of the dual-tree wavelet transform.

    Args:
        name: Of the filters, such as "near_sym_a"; see ``convfactor.wavelets.synthesis_kernels``.
        band: "ll", "lh", "hl" or "hh".

    Returns:
        Float64 (height, width).

    Raises:
        ValueError: There is no such filter.
        ImportError: The extra ``wavelets`` is not installed.

    Example:
        >>> wavelet("legall", "hh").shape
        (5, 5)
    """
    if band not in BANDS:
        raise ValueError(f"band must be one of {', '.join(BANDS)}, got {band!r}")
    from convfactor.wavelets import synthesis_kernels  # loads torch, which nothing else here needs

    return synthesis_kernels(name)[band]


FILTERS: dict[str, Callable[..., Array]] = {
    "gaussian": gaussian, "gabor": gabor, "log": log, "binomial": binomial,
}  # fmt: skip


def make(name: str, **parameters: float) -> Array:
    """Make a filter by name, as ``convfactor factorize`` does.

    Args:
        name: One of ``FILTERS``.
        **parameters: Its arguments.

    Raises:
        ValueError: There is no such filter or argument, or one is out of range.

    Example:
        >>> make("binomial", size=3).shape
        (3, 3)
    """
    if name not in FILTERS:
        raise ValueError(
            f"name must be one of {', '.join(FILTERS)}, got {name!r}{did_you_mean(name, FILTERS)}"
        )
    known = FILTERS[name].__annotations__.keys() - {"return"}
    for parameter in parameters:
        if parameter not in known:
            there = ", ".join(p for p in FILTERS[name].__annotations__ if p in known)
            raise ValueError(
                f"{name} has no parameter {parameter!r}, only {there}"
                f"{did_you_mean(parameter, known)}"
            )
    return FILTERS[name](**parameters)


def _grid(size: int) -> tuple[Array, Array]:
    """Rows and columns of the taps from the centre."""
    if not is_count(size) or size > LARGEST:
        raise ValueError(f"size must be a whole number of taps, 1 to {LARGEST}, got {size!r}")
    steps = np.arange(size, dtype=np.float64) - (size - 1) / 2
    return steps[:, None], steps[None, :]


def _positive(name: str, value: float) -> float:
    """Check a number above 0."""
    if _real(name, value) <= 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")
    return float(value)


def _real(name: str, value: float) -> float:
    """Check a number."""
    if not (is_real(value) and math.isfinite(value)):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)
