"""`DTCWTInverse`: pytorch_wavelets' inverse dual-tree transform, rebuilt."""

from __future__ import annotations

from collections.abc import Sequence

import torch.fx
from torch import Tensor, nn

from convfactor.wavelets.banded import Taps
from convfactor.wavelets.banks import Sizes, synthesis_taps
from convfactor.wavelets.filters import Filters, biorthogonal, quarter_shift
from convfactor.wavelets.levels import merge
from convfactor.wavelets.transform import Banks, Transform, check_reference
from convfactor.wavelets.tuning import random_coefficients


class DTCWTInverse(Transform):
    """Inverse 2-D dual-tree complex wavelet transform, as `pytorch_wavelets.DTCWTInverse`.

    Same arguments, call, buffers and results; faster, differentiable to any order, and visible to
    `torch.fx`, `torch.compile` and `torch.export`. Every level is two passes of small matrix
    products that hold the borders, so nothing is approximated.

    Absent bands (None, a 0-d or an empty tensor) count as zeros, as does an absent lowpass. As in
    the original every mode but symmetric means zero padding at level 1 and symmetric extension
    above, and level 1 without bands is always symmetric.

    Args:
        biort: Level-1 filters: antonini, legall, near_sym_a, near_sym_b, or the pair (g0o, g1o).
        qshift: Filters above: qshift_06, qshift_a, b, c, d, 32, or (g0a, g0b, g1a, g1b).
        o_dim: Dimension of the six orientations in the bands.
        ri_dim: Dimension of their real and imaginary parts.
        mode: Extension at the border.

    Raises:
        ValueError: If an argument is not one of these.
        ImportError: If a filter is given by name and pytorch_wavelets is not installed.

    The method is N. Kingsbury's (Applied and Computational Harmonic Analysis 10, 2001); the
    conventions are those of pytorch_wavelets 1.3.0.
    """

    def __init__(
        self,
        biort: Filters = "near_sym_a",
        qshift: Filters = "qshift_a",
        o_dim: int = 2,
        ri_dim: int = -1,
        mode: str = "symmetric",
    ) -> None:
        """Look up the filters and prepare the matrices."""
        filters = (*biorthogonal(biort), *quarter_shift(qshift))
        super().__init__("g", filters, biort, qshift, o_dim, ri_dim, mode)

    @classmethod
    def from_module(cls, reference: nn.Module) -> DTCWTInverse:
        """Build the equal of a `pytorch_wavelets.DTCWTInverse`.

        The filters are read from its buffers, so a loaded or cast module keeps its own, on its
        device, in its dtype and training mode.

        Raises:
            TypeError: If `reference` is something else.
        """
        given = check_reference(reference, "DTCWTInverse")
        g0o, g1o, g0a, g0b, g1a, g1b = (buffer.flip(2) for buffer in reference.buffers())
        module = cls((g0o, g1o), (g0a, g0b, g1a, g1b), given.o_dim, given.ri_dim, given.mode)
        module.biort, module.qshift = given.biort, given.qshift
        module._copy_filters(reference)
        return module

    def forward(self, coeffs: tuple[Tensor | None, Sequence[Tensor | None]]) -> Tensor:
        """Reconstruct images from their coefficients.

        Args:
            coeffs: (yl, yh): the lowpass (N, C, H, W), and a list of the complex bands, finest
                first, (N, C, 6, H', W', 2) for the default dimensions.

        Returns:
            Images (N, C, H'', W''); of odd sizes they have a row or column more than the original.

        Raises:
            ValueError: If a shape does not fit.
        """
        return synthesize(coeffs, self._banks(), self.o_dim % 6, self.ri_dim % 6)

    def tune(self, shape: Sequence[int], levels: int = 1) -> dict[Sizes, float]:
        """Measure how to compute the levels for images of a shape, and keep the fastest way.

        Args:
            shape: (N, C, H, W) of the images; device and dtype are the module's.
            levels: Number of levels.

        Returns:
            Seconds of every way that was tried.

        Raises:
            ValueError: If the shape or the levels are not positive.
        """
        return self._keep_fastest(
            random_coefficients(shape, levels, self.o_dim % 6, self.ri_dim % 6, self.g0o)
        )

    def _above(self, filters: list[Tensor]) -> tuple[Taps, Taps]:
        low_a, low_b, high_a, high_b = filters
        return synthesis_taps(low_a, low_b, False), synthesis_taps(high_a, high_b, True)

    g0o: Tensor


@torch.fx.wrap
def synthesize(
    coeffs: tuple[Tensor | None, Sequence[Tensor | None]], banks: Banks, o_dim: int, ri_dim: int
) -> Tensor:
    """Run the levels, coarsest first: one call to `torch.fx`, which cannot follow shapes."""
    low, given = coeffs
    if _absent(low):
        low = None
    if low is not None and low.ndim != 4:
        raise ValueError(f"yl must have 4 dimensions (N, C, H, W), got {tuple(low.shape)}")
    highs = list(given or ())
    shape = low.shape[:2] if low is not None else None
    images = low.flatten(0, 1) if low is not None else None
    for level in range(len(highs), 0, -1):
        bands = highs[level - 1]
        stack = None
        if bands is not None and not _absent(bands):
            stack = _canonical(bands, o_dim, ri_dim, level)
            if shape is not None and stack.shape[:2] != shape:
                raise ValueError(
                    f"bands of level {level} have batch and channels {tuple(stack.shape[:2])}, "
                    f"but the levels above or yl have {tuple(shape)}"
                )
            shape = stack.shape[:2]
            stack = stack.flatten(0, 1)
            images = None if images is None else _crop(images, stack, level)
        elif level > 1 and images is not None and (images.shape[1] % 2 or images.shape[2] % 2):
            raise ValueError(
                f"without bands level {level} needs a lowpass of even size, "
                f"got {tuple(images.shape[1:])}"
            )
        if images is None and stack is None:
            continue
        chosen = (
            banks.above if level > 1 else banks.level1_symmetric if stack is None else banks.level1
        )
        images = merge(images, stack, chosen)
    if images is None or shape is None:
        raise ValueError("all coefficients are absent: give yl, or the bands of one level")
    result: Tensor = images.unflatten(0, shape)
    return result


def _absent(tensor: Tensor | None) -> bool:
    return tensor is None or tensor.ndim == 0 or tensor.shape == (0,)


def _canonical(bands: Tensor, o_dim: int, ri_dim: int, level: int) -> Tensor:
    """View bands as (N, C, 6, h, w, 2)."""
    if bands.ndim != 6 or bands.shape[o_dim] != 6 or bands.shape[ri_dim] != 2:
        raise ValueError(
            f"bands of level {level} must have 6 dimensions, 6 orientations in dimension {o_dim} "
            f"and real and imaginary parts in {ri_dim}; got {tuple(bands.shape)}"
        )
    batch, channel, height, width = (d for d in range(6) if d not in (o_dim, ri_dim))
    return bands.permute(batch, channel, o_dim, height, width, ri_dim)


def _crop(low: Tensor, bands: Tensor, level: int) -> Tensor:
    """Cut a lowpass that was extended for the next level back to twice the bands' size."""
    height, width = 2 * bands.shape[2], 2 * bands.shape[3]
    cropped = low
    if low.shape[1] != height:
        cropped = cropped[:, 1:-1]
    if low.shape[2] != width:
        cropped = cropped[:, :, 1:-1]
    if cropped.shape[1:] != (height, width):
        raise ValueError(
            f"the bands of level {level} ask for a lowpass of {height} x {width}, or one more on "
            f"each side; got {low.shape[1]} x {low.shape[2]}"
        )
    return cropped
