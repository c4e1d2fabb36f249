"""The error of a rewritten layer on data that no fit has seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from convfactor.conv.geometry import ConvGeometry


@dataclass(frozen=True)
class OutputErrors:
    """Errors of an output: root mean square over the standard deviation of the true output.

    Attributes:
        pooled: Over everything; the figure that the tolerance bounds.
        worst_batch: The largest over the batches, relative to the pooled deviation.
        worst_channel: The largest over the output channels, each relative to its own deviation.
        border: Over the pixels that read padding, relative to the pooled deviation; None where
            there are none.
    """

    pooled: float
    worst_batch: float
    worst_channel: float
    border: float | None


class ErrorMeter:
    """Running sums over pairs of a true output and a rewritten one.

    Attributes:
        seen: Whether anything was added.
    """

    def __init__(self, channels: int, gains: Tensor | None = None) -> None:
        """Start with nothing seen.

        The sums are allocated here, before a model runs: what is kept of every layer while it runs
        cuts up the memory that its images leave, and those of 1000 layers took 5 GB more.

        Args:
            channels: C, those of the outputs.
            gains: (C,), what the channels of the outputs are scaled by before they are compared;
                None for nothing.
        """
        self.seen = False
        self._gains = gains
        self._count = 0.0
        # Of values, of their squares, and of the squares of what is wrong, by channel.
        self._sums = torch.zeros(3, channels, dtype=torch.float64)
        self._worst_batch = 0.0
        self._border = [0.0, 0.0]

    def add(self, true: Tensor, got: Tensor, border: Tensor | None = None) -> None:
        """Take in one batch.

        Args:
            true: Output of the original, (N, C, H, W) or (C, H, W).
            got: Output of the rewrite, of the same shape.
            border: Bool (H, W), True where a pixel reads padding.
        """
        if true.dim() == 3:
            true, got = true[None], got[None]
        exact = true.to(torch.float64)
        wrong = got.to(torch.float64) - exact
        if self._gains is not None:
            gains = self._gains.to(exact)[:, None, None]
            exact, wrong = exact * gains, wrong * gains
        wrong = wrong.square()
        worst = float(wrong.mean().nan_to_num(torch.inf, torch.inf))
        self._sums += torch.stack(
            [each.sum((0, 2, 3)) for each in (exact, exact.square(), wrong)]
        ).cpu()
        self.seen = True
        self._count += exact.numel() / exact.shape[1]
        self._worst_batch = max(self._worst_batch, worst)
        if border is not None and border.any():
            rim = wrong[..., border]
            self._border = [self._border[0] + float(rim.sum()), self._border[1] + rim.numel()]

    def errors(self) -> OutputErrors:
        """Finish the sums.

        Raises:
            ValueError: Nothing was added.
        """
        if not self.seen:
            raise ValueError("no outputs were compared")
        total, squares, wrong = self._sums
        variance = (squares - total.square() / self._count).clamp_min(0) / self._count
        wrong = wrong / self._count
        pooled = float(variance.mean())
        border = self._border[0] / self._border[1] if self._border[1] else None
        return OutputErrors(
            pooled=relative_error(float(wrong.mean()), pooled),
            worst_batch=relative_error(self._worst_batch, pooled),
            worst_channel=max(
                relative_error(w, v) for w, v in zip(wrong.tolist(), variance.tolist(), strict=True)
            ),
            border=None if border is None else relative_error(border, pooled),
        )


def layer_errors(
    rewritten: Callable[[Tensor], Tensor],
    pairs: Iterable[tuple[Tensor, Tensor]],
    geometry: ConvGeometry,
    gains: Tensor | None = None,
) -> OutputErrors:
    """Compare a layer with what it replaces, on full outputs, in the dtype of the inputs.

    Args:
        rewritten: What takes the original's place.
        pairs: Inputs of the layer's calls, each with the original's output.
        geometry: The layer's geometry, which says which outputs read padding.
        gains: (C_out,), what the channels are scaled by before they are compared; None for nothing.
    """
    meter = ErrorMeter(geometry.out_channels, gains)
    with torch.no_grad():
        for x, true in pairs:
            border = reads_padding(geometry, (x.shape[-2], x.shape[-1]))
            meter.add(true, rewritten(x), border.to(x.device))
    return meter.errors()


def reads_padding(geometry: ConvGeometry, size: tuple[int, int]) -> Tensor:
    """Mark the output pixels whose patch holds padding, bool (H_out, W_out)."""
    left, right, top, bottom = geometry.padding
    sides = []
    for i, (before, after) in enumerate(((top, bottom), (left, right))):
        first = torch.arange(geometry.output_size(*size)[i]) * geometry.stride[i] - before
        sides.append((first < 0) | (first + geometry.extent[i] > size[i]) & (after > 0))
    return sides[0][:, None] | sides[1][None, :]


def relative_error(wrong: float, power: float) -> float:
    """Square root of a ratio of powers.

    Infinite for an output that never varies, which has no scale of error, and where a value is no
    number, as the largest of several errors would be anything beside a NaN.
    """
    if wrong == 0:
        return 0.0
    ratio = wrong / power if power else math.inf
    return math.inf if math.isnan(ratio) else math.sqrt(ratio)
