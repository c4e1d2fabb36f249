"""`DTCWTInverse`: pytorch_wavelets' inverse dual-tree transform, rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.fx
from torch import Tensor, nn

from convfactor.wavelets import checks
from convfactor.wavelets.banks import Sizes
from convfactor.wavelets.filters import Filters, biorthogonal, quarter_shift
from convfactor.wavelets.levels import merge
from convfactor.wavelets.prepared import Settings, banks
from convfactor.wavelets.transform import Transform, check_reference
from convfactor.wavelets.tuning import keep_fastest, random_coefficients


class DTCWTInverse(Transform):
    """Inverse 2-D dual-tree complex wavelet transform, as `pytorch_wavelets.DTCWTInverse`.

    Same arguments, call, buffers and results; faster, differentiable to any order, and visible to
    `torch.fx`, `torch.compile` and `torch.export`. Every level is two passes of small matrix
    products that hold the borders, so nothing is approximated.

    Absent bands (None, a 0-d or an empty tensor) count as zeros, as does an absent lowpass. As in
    the original every mode but symmetric means zero padding at level 1 and symmetric extension
    above, and level 1 without bands is always symmetric.

    Args:
        biort: Level-1 filters: antonini, legall, near_sym_a, near_sym_b, near_sym_b_bp, or
            (g0o, g1o), or (g0o, g1o, g2o).
        qshift: Filters above: qshift_06, qshift_a, b, c, d, 32, b_bp, or (g0a, g0b, g1a, g1b), or
            (g0a, g0b, g1a, g1b, g2a, g2b).
        o_dim: Dimension of the six orientations in the bands.
        ri_dim: Dimension of their real and imaginary parts.
        mode: Extension at the border.
        J: Number of levels that the coefficients must have; any without it.
        backend: "torch" for torch's operations, "cpp" for compiled kernels, which are built on
            first use, "auto" for these once `build` was called in this process.

    The filters with an end of `_bp` have a bandpass filter of their own for the diagonal bands,
    which makes them rotationally symmetric, as `dtcwt` defines it (pytorch_wavelets refuses them);
    they reconstruct approximately.

    Filters are read at every call. On the CPU every change counts; on other devices in-place
    edits through `.data` leave no trace and count after a move.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is not one of these.
        ImportError: If a filter is given by name and pytorch_wavelets is not installed.
        RuntimeError: If `backend` is "cpp" and the kernels can't be built here.

    The method is N. Kingsbury's (Applied and Computational Harmonic Analysis 10, 2001); the
    conventions are those of pytorch_wavelets 1.3.0.

    Example:
        >>> import torch
        >>> from convfactor.wavelets import DTCWTForward, DTCWTInverse
        >>> image = torch.rand(1, 1, 32, 32)
        >>> coefficients = DTCWTForward(J=2)(image)
        >>> torch.allclose(DTCWTInverse()(coefficients), image, atol=1e-5)
        True
    """

    def __init__(
        self,
        biort: Filters = "near_sym_a",
        qshift: Filters = "qshift_a",
        o_dim: int = 2,
        ri_dim: int = -1,
        mode: str = "symmetric",
        *,
        J: int | None = None,  # noqa: N803
        backend: str = "auto",
    ) -> None:
        """Look up the filters."""
        filters = {**biorthogonal(biort), **quarter_shift(qshift)}
        super().__init__(filters, biort, qshift, o_dim, ri_dim, mode, backend)
        self.J = None if J is None else checks.levels("J", J)

    @classmethod
    def from_module(cls, reference: nn.Module, backend: str = "auto") -> DTCWTInverse:
        """Build the equal of a `pytorch_wavelets.DTCWTInverse`.

        The filters are read from the module, so a loaded or cast one keeps its own, on its
        device, in its dtype and training mode.

        Raises:
            TypeError: If `reference` is something else.
        """
        given = check_reference(reference, "DTCWTInverse")
        module = cls(
            (given.g0o, given.g1o),
            (given.g0a, given.g0b, given.g1a, given.g1b),
            given.o_dim,
            given.ri_dim,
            given.mode,
            backend=backend,
        )
        module._take_over(given)
        return module

    def forward(self, coeffs: tuple[Tensor | None, Sequence[Tensor | None]]) -> Tensor:
        """Reconstruct images from their coefficients.

        Args:
            coeffs: (yl, yh): the lowpass (N, C, H, W), and a list of the complex bands, finest
                first, (N, C, 6, H', W', 2) for the default dimensions.

        Returns:
            Images (N, C, H'', W''); of odd sizes they have a row or column more than the original.

        Raises:
            TypeError: If they are not dense tensors of the filters' dtype in this form.
            ValueError: If a shape or the number of levels does not fit, or a device differs.
        """
        return synthesize(
            coeffs, self._filters(), self._settings(), self.o_dim % 6, self.ri_dim % 6, self.J
        )

    def extra_repr(self) -> str:
        """Name the arguments."""
        levels = "" if self.J is None else f", J={self.J}"
        return super().extra_repr() + levels

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
        dims = self.o_dim % 6, self.ri_dim % 6
        return keep_fastest(self, random_coefficients(shape, levels, *dims, self.g0o))

    g0o: Tensor


@torch.fx.wrap
def synthesize(
    coeffs: tuple[Tensor | None, Sequence[Tensor | None]],
    filters: tuple[Tensor, ...],
    settings: Settings,
    o_dim: int,
    ri_dim: int,
    levels: int | None,
) -> Tensor:
    """Run the levels, coarsest first: one call to `torch.fx`, which cannot follow shapes."""
    prepared = banks(filters, settings)
    low, stacks = _checked(coeffs, filters[0], o_dim, ri_dim, levels)
    shape = low.shape[:2] if low is not None else None
    images = low.flatten(0, 1) if low is not None else None
    for level in range(len(stacks), 0, -1):
        stack = stacks[level - 1]
        if stack is not None:
            if shape is not None and stack.shape[:2] != shape:
                raise ValueError(
                    f"yh[{level - 1}]: the bands of level {level} have batch and channels "
                    f"{tuple(stack.shape[:2])}, but the levels above or yl have {tuple(shape)}"
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
        level1 = prepared.level1_symmetric if stack is None else prepared.level1
        images = merge(images, stack, prepared.above if level > 1 else level1)
    if images is None or shape is None:
        raise ValueError("all coefficients are absent: give yl, or the bands of one level")
    result: Tensor = images.unflatten(0, shape)
    return result


def _checked(
    coeffs: Any, like: Tensor, o_dim: int, ri_dim: int, levels: int | None
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The lowpass, and bands as (N, C, 6, h, w, 2), None where they are absent."""
    if not isinstance(coeffs, (tuple, list)) or len(coeffs) != 2:
        size = f" of {len(coeffs)}" if isinstance(coeffs, (tuple, list)) else ""
        raise TypeError(
            f"coeffs must be the pair (yl, yh), got a {type(coeffs).__name__}{size}: "
            "pass both in one tuple"
        )
    low, given = coeffs
    if isinstance(low, (tuple, list)):
        raise TypeError(f"yl must be one tensor, got a list of {len(low)}: pass the last, yl[-1]")
    if not isinstance(given, (tuple, list)) and given is not None:
        raise TypeError(
            "yh must be a list with the bands of every level, "
            f"got a {type(given).__name__}: pass [yh]"
        )
    highs = list(given or ())
    if levels is not None and len(highs) != levels:
        raise ValueError(
            f"yh has {len(highs)} levels, but the transform was made for J={levels}: "
            "give as many, None for absent ones, or leave J out"
        )
    low = None if _absent(low) else _lowpass(low, like)
    return low, [
        None if _absent(bands) else _canonical(bands, like, o_dim, ri_dim, level)
        for level, bands in enumerate(highs, 1)
    ]


def _absent(given: Any) -> bool:
    if given is None:
        return True
    return isinstance(given, Tensor) and (given.ndim == 0 or given.shape == (0,))


def _lowpass(low: Any, like: Tensor) -> Tensor:
    checks.tensor("yl", low, like)
    if low.ndim != 4:
        add = ": add the batch by yl.unsqueeze(0)" if low.ndim == 3 else ""
        raise ValueError(f"yl must have 4 dimensions (N, C, H, W), got {tuple(low.shape)}{add}")
    if low.shape[2] == 0 or low.shape[3] == 0:
        raise ValueError(f"yl must have at least one pixel, got {tuple(low.shape)}")
    checked: Tensor = low
    return checked


def _canonical(bands: Any, like: Tensor, o_dim: int, ri_dim: int, level: int) -> Tensor:
    """View bands as (N, C, 6, h, w, 2)."""
    name = f"yh[{level - 1}]"
    if isinstance(bands, Tensor) and bands.is_complex():
        raise TypeError(
            f"{name} is {bands.dtype}: give real and imaginary parts as a dimension of their own, "
            f"by torch.view_as_real({name}), for ri_dim=-1"
        )
    checks.tensor(name, bands, like)
    if bands.ndim != 6 or bands.shape[o_dim] != 6 or bands.shape[ri_dim] != 2:
        raise ValueError(
            f"{name}: bands of level {level} must have 6 dimensions, 6 orientations in dimension "
            f"{o_dim} and real and imaginary parts in {ri_dim}; got {tuple(bands.shape)}"
        )
    batch, channel, height, width = (d for d in range(6) if d not in (o_dim, ri_dim))
    stack: Tensor = bands.permute(batch, channel, o_dim, height, width, ri_dim)
    if stack.shape[3] == 0 or stack.shape[4] == 0:
        raise ValueError(f"{name} must have at least one coefficient, got {tuple(bands.shape)}")
    return stack


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
            f"yh[{level - 1}]: the bands of level {level} ask for a lowpass of "
            f"{height} x {width}, or one more on each side; got {low.shape[1]} x {low.shape[2]}"
        )
    return cropped
