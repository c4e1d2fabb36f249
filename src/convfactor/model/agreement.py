"""How far the outputs of a rewritten model are from the original's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from convfactor.conv.accuracy import relative_error
from convfactor.model.outputs import values
from convfactor.model.trees import leaves

# Differences below so many epsilons of the outputs' size are those of rounding.
ROUNDING = 4.0


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
    return relative_error(wrong, variance)
