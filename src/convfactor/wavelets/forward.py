"""`DTCWTForward`: pytorch_wavelets' dual-tree transform by the means of the inverse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.fx
from torch import Tensor, nn

from convfactor.wavelets import checks
from convfactor.wavelets.banks import Sizes
from convfactor.wavelets.filters import Filters, biorthogonal, quarter_shift
from convfactor.wavelets.levels import split
from convfactor.wavelets.prepared import Settings, banks
from convfactor.wavelets.transform import Transform, check_reference
from convfactor.wavelets.tuning import keep_fastest, random_image


class DTCWTForward(Transform):
    """2-D dual-tree complex wavelet transform, as `pytorch_wavelets.DTCWTForward`.

    Same arguments, call, buffers and results; see `DTCWTInverse`.

    Args:
        biort: Level-1 filters: antonini, legall, near_sym_a, near_sym_b, near_sym_b_bp, or
            (h0o, h1o), or (h0o, h1o, h2o).
        qshift: Filters above: qshift_06, qshift_a, b, c, d, 32, b_bp, or (h0a, h0b, h1a, h1b), or
            (h0a, h0b, h1a, h1b, h2a, h2b).
        J: Number of levels.
        skip_hps: Levels without bands, one answer for all or one each, finest first.
        include_scale: Levels whose lowpass is returned, likewise.
        o_dim: Dimension of the six orientations in the bands.
        ri_dim: Dimension of their real and imaginary parts.
        mode: Extension at the border.
        backend: As for `DTCWTInverse`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is not one of these.
        ImportError: If a filter is given by name and pytorch_wavelets is not installed.

    Example:
        >>> import torch
        >>> from convfactor.wavelets import DTCWTForward
        >>> low, bands = DTCWTForward(J=2)(torch.rand(1, 1, 32, 32))
        >>> low.shape, [tuple(band.shape) for band in bands]
        (torch.Size([1, 1, 16, 16]), [(1, 1, 6, 16, 16, 2), (1, 1, 6, 8, 8, 2)])
    """

    def __init__(
        self,
        biort: Filters = "near_sym_a",
        qshift: Filters = "qshift_a",
        J: int = 3,  # noqa: N803
        skip_hps: bool | Iterable[bool] = False,
        include_scale: bool | Iterable[bool] = False,
        o_dim: int = 2,
        ri_dim: int = -1,
        mode: str = "symmetric",
        *,
        backend: str = "auto",
    ) -> None:
        """Look up the filters and prepare the matrices."""
        filters = {**biorthogonal(biort, "h"), **quarter_shift(qshift, "h")}
        super().__init__(filters, biort, qshift, o_dim, ri_dim, mode, backend)
        self.J = checks.levels("J", J)
        self.skip_hps = _per_level("skip_hps", skip_hps, J)
        self.include_scale = _per_level("include_scale", include_scale, J)

    @classmethod
    def from_module(cls, reference: nn.Module, backend: str = "auto") -> DTCWTForward:
        """Build the equal of a `pytorch_wavelets.DTCWTForward`, see `DTCWTInverse.from_module`.

        Raises:
            TypeError: If `reference` is something else.
        """
        given = check_reference(reference, "DTCWTForward")
        module = cls(
            (given.h0o, given.h1o),
            (given.h0a, given.h0b, given.h1a, given.h1b),
            given.J,
            given.skip_hps,
            given.include_scale,
            given.o_dim,
            given.ri_dim,
            given.mode,
            backend=backend,
        )
        module._take_over(given)
        return module

    def forward(self, x: Tensor) -> tuple[Tensor | list[Tensor], list[Tensor] | None]:
        """Decompose images.

        Args:
            x: Images (N, C, H, W).

        Returns:
            (yl, yh): the lowpass, or the list of those asked for by `include_scale`; the bands,
            finest first, (N, C, 6, H', W', 2) for the default dimensions. What was not asked for
            is a 0-d zero in its list.

        Raises:
            TypeError: If `x` is not a dense tensor of the filters' dtype.
            ValueError: If it has another shape, or is on another device.
        """
        keep = _per_level("include_scale", self.include_scale, self.J)
        if self.J == 0:
            return x, None
        low, highs, scales = analyze(
            x,
            self._filters(),
            self._settings(),
            _per_level("skip_hps", self.skip_hps, self.J),
            keep,
            self.o_dim % 6,
            self.ri_dim % 6,
        )
        return (scales if any(keep) else low), highs

    def tune(self, shape: Sequence[int]) -> dict[Sizes, float]:
        """Measure how to compute the levels for images of a shape, see `DTCWTInverse.tune`.

        Args:
            shape: (N, C, H, W) of the images; device and dtype are the module's.
        """
        return keep_fastest(self, random_image(shape, self.h0o))

    h0o: Tensor


@torch.fx.wrap
def analyze(
    image: Tensor,
    filters: tuple[Tensor, ...],
    settings: Settings,
    skip: tuple[bool, ...],
    keep: tuple[bool, ...],
    o_dim: int,
    ri_dim: int,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Run the levels, finest first: one call to `torch.fx`, which cannot follow shapes."""
    prepared = banks(filters, settings)
    checks.image(image, filters[0])
    shape = image.shape[:2]
    low = image.flatten(0, 1)
    order = [0, 1, 3, 4]
    for dim, source in sorted([(o_dim, 2), (ri_dim, 5)]):
        order.insert(dim, source)
    highs, scales = [], []
    for level, (without, kept) in enumerate(zip(skip, keep, strict=True)):
        low = _whole_quads(low, level)
        low, bands = split(
            low, prepared.above if level else prepared.level1, with_bands=not without
        )
        if bands is None:
            highs.append(image.new_zeros([]))
        else:
            highs.append(bands.unflatten(0, shape).permute(order).contiguous())
        scales.append(low.unflatten(0, shape) if kept else image.new_zeros([]))
    return low.unflatten(0, shape), highs, scales


def _whole_quads(low: Tensor, level: int) -> Tensor:
    """Extend a lowpass (N, H, W) to even sides for level 1, to multiples of 4 for those above."""
    if level == 0:
        if low.shape[1] % 2:
            low = torch.cat((low, low[:, -1:]), dim=1)
        if low.shape[2] % 2:
            low = torch.cat((low, low[:, :, -1:]), dim=2)
        return low
    if low.shape[1] % 4:
        low = torch.cat((low[:, :1], low, low[:, -1:]), dim=1)
    if low.shape[2] % 4:
        low = torch.cat((low[:, :, :1], low, low[:, :, -1:]), dim=2)
    return low


def _per_level(name: str, given: bool | Iterable[bool], levels: int) -> tuple[bool, ...]:
    answers = list(given) if isinstance(given, Iterable) else [given] * levels
    for answer in answers:
        if answer not in (False, True):
            raise TypeError(f"{name} must be True or False, or a list of these, got {given!r}")
    if len(answers) != levels:
        raise ValueError(f"{name} needs one answer for each of {levels} levels, got {len(answers)}")
    return tuple(map(bool, answers))
