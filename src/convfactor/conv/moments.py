"""Mean and covariance of the input patches that a convolution reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convfactor.conv.geometry import ConvGeometry, Pair

PATCHES_PER_DIMENSION = 5
FEWEST_PATCHES = 8192
MOST_PATCHES = 24576
# Of patches that are gathered at once, in float64.
SAMPLE_BYTES = 1 << 27


def patch_budget(geometry: ConvGeometry, margin: Pair = (0, 0)) -> int:
    """Patches that estimate a covariance well enough for a fit, bounded for the time it takes."""
    _, in_per_group, height, width = geometry.weight_shape
    dimensions = in_per_group * (height + 2 * margin[0]) * (width + 2 * margin[1])
    return min(max(PATCHES_PER_DIMENSION * dimensions, FEWEST_PATCHES), MOST_PATCHES)


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moments of the patches one layer reads, one set per group.

    A patch holds the input pixels under the kernel's taps and, where ``margin`` is positive, under
    the taps of a kernel grown by that much on every side.

    Attributes:
        mean: Float64 (groups, in/groups * H * W), H = kH + 2 * margin[0].
        covariance: Float64 (groups, P, P) with P as above, about the mean.
        kernel_size: Taps of the layer's kernel.
        margin: Taps added on every side (vertical, horizontal).
        count: Patches seen.

    Example:
        >>> import torch
        >>> from convfactor import Moments
        >>> conv = torch.nn.Conv2d(1, 1, 5, padding=2)
        >>> moments = Moments.from_inputs(conv, [torch.rand(2, 1, 32, 32) for _ in range(3)])
        >>> moments.covariance.shape
        torch.Size([1, 25, 25])
    """

    mean: Tensor
    covariance: Tensor
    kernel_size: Pair
    margin: Pair = (0, 0)
    count: int = 0

    def __post_init__(self) -> None:
        """Check shapes and values.

        Raises:
            ValueError: Shapes do not fit together, or a value is not finite.
        """
        groups, size = self.mean.shape
        if self.covariance.shape != (groups, size, size):
            raise ValueError(
                f"covariance must have shape {(groups, size, size)} to fit mean of shape "
                f"{tuple(self.mean.shape)}, got {tuple(self.covariance.shape)}"
            )
        if size % math.prod(self.window):
            raise ValueError(
                f"mean must hold whole patches of {self.window[0]}x{self.window[1]} taps, "
                f"got {size} values per group"
            )
        if not (self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise ValueError("moments must be finite; look for Inf or NaN in the calibration data")

    @property
    def window(self) -> Pair:
        """Taps of a patch (vertical, horizontal)."""
        (height, width), (rows, cols) = self.kernel_size, self.margin
        return height + 2 * rows, width + 2 * cols

    def cropped(self, margin: Pair) -> Moments:
        """Keep a smaller margin.

        Raises:
            ValueError: ``margin`` is larger than this one's.
        """
        if margin == self.margin:
            return self
        drop = tuple(mine - m for mine, m in zip(self.margin, margin, strict=True))
        if min(drop) < 0:
            raise ValueError(
                f"moments must have a margin of at least {margin} for this cascade, which spans "
                f"more than the kernel, got {self.margin}; collect them with margin={max(margin)}"
            )
        height, width = self.window
        kept = torch.arange(self.mean.shape[1], device=self.mean.device)
        kept = kept.view(-1, height, width)
        kept = kept[:, drop[0] : height - drop[0], drop[1] : width - drop[1]].flatten()
        covariance = self.covariance[:, kept[:, None], kept]
        return Moments(self.mean[:, kept], covariance, self.kernel_size, margin, self.count)

    @classmethod
    def from_inputs(
        cls,
        conv: nn.Conv2d,
        batches: Iterable[Tensor],
        *,
        margin: int | Pair = 0,
        patches: int | None = None,
        seed: int = 0,
    ) -> Moments:
        """Sample the patches that a layer reads from batches of its inputs.

        The patches are those of the layer itself: its padding (in its mode), stride phase and
        dilation included.

        Args:
            conv: The layer.
            batches: Inputs of the layer, each (N, C_in, H, W) or (C_in, H, W).
            margin: Taps to add around the kernel, for cascades that span more than it does.
            patches: How many to sample in all; None chooses by the size of the patch.
            seed: Seed of the sampling.

        Raises:
            ValueError: No batches, or one that the layer does not accept.
        """
        inputs = list(batches)
        if not inputs:
            raise ValueError("batches must hold at least one input of the layer, got none")
        geometry = ConvGeometry.from_conv(conv)
        sides = (margin, margin) if isinstance(margin, int) else margin
        collector = MomentsCollector(geometry, sides, seed)
        total = patch_budget(geometry, sides) if patches is None else patches
        for x in inputs:
            collector.add(x, -(-total // len(inputs)))
        return collector.moments()


class MomentsCollector:
    """Running sums of sampled patches; memory is one covariance whatever the data's size."""

    def __init__(self, geometry: ConvGeometry, margin: Pair = (0, 0), seed: int = 0) -> None:
        """Start with no patches.

        Args:
            geometry: The layer's geometry.
            margin: Taps to add around the kernel.
            seed: Seed of the sampling.
        """
        self.geometry = geometry
        self.margin = margin
        self.count = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._shift: Tensor | None = None
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, x: Tensor, patches: int) -> None:
        """Sample patches from one input.

        Args:
            x: (N, C_in, H, W) or (C_in, H, W).
            patches: How many to take; every patch is taken where there are fewer.

        Raises:
            ValueError: The layer does not accept the input.
        """
        for part in self._samples(x.detach(), patches):
            if not part.shape[1]:
                continue  # a batch of nothing has no mean
            sample = part.to(torch.float64)
            if self._shift is None or self._sum is None or self._products is None:
                # Sums about a first estimate of the mean lose no digits to a large mean.
                self._shift = sample.mean(1, keepdim=True)
                self._sum = torch.zeros_like(self._shift)
                self._products = sample.new_zeros(len(sample), sample.shape[2], sample.shape[2])
            sample -= self._shift
            self._sum += sample.sum(1, keepdim=True)
            self._products.baddbmm_(sample.mT, sample)
            self.count += sample.shape[1]

    def moments(self) -> Moments:
        """Finish the sums.

        Raises:
            ValueError: No patch was added.
        """
        if self._shift is None or self._sum is None or self._products is None:
            raise ValueError("no patches were collected; the layer was never called")
        mean = self._sum / self.count
        covariance = self._products / self.count
        covariance -= mean.mT @ mean
        return Moments(
            (mean + self._shift)[:, 0],
            (covariance + covariance.mT).div_(2),
            self.geometry.kernel_size,
            self.margin,
            self.count,
        )

    def _samples(self, x: Tensor, patches: int) -> Iterator[Tensor]:
        """Gather patches, (groups, count, in/groups * H * W), so many at a time as memory holds."""
        geometry, (rows, cols) = self.geometry, self.margin
        if x.dim() == 3:
            x = x[None]
        if x.dim() != 4 or x.shape[1] != geometry.in_channels:
            raise ValueError(
                f"batches must hold inputs of shape (N, {geometry.in_channels}, H, W), "
                f"got {tuple(x.shape)}"
            )
        (dy, dx), (sy, sx) = geometry.dilation, geometry.stride
        size = geometry.output_size(x.shape[2], x.shape[3])
        if min(size) < 1:
            raise ValueError(
                f"batches must hold inputs as large as the kernel, got {tuple(x.shape)} for a "
                f"kernel of {geometry.extent[0]}x{geometry.extent[1]} pixels"
            )
        mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
        x = F.pad(x, geometry.padding, mode)
        x = F.pad(x, (cols * dx, cols * dx, rows * dy, rows * dy))
        total = len(x) * math.prod(size)
        chosen = torch.randperm(total, generator=self._generator)[:patches].to(x.device)
        height, width = (k + 2 * m for k, m in zip(geometry.kernel_size, self.margin, strict=True))
        stride = x.stride()
        taps = x.as_strided(
            (len(x), size[0], size[1], x.shape[1], height, width),
            (stride[0], stride[2] * sy, stride[3] * sx, stride[1], stride[2] * dy, stride[3] * dx),
            x.storage_offset(),
        )
        values = geometry.in_channels * height * width
        for part in chosen.split(max(1, SAMPLE_BYTES // (8 * values))):
            image, row, col = part // math.prod(size), part // size[1] % size[0], part % size[1]
            picked: Tensor = taps[image, row, col]
            grouped: Tensor = picked.unflatten(1, (geometry.groups, -1))
            yield grouped.flatten(2).transpose(0, 1)
