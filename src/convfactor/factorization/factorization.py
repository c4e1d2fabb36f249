"""What comes out of factorizing one kernel."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from torch import Tensor

from convfactor.conv.bounds import Bounds
from convfactor.conv.cascade import Cascade, Stage
from convfactor.conv.fitting import kernel_on_taps
from convfactor.conv.geometry import ConvGeometry, Pair
from convfactor.conv.structure import Structure
from convfactor.pictures.colours import ABOVE, BELOW, LEVELS, hexadecimal
from convfactor.pictures.kernels import strongest
from convfactor.pictures.markup import filled

MOST_DRAWN = 1 << 18  # taps of a kernel whose pictures a notebook shows, in some milliseconds


@dataclass(frozen=True, eq=False)
class Factorization:
    """A cascade in the dtype it will run in, and how far it is from the kernel.

    Attributes:
        cascade: The cascade.
        error: Relative error, from the composed kernel after rounding.
        channel_errors: The same per output channel, float64 (C_out,).
        bias_shift: Float64 (C_out,), what the bias must take up: ``-D mu``.
        noise_gain: Amplification of rounding in the intermediates, relative to one rounding of the
            output; times the dtype's epsilon it is the relative rounding error to expect.
        residual: Float64 (C_out, C_in/groups, H, W), composed kernel minus the original, both
            extended by zeros, on the taps of the original.
        origin: (row, col) of the residual's corner relative to the original's, in taps.
        geometry: The convolution that was factorized.
        calibrated: Whether the error is that for the inputs whose moments were given, not that for
            white noise.
        exact: Whether it was exact before rounding, so that nothing wider is better.
        met: Whether the error is within the tolerance; None without one.
        timed_out: Whether the time limit cut the search short; more may give a better answer.
        message: What would be needed, where the tolerance was not met, or that the time limit cut
            the search short; otherwise empty.

    Example:
        >>> import torch
        >>> from convfactor import factorize
        >>> f = factorize(torch.ones(7, 7), 1e-5)
        >>> str(f.structure), f.macs, f.met
        ('3x3 3x3 3x3 (1, 1)', 27, True)
    """

    cascade: Cascade
    error: float
    channel_errors: Tensor
    bias_shift: Tensor
    noise_gain: float
    residual: Tensor
    origin: Pair
    geometry: ConvGeometry
    calibrated: bool = False
    exact: bool = False
    met: bool | None = None
    timed_out: bool = False
    message: str = ""

    def __repr__(self) -> str:
        """Name the structure, the dtype, the error and the cost, without the weights."""
        dtype = str(self.kernels[0].dtype).removeprefix("torch.")
        return (
            f"Factorization({self.structure}, {dtype}, error {self.error:.2e}, "
            f"{self.macs} multiplies, met={self.met})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows, with the kernels between the strongest pair of channels."""
        pairs = []
        if self.residual.numel() <= MOST_DRAWN:
            pairs = strongest(self.cascade, self.geometry, self._kernel(), 1)
        return filled(
            "convfactor.factorization",
            "factorization.html",
            {"figures": lambda error: f"{error:.2g}"},
            f=self,
            dtype=str(self.kernels[0].dtype).removeprefix("torch."),
            kernel=f"{'x'.join(map(str, self.geometry.kernel_size))} "
            f"{self.geometry.in_channels}->{self.geometry.out_channels}",
            pairs=pairs,
            several=self.residual.shape[:2] != (1, 1),
            above=hexadecimal(ABOVE),
            below=hexadecimal(BELOW),
            levels=LEVELS,
        )

    def _kernel(self) -> Tensor:
        """The kernel that was factorized, from what the cascade leaves of it."""
        (top, left), (height, width) = self.origin, self.geometry.kernel_size
        residual = self.residual[..., -top : height - top, -left : width - left]
        return kernel_on_taps(self.cascade, self.geometry) - residual

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, first applied first."""
        return self.cascade.stages

    @property
    def kernels(self) -> tuple[Tensor, ...]:
        """The weights of the stages."""
        return tuple(stage.weight for stage in self.cascade.stages)

    @property
    def offset(self) -> Pair:
        """(row, col) of the equivalent kernel's corner relative to the original's."""
        return self.cascade.offset

    @property
    def structure(self) -> Structure:
        """The cascade without its weights."""
        return self.cascade.structure

    @property
    def macs(self) -> int:
        """Multiplies per output pixel of the original grid."""
        return self.cascade.structure.macs

    @functools.cached_property
    def bounds(self) -> Bounds:
        """Worst-case bounds of the output error.

        ``factorize`` does not know the padding: there they are those for zeros or none.
        """
        return Bounds.from_residual(self.residual, self.geometry.groups, self.geometry, self.origin)

    def compose(self) -> Tensor:
        """Equivalent kernel, float64 (C_out, C_in/groups, spanH, spanW)."""
        return self.cascade.compose()
