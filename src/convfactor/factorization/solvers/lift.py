"""Splitting kernels in two as matrices of low rank."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from convfactor.conv.geometry import Pair
from convfactor.conv.grid import Grid, positions
from convfactor.factorization.budget import Budget

Parts = tuple[Tensor, Tensor]


class Lift:
    """Kernels ``W`` as ``T[q, p]`` with ``W[r] = sum T[q, p]`` over ``p + q = r``.

    ``q`` are the taps of a stage and ``p`` those of the rest, whose product has the rank of the
    width between them.

    Args:
        span: (H, W) of the kernels.
        size: Taps of the stage.
        spacing: Distance of the stage's taps.
        like: A tensor of the dtype and device to compute with.
    """

    def __init__(self, span: Pair, size: Pair, spacing: Pair, like: Tensor) -> None:
        """Count how often each pixel is lifted."""
        (height, width), (rows, cols) = span, Grid((size,), (spacing,)).span
        self.reach = (height - rows + 1, width - cols + 1)
        self.taps = list(positions(size, spacing))
        self._span = span
        self._times = self._fold(like.new_ones(len(self.taps), *self.reach)).clamp_min(1)

    def split(
        self,
        kernels: Tensor,
        truncate: Callable[[Tensor, Parts], tuple[Parts, Tensor]],
        parts: Parts,
        rounds: int,
        budget: Budget,
    ) -> Parts:
        """Alternate between what has the rank and what folds to the kernels.

        Args:
            kernels: (..., H, W).
            truncate: Takes (..., taps, h, w) and the last parts, and gives new ones and their
                product, of the same shape.
            parts: What to begin with.
            rounds: How often.
            budget: Time after which to alternate no further.
        """
        lift = self._spread(kernels / self._times)
        for _ in range(rounds):
            parts, low = truncate(lift, parts)
            lift = low + self._spread((kernels - self._fold(low)) / self._times)
            if budget.used_up():
                break
        return parts

    def _spread(self, kernels: Tensor) -> Tensor:
        """What each tap of the stage meets, (..., taps, h, w)."""
        height, width = self.reach
        return torch.stack([kernels[..., y : y + height, x : x + width] for y, x in self.taps], -3)

    def _fold(self, lift: Tensor) -> Tensor:
        """Add up what belongs to the same pixel, (..., H, W)."""
        height, width = self.reach
        result = lift.new_zeros(*lift.shape[:-3], *self._span)
        for tap, (y, x) in enumerate(self.taps):
            result[..., y : y + height, x : x + width] += lift[..., tap, :, :]
        return result
