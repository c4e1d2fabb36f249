"""One level of the dual-tree transform: merging its bands into an image, and splitting one.

Both are linear and adjoint to each other when one takes the transposed filters, so each is the
other's gradient, to any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from convfactor.wavelets.banded import Banded, apply
from convfactor.wavelets.banks import Bank


def merge(low: Tensor | None, bands: Tensor | None, bank: Bank) -> Tensor:
    """Compute an image from its lowpass and its six complex bands, at least one of them given.

    Args:
        low: Lowpass (N, r, c).
        bands: Bands (N, 6, r / 2, c / 2, 2), real and imaginary parts last.
        bank: The level's filters.
    """
    image: Tensor = _Merge.apply(low, bands, bank, False)  # type: ignore[no-untyped-call]
    return image


def split(image: Tensor, bank: Bank, with_bands: bool = True) -> tuple[Tensor, Tensor | None]:
    """Compute the lowpass and, if asked for, the six complex bands of an image (N, H, W)."""
    low, bands = _Split.apply(image, bank, False, True, with_bands)  # type: ignore[no-untyped-call]
    return low, bands


class _Merge(Function):
    @staticmethod
    def forward(
        ctx: Any, low: Tensor | None, bands: Tensor | None, bank: Bank, transposed: bool
    ) -> Tensor:
        ctx.bank, ctx.transposed = bank, transposed

        def part(index: slice) -> tuple[Tensor]:
            return (
                _merge(
                    None if low is None else low[index],
                    None if bands is None else bands[index],
                    bank,
                    transposed,
                ),
            )

        if low is not None:
            count, pixels = low.shape[0], low.shape[1] * low.shape[2]
        else:
            assert bands is not None
            count, pixels = bands.shape[0], 4 * bands.shape[2] * bands.shape[3]
        return _in_chunks(part, count, pixels, bank)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        wanted = ctx.needs_input_grad[:2]
        grad = grad.to(ctx.bank.low.taps.weight.dtype)
        low, bands = _Split.apply(  # type: ignore[no-untyped-call]
            grad, ctx.bank, not ctx.transposed, *wanted
        )
        return low, bands, None, None


class _Split(Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, bank: Bank, transposed: bool, with_low: bool, with_bands: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.bank, ctx.transposed = bank, transposed
        ctx.set_materialize_grads(False)

        def part(index: slice) -> tuple[Tensor, ...]:
            return _split(image[index], bank, transposed, with_low, with_bands)

        parts = list(_in_chunks(part, image.shape[0], image.shape[1] * image.shape[2], bank))
        low = parts.pop(0) if with_low else None
        return low, parts.pop(0) if with_bands else None

    @staticmethod
    def backward(
        ctx: Any, low: Tensor | None, bands: Tensor | None
    ) -> tuple[Tensor | None, None, None, None, None]:
        if low is None and bands is None:
            return None, None, None, None, None
        dtype = ctx.bank.low.taps.weight.dtype
        image = _Merge.apply(  # type: ignore[no-untyped-call]
            None if low is None else low.to(dtype),
            None if bands is None else bands.to(dtype),
            ctx.bank,
            not ctx.transposed,
        )
        return image, None, None, None, None


def _in_chunks(
    function: Callable[[slice], tuple[Tensor, ...]], count: int, pixels: int, bank: Bank
) -> tuple[Tensor, ...]:
    """Run over the images a few at a time, so that intermediate results stay in the cache."""
    if torch.compiler.is_compiling():
        return function(slice(None))
    step = max(1, bank.sizes.chunk // max(1, pixels))
    if count <= step:
        return function(slice(None))
    results: tuple[Tensor, ...] = ()
    for start in range(0, count, step):
        index = slice(start, start + step)
        parts = function(index)
        results = results or tuple(part.new_empty(count, *part.shape[1:]) for part in parts)
        for result, part in zip(results, parts, strict=True):
            result[index] = part
    return results


def _merge(low: Tensor | None, bands: Tensor | None, bank: Bank, transposed: bool) -> Tensor:
    lh = hl = hh = None
    if bands is not None:
        lh, hh, hl = (_quads(bands[:, k], bands[:, 5 - k]) for k in range(3))
    given = low if low is not None else lh
    assert given is not None
    low_filter, high_filter, half_filter = _operators(bank, given.shape[-2], transposed)
    low_rows = _sum(-2, (low_filter, low), (half_filter, lh))
    high_rows = _sum(-2, (low_filter, hl), (high_filter, hh))
    low_filter, _, half_filter = _operators(bank, given.shape[-1], transposed)
    image = _sum(-1, (low_filter, low_rows), (half_filter, high_rows))
    assert image is not None
    return image


def _split(
    image: Tensor, bank: Bank, transposed: bool, with_low: bool, with_bands: bool
) -> tuple[Tensor, ...]:
    low_filter, _, half_filter = _operators(bank, image.shape[-1], transposed)
    low_rows = apply([low_filter], [image], -1)
    high_rows = apply([half_filter], [image], -1) if with_bands else None
    low_filter, high_filter, half_filter = _operators(bank, image.shape[-2], transposed)
    results = (apply([low_filter], [low_rows], -2),) if with_low else ()
    if high_rows is not None:
        lh = _pair(apply([half_filter], [low_rows], -2))
        hl = _pair(apply([low_filter], [high_rows], -2))
        hh = _pair(apply([high_filter], [high_rows], -2))
        bands = torch.stack((lh[0], hh[0], hl[0], hl[1], hh[1], lh[1]), dim=1)
        results = (*results, bands)
    return results


def _operators(bank: Bank, size: int, transposed: bool) -> tuple[Banded | Tensor, ...]:
    filters = (bank.low, bank.high, bank.half)
    return tuple(one.operator(size, transposed, bank.sizes.whole) for one in filters)


def _sum(axis: int, *terms: tuple[Banded | Tensor, Tensor | None]) -> Tensor | None:
    operators = [operator for operator, signal in terms if signal is not None]
    signals = [signal for _, signal in terms if signal is not None]
    return apply(operators, signals, axis) if signals else None


def _quads(first: Tensor, second: Tensor) -> Tensor:
    """Lay out two complex subbands (N, h, w, 2) as the 2x2 blocks of an image, unscaled."""
    difference = first - second
    odd = torch.stack((difference[..., 1], -difference[..., 0]), dim=-1)
    return torch.stack((first + second, odd), dim=2).flatten(3, 4).flatten(1, 2)


def _pair(image: Tensor) -> tuple[Tensor, Tensor]:
    """Take the 2x2 blocks of an image for two complex subbands, the adjoint of `_quads`."""
    blocks = image.unflatten(-1, (-1, 2)).unflatten(1, (-1, 2))
    even, odd = blocks.unbind(2)
    difference = torch.stack((-odd[..., 1], odd[..., 0]), dim=-1)
    return even + difference, even - difference
