"""`ScatLayer` and `ScatLayerj2`: the scattering layers of pytorch_wavelets on the fast levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from convfactor.wavelets import checks
from convfactor.wavelets.filters import Array, Filters, biorthogonal, quarter_shift
from convfactor.wavelets.levels import split
from convfactor.wavelets.prepared import Settings, banks
from convfactor.wavelets.transform import Filtered, check_reference


class _Scattering(Filtered):
    """What both layers share: smooth magnitudes of the bands, stacked as channels."""

    orders: int

    def __init__(
        self,
        filters: Mapping[str, Array],
        mode: str,
        magbias: float,
        combine_colour: bool,
        backend: str,
    ) -> None:
        super().__init__(filters, mode, backend)
        self.magbias = magbias
        self.combine_colour = combine_colour

    def forward(self, x: Tensor) -> Tensor:
        """Scatter images.

        Args:
            x: Images (N, C, H, W), three channels with `combine_colour`.

        Returns:
            The lowpass and the magnitudes, along the channels.

        Raises:
            TypeError: If `x` is not a dense tensor of the filters' dtype.
            ValueError: If it has another shape, or is on another device.
        """
        return scatter(
            x, self._filters(), self._settings(), self.orders, self.magbias, self.combine_colour
        )

    def extra_repr(self) -> str:
        """Name the arguments."""
        return f"mode={self.mode!r}, magbias={self.magbias}, combine_colour={self.combine_colour}"


class ScatLayer(_Scattering):
    """First-order scattering at one scale, as `pytorch_wavelets.ScatLayer`.

    Same arguments, call, names of filters and results, (N, 7 C, H / 2, W / 2): the lowpass of all
    channels, then the magnitudes, orientation by orientation; with `combine_colour` (N, 9, ...).

    Args:
        biort: Level-1 filters, see `DTCWTForward`.
        mode: Extension at the border.
        magbias: The b in the magnitudes sqrt(re^2 + im^2 + b^2) - b.
        combine_colour: Whether the three colours share their magnitudes.
        backend: As for `DTCWTInverse`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is not one of these.
        ImportError: If a filter is given by name and pytorch_wavelets is not installed.

    Example:
        >>> import torch
        >>> from convfactor.wavelets import ScatLayer
        >>> ScatLayer()(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 21, 16, 16])
    """

    orders = 1

    def __init__(
        self,
        biort: Filters = "near_sym_a",
        mode: str = "symmetric",
        magbias: float = 1e-2,
        combine_colour: bool = False,
        *,
        backend: str = "auto",
    ) -> None:
        """Look up the filters."""
        super().__init__(biorthogonal(biort, "h"), mode, magbias, combine_colour, backend)

    @classmethod
    def from_module(cls, reference: nn.Module, backend: str = "auto") -> ScatLayer:
        """Build the equal of a `pytorch_wavelets.ScatLayer`, see `DTCWTInverse.from_module`.

        Raises:
            TypeError: If `reference` is something else.
        """
        given = check_reference(reference, "ScatLayer")
        module = cls(_level1(given), *_arguments(given), backend=backend)
        module._take_over(given)
        return module


class ScatLayerj2(_Scattering):
    """Second-order scattering at two scales, as `pytorch_wavelets.ScatLayerj2`.

    Same arguments, call, names of filters and results, (N, 49 C, H / 4, W / 4): the lowpass, the
    first order of scale 1, that of scale 2, and the second order; with `combine_colour`
    (N, 51, ...).

    Args:
        biort: Level-1 filters, see `DTCWTForward`.
        qshift: Filters of level 2, likewise.
        mode: As for `ScatLayer`.
        magbias: As for `ScatLayer`.
        combine_colour: As for `ScatLayer`.
        backend: As for `DTCWTInverse`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is not one of these.
        ImportError: If a filter is given by name and pytorch_wavelets is not installed.

    Example:
        >>> import torch
        >>> from convfactor.wavelets import ScatLayerj2
        >>> ScatLayerj2()(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 147, 8, 8])
    """

    orders = 2

    def __init__(
        self,
        biort: Filters = "near_sym_a",
        qshift: Filters = "qshift_a",
        mode: str = "symmetric",
        magbias: float = 1e-2,
        combine_colour: bool = False,
        *,
        backend: str = "auto",
    ) -> None:
        """Look up the filters."""
        filters = {**biorthogonal(biort, "h"), **quarter_shift(qshift, "h")}
        super().__init__(filters, mode, magbias, combine_colour, backend)

    @classmethod
    def from_module(cls, reference: nn.Module, backend: str = "auto") -> ScatLayerj2:
        """Build the equal of a `pytorch_wavelets.ScatLayerj2`, see `DTCWTInverse.from_module`.

        Raises:
            TypeError: If `reference` is something else.
        """
        given = check_reference(reference, "ScatLayerj2")
        names = ("h0a", "h0b", "h1a", "h1b", *(("h2a", "h2b") if given.bandpass_diag else ()))
        trees = [getattr(given, name) for name in names]
        module = cls(_level1(given), trees, *_arguments(given), backend=backend)
        module._take_over(given)
        return module


def _level1(given: Any) -> list[Tensor]:
    return [given.h0o, given.h1o, *((given.h2o,) if given.bandpass_diag else ())]


def _arguments(given: Any) -> tuple[str, float, bool]:
    return given.mode_str, given.magbias, given.combine_colour


@torch.fx.wrap
def scatter(
    image: Tensor,
    filters: tuple[Tensor, ...],
    settings: Settings,
    orders: int,
    magbias: float,
    combine_colour: bool,
) -> Tensor:
    """Scatter images to one order or two: one call to `torch.fx`, which cannot follow shapes."""
    prepared = banks(filters, settings)
    checks.image(image, filters[0])
    shape = image.shape[:2]
    if combine_colour and shape[1] != 3:
        raise ValueError(f"x must have 3 channels for combine_colour, got {shape[1]}")
    low, bands = split(_extended(image.flatten(0, 1), 2 if orders == 1 else 8), prepared.level1)
    first = _magnitudes(bands, shape, magbias, combine_colour)
    if orders == 1:
        return torch.cat((_pooled(low, shape), first), dim=1)
    low, bands = split(low, prepared.above)
    coarser = _magnitudes(bands, shape, magbias, combine_colour)
    lowest = _pooled(low, shape)
    low, bands = split(first.flatten(0, 1), prepared.level1)
    second = _magnitudes(bands, first.shape[:2], magbias, False)
    return torch.cat((lowest, _pooled(low, first.shape[:2]), coarser, second), dim=1)


def _magnitudes(
    bands: Tensor | None, shape: torch.Size, magbias: float, combine_colour: bool
) -> Tensor:
    """Smooth magnitudes of bands (N C, 6, h, w, 2) as channels (N, 6 C, h, w)."""
    assert bands is not None
    squares = bands.square().sum(-1).unflatten(0, shape)
    if combine_colour:
        squares = squares.sum(1, keepdim=True)
    magnitudes: Tensor = (squares + magbias**2).sqrt() - magbias
    return magnitudes.transpose(1, 2).flatten(1, 2)


def _pooled(low: Tensor, shape: torch.Size) -> Tensor:
    pooled: Tensor = F.avg_pool2d(low, 2).unflatten(0, shape)
    return pooled


def _extended(images: Tensor, multiple: int) -> Tensor:
    """Extend images (N, H, W) to a multiple by their first and last rows and columns, in order."""
    for dim in (1, 2):
        missing = -images.shape[dim] % multiple
        before, after = missing // 2, (missing + 1) // 2
        if after > images.shape[dim]:
            raise ValueError(
                f"x must have at least {after} rows and columns, got {images.shape[dim]}: pad it"
            )
        if missing:
            first, last = images.narrow(dim, 0, before), images.narrow(dim, -after, after)
            images = torch.cat((first, images, last), dim=dim)
    return images
