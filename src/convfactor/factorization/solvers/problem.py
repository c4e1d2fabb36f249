"""What a solver is asked: a target kernel and the metric in which the error counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import Pair
from convfactor.conv.moments import Moments
from convfactor.conv.structure import Structure

EXACT = 1e-10


@dataclass(frozen=True, eq=False)
class Problem:
    """Minimise ``tr(D S D')`` for ``D`` = composed kernel - target, both extended by zeros.

    Everything lives on a window of taps that holds the target and the span of every structure
    that is tried. Tap distances are counted in taps: the dilation of the original convolution is
    not visible here.

    Attributes:
        target: Float64 (groups, out, in, H, W) on the window.
        covariance: Float64 (groups, in*H*W, in*H*W) of the input patches in the order (in, H, W),
            or None for white noise.
        origin: (row, col) of the window's corner relative to the target kernel's corner, <= 0.
        rounding: Relative error that the target has from its own dtype, at most: half the distance
            of neighbours, where the root mean square is a fifth of it.
    """

    target: Tensor
    covariance: Tensor | None = None
    origin: Pair = (0, 0)
    rounding: float = 0.0

    @classmethod
    def from_weight(
        cls,
        weight: Tensor,
        groups: int = 1,
        moments: Moments | None = None,
        margin: Pair = (0, 0),
    ) -> Problem:
        """Put a weight on a window with a margin around it.

        Args:
            weight: (C_out, C_in/groups, kH, kW).
            groups: Number of groups.
            moments: Moments of the layer's input patches, of that margin or a larger one; None
                for white noise.
            margin: Taps to add on every side (vertical, horizontal).
        """
        rows, cols = margin
        target = weight.detach().to(torch.float64).unflatten(0, (groups, -1))
        covariance = None
        if moments is not None:
            covariance = moments.cropped(margin).covariance.to(weight.device)
        window = F.pad(target, (cols, cols, rows, rows))
        return cls(window, covariance, (-rows, -cols), torch.finfo(weight.dtype).eps / 2)

    @property
    def exact(self) -> float:
        """Relative error at which a kernel is met: nothing but rounding is left."""
        return max(EXACT, self.rounding)

    @property
    def groups(self) -> int:
        """Number of independent groups."""
        return self.target.shape[0]

    def placement(self, structure: Structure) -> Pair:
        """(row, col) of the structure's composed kernel in the window.

        Raises:
            ValueError: The structure spans taps outside the window.
        """
        top, left = (o - w for o, w in zip(structure.offset, self.origin, strict=True))
        (height, width), window = structure.span, tuple(self.target.shape[-2:])
        if top < 0 or left < 0 or top + height > window[0] or left + width > window[1]:
            raise ValueError(
                f"structure {structure} spans {height}x{width} taps at {structure.offset}, "
                f"outside the window of {window[0]}x{window[1]} taps at {self.origin}"
            )
        return top, left

    def residual(self, cascade: Cascade) -> Tensor:
        """Composed kernel minus target on the window, (groups, out, in, H, W)."""
        structure = cascade.structure
        top, left = self.placement(structure)
        kernel = cascade.compose().unflatten(0, (self.groups, -1))
        bottom = self.target.shape[-2] - top - kernel.shape[-2]
        right = self.target.shape[-1] - left - kernel.shape[-1]
        return F.pad(kernel, (left, right, top, bottom)) - self.target

    def power(self, kernels: Tensor) -> Tensor:
        """``diag(K S K')``: output power of each kernel, (groups, out) for (groups, out, in, H, W).

        For a target this is the variance of its output, for a residual that of the output error.
        """
        flat = kernels.flatten(2)
        if self.covariance is None:
            return flat.square().sum(2)
        return ((flat @ self.covariance) * flat).sum(2).clamp_min(0)

    def error(self, cascade: Cascade) -> float:
        """Relative error of a cascade, ``sqrt(tr(D S D') / tr(W S W'))``."""
        peak = self.target.abs().max()
        scale = torch.where(peak > 0, peak, 1.0)  # squares of tiny weights would vanish
        wrong = self.power(self.residual(cascade) / scale).sum()
        return float(_relative(wrong, self.power(self.target / scale).sum()))

    def channel_errors(self, cascade: Cascade) -> Tensor:
        """The same for every output channel alone, (groups, out)."""
        peak = self.target.abs().amax((2, 3, 4), keepdim=True)
        scale = torch.where(peak > 0, peak, 1.0)
        wrong = self.power(self.residual(cascade) / scale)
        return _relative(wrong, self.power(self.target / scale))


def _relative(wrong: Tensor, total: Tensor) -> Tensor:
    """Root of a ratio of powers; what should be zero and is not has an infinite error."""
    missed = torch.where(wrong > 0, torch.inf, 0.0).to(wrong)
    return torch.where(total > 0, wrong / total, missed).sqrt()
