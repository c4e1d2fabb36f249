"""The error of a rewritten layer or model on data that no fit has seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convfactor.conv.geometry import ConvGeometry
from convfactor.model.outputs import values
from convfactor.model.trees import leaves

# Differences of whole models below so many epsilons of the outputs' size are those of rounding.
ROUNDING = 4.0


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
    """Running sums over pairs of a true output and a rewritten one."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._count = 0.0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None
        self._wrong: Tensor | None = None
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
        wrong = (got.to(torch.float64) - exact).square()
        worst = float(wrong.mean())
        sums = exact.sum((0, 2, 3)), exact.square().sum((0, 2, 3)), wrong.sum((0, 2, 3))
        if self._sum is None or self._squares is None or self._wrong is None:
            self._sum, self._squares, self._wrong = sums
        else:
            self._sum, self._squares = self._sum + sums[0], self._squares + sums[1]
            self._wrong = self._wrong + sums[2]
        self._count += exact.numel() / exact.shape[1]
        self._worst_batch = max(self._worst_batch, worst)
        if border is not None and border.any():
            rim = wrong[..., border]
            self._border = [self._border[0] + float(rim.sum()), self._border[1] + rim.numel()]

    @property
    def seen(self) -> bool:
        """Whether anything was added."""
        return self._sum is not None

    def errors(self) -> OutputErrors:
        """Finish the sums.

        Raises:
            ValueError: Nothing was added.
        """
        if self._sum is None or self._squares is None or self._wrong is None:
            raise ValueError("no outputs were compared")
        variance = (self._squares - self._sum.square() / self._count).clamp_min(0) / self._count
        wrong = self._wrong / self._count
        pooled = float(variance.mean())
        border = self._border[0] / self._border[1] if self._border[1] else None
        return OutputErrors(
            pooled=_ratio(float(wrong.mean()), pooled),
            worst_batch=_ratio(self._worst_batch, pooled),
            worst_channel=max(
                _ratio(w, v) for w, v in zip(wrong.tolist(), variance.tolist(), strict=True)
            ),
            border=None if border is None else _ratio(border, pooled),
        )


def layer_errors(
    rewritten: Callable[[Tensor], Tensor],
    pairs: Iterable[tuple[Tensor, Tensor]],
    geometry: ConvGeometry,
) -> OutputErrors:
    """Compare a layer with what it replaces, on full outputs, in the dtype of the inputs.

    Args:
        rewritten: What takes the original's place.
        pairs: Inputs of the layer's calls, each with the original's output.
        geometry: The layer's geometry, which says which outputs read padding.
    """
    meter = ErrorMeter()
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


def _ratio(wrong: float, power: float) -> float:
    """Square root of a ratio of powers; an output that never varies has no scale of error."""
    if power == 0:
        return 0.0 if wrong == 0 else math.inf
    return math.sqrt(wrong / power)


def output_errors(pairs: Iterable[tuple[Any, Any]]) -> tuple[float, ...]:
    """Relative error of every floating-point or complex output, pooled over calls.

    Root mean square of the error over the standard deviation of the true output. As for a layer,
    an output of images, (N, C, H, W) with more than a pixel each, deviates from the mean of each
    channel (so the variance is the sum over the channels); any other output from its one mean. An
    output of one value that is the same in every call is measured against that value.

    Args:
        pairs: True outputs, each with the one that a rewritten model gave, of the same structure.
    """
    # Per output and number of channels: a shift, and sums that a later call adds to.
    sums: dict[str, dict[int, tuple[Tensor, ...]]] = {}
    several: set[str] = set()
    for true_output, got_output in pairs:
        others = dict(leaves(got_output))
        for path, leaf in leaves(true_output):
            true, got = values(leaf), values(others[path])
            if true is None or got is None:
                continue
            known = sums.setdefault(path, {})
            if not true.numel():
                continue
            if true.numel() > 1:
                several.add(path)
            exact, wrong = _finite(_by_channel(true), _by_channel(got), true.dtype)
            # From the first value: what is constant deviates by exactly nothing.
            shift, *before = known.get(len(exact), (exact[:, :1], *[exact.new_zeros(())] * 4))
            exact = exact - shift
            count = exact.new_tensor(exact.shape[1])
            now = (count, exact.sum(1), exact.square().sum(1), wrong.square().sum())
            added = (a + b for a, b in zip(before, now, strict=True))
            known[len(exact)] = (shift, *added)
    return tuple(
        _relative(list(parts.values()), path not in several) for path, parts in sums.items()
    )


def _finite(exact: Tensor, got: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Values and errors; what is infinite or no number in both, and rounding, is no error."""
    same = (got == exact) | (got.isnan() & exact.isnan())
    wrong = torch.where(same, 0.0, got - exact)
    finite = exact.isfinite()
    exact = torch.where(finite, exact, 0.0)
    mean = exact.sum(1, keepdim=True) / finite.sum(1, keepdim=True).clamp_min(1)
    rounding = ROUNDING * torch.finfo(dtype).eps * float(exact.square().mean().sqrt())
    wrong = wrong * (float(wrong.square().mean().sqrt()) > rounding)
    return torch.where(finite, exact, mean), wrong


def _by_channel(output: Tensor) -> Tensor:
    """Values in float64, (C, values) for images and (1, values) otherwise."""
    exact = output.to(torch.float64)
    if exact.dim() == 4 and exact[0, 0].numel() > 1:
        return exact.transpose(0, 1).flatten(1)
    return exact.reshape(1, -1)


def _relative(parts: Sequence[tuple[Tensor, ...]], single: bool) -> float:
    """Root mean square error over the standard deviation."""
    wrong = sum(float(part[4]) for part in parts)
    variance = sum(
        float((squares - total.square() / count).clamp_min(0).sum())
        for _, count, total, squares, _ in parts
    )
    if variance == 0 and single:
        variance = sum(float(count * shift.square().sum()) for shift, count, *_ in parts)
    return _ratio(wrong, variance)
