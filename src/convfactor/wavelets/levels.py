"""One level of the dual-tree transform: merging its bands into an image, and splitting one.

Both are linear and adjoint to each other when one takes the transposed filters, so each is the
other's gradient, to any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from convfactor.wavelets import kernels
from convfactor.wavelets.banded import apply
from convfactor.wavelets.banks import Bank


def merge(low: Tensor | None, bands: Tensor | None, bank: Bank) -> Tensor:
    """Compute an image from its lowpass and its six complex bands, at least one of them given.

    Args:
        low: Lowpass (N, r, c).
        bands: Bands (N, 6, r / 2, c / 2, 2), real and imaginary parts last.
        bank: The level's filters.
    """
    if not bank.fixed:
        return _merge(low, bands, bank, False)
    if kernels.take(bank, low, bands) and not _transformed(low, bands):
        return kernels.merge(low, bands, bank)
    if torch.compiler.is_compiling():
        given = [part for part in (low, bands) if part is not None]
        sizes = low.shape[1:] if low is not None else [2 * side for side in given[0].shape[2:4]]
        bank.complete(sizes, any(part.requires_grad for part in given))
    return _apply_merge(low, bands, bank, False)


def split(image: Tensor, bank: Bank, with_bands: bool = True) -> tuple[Tensor, Tensor | None]:
    """Compute the lowpass and, if asked for, the six complex bands of an image (N, H, W)."""
    if kernels.take(bank, image) and not _transformed(image):
        return kernels.split(image, bank, with_bands)
    wanted = (True, with_bands)
    if bank.fixed and torch.compiler.is_compiling():
        bank.complete(image.shape[1:], image.requires_grad)
    run = _apply_split if bank.fixed else _split
    parts = run(image, bank, False, wanted)
    return parts[0], parts[1] if with_bands else None


def _transformed(*given: Tensor | None) -> bool:
    """Whether `torch.func` or forward mode is at work, which need rules of their own.

    Functions with these rules are slower to call, and dynamo refuses them.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or any(
        forward_ad.unpack_dual(one).tangent is not None for one in given if one is not None
    )


def _apply_merge(low: Tensor | None, bands: Tensor | None, bank: Bank, transposed: bool) -> Tensor:
    kind = _TransformableMerge if _transformed(low, bands) else _Merge
    image: Tensor = kind.apply(low, bands, bank, transposed)  # type: ignore[no-untyped-call]
    return image


def _apply_split(
    image: Tensor, bank: Bank, transposed: bool, wanted: tuple[bool, bool]
) -> tuple[Tensor, ...]:
    kind = _TransformableSplit if _transformed(image) else _Split
    parts: tuple[Tensor, ...] = kind.apply(  # type: ignore[no-untyped-call]
        image, bank, transposed, wanted
    )
    return parts


class _Merge(Function):
    @staticmethod
    def forward(
        ctx: Any, low: Tensor | None, bands: Tensor | None, bank: Bank, transposed: bool
    ) -> Tensor:
        _remember_merge(ctx, bank, transposed)
        return _merge_in_chunks(low, bands, bank, transposed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        if grad is None:
            return None, None, None, None
        wanted = tuple(ctx.needs_input_grad[:2])
        grad = grad.to(ctx.bank.dtype)
        parts = iter(_apply_split(grad, ctx.bank, not ctx.transposed, wanted))
        low, bands = (next(parts) if one else None for one in wanted)
        return low, bands, None, None


class _TransformableMerge(_Merge):
    """Linear: tangents go the way of values, and batches of batches are batches."""

    @staticmethod
    def forward(  # type: ignore[override]
        low: Tensor | None, bands: Tensor | None, bank: Bank, transposed: bool
    ) -> Tensor:
        return _merge_in_chunks(low, bands, bank, transposed)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _remember_merge(ctx, *inputs[2:])

    @staticmethod
    def jvp(ctx: Any, low: Tensor | None, bands: Tensor | None, *_: None) -> Tensor:
        return _apply_merge(low, bands, ctx.bank, ctx.transposed)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        low: Tensor | None,
        bands: Tensor | None,
        bank: Bank,
        transposed: bool,
    ) -> tuple[Tensor, int]:
        low, bands = (
            None if one is None else _fold(one, dim, info.batch_size)
            for one, dim in zip((low, bands), in_dims[:2], strict=True)
        )
        image = _apply_merge(low, bands, bank, transposed)
        return image.unflatten(0, (info.batch_size, -1)), 0


class _Split(Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, bank: Bank, transposed: bool, wanted: tuple[bool, bool]
    ) -> tuple[Tensor, ...]:
        _remember_split(ctx, bank, transposed, wanted)
        return _split_in_chunks(image, bank, transposed, wanted)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        if all(grad is None for grad in grads):
            return None, None, None, None
        parts = iter(None if grad is None else grad.to(ctx.bank.dtype) for grad in grads)
        low, bands = (next(parts) if one else None for one in ctx.wanted)
        image = _apply_merge(low, bands, ctx.bank, not ctx.transposed)
        return image, None, None, None


class _TransformableSplit(_Split):
    """See `_TransformableMerge`."""

    @staticmethod
    def forward(  # type: ignore[override]
        image: Tensor, bank: Bank, transposed: bool, wanted: tuple[bool, bool]
    ) -> tuple[Tensor, ...]:
        return _split_in_chunks(image, bank, transposed, wanted)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _remember_split(ctx, *inputs[1:])

    @staticmethod
    def jvp(ctx: Any, image: Tensor, *_: None) -> tuple[Tensor, ...]:
        return _apply_split(image, ctx.bank, ctx.transposed, ctx.wanted)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], image: Tensor, *rest: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        parts = _apply_split(_fold(image, in_dims[0], info.batch_size), *rest)
        unfolded = tuple(part.unflatten(0, (info.batch_size, -1)) for part in parts)
        return unfolded, (0,) * len(unfolded)


def _remember_merge(ctx: Any, bank: Bank, transposed: bool) -> None:
    ctx.bank, ctx.transposed = bank, transposed
    ctx.set_materialize_grads(False)


def _remember_split(ctx: Any, bank: Bank, transposed: bool, wanted: tuple[bool, bool]) -> None:
    ctx.bank, ctx.transposed, ctx.wanted = bank, transposed, wanted
    ctx.set_materialize_grads(False)


def _merge_in_chunks(
    low: Tensor | None, bands: Tensor | None, bank: Bank, transposed: bool
) -> Tensor:
    def part(index: slice) -> tuple[Tensor]:
        one = None if low is None else low[index]
        other = None if bands is None else bands[index]
        return (_merge(one, other, bank, transposed),)

    if low is not None:
        count, pixels = low.shape[0], low.shape[1] * low.shape[2]
    else:
        assert bands is not None
        count, pixels = bands.shape[0], 4 * bands.shape[2] * bands.shape[3]
    return _in_chunks(part, count, pixels, bank)[0]


def _split_in_chunks(
    image: Tensor, bank: Bank, transposed: bool, wanted: tuple[bool, bool]
) -> tuple[Tensor, ...]:
    def part(index: slice) -> tuple[Tensor, ...]:
        return _split(image[index], bank, transposed, wanted)

    return _in_chunks(part, image.shape[0], image.shape[1] * image.shape[2], bank)


def _fold(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Images of a vmap as one batch: every level works on each image by itself."""
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.flatten(0, 1)


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

    def add(axis: int, **signals: Tensor | None) -> Tensor | None:
        given = {name: signal for name, signal in signals.items() if signal is not None}
        if not given:
            return None
        size = next(iter(given.values())).shape[axis]
        return apply(bank.operator(tuple(given), size, transposed), list(given.values()), axis)

    low_rows = add(-2, low=low, half=lh)
    if bank.diagonal:
        high_rows, band_rows = add(-2, low=hl), add(-2, band=hh)
    else:
        high_rows, band_rows = add(-2, low=hl, high=hh), None
    image = add(-1, low=low_rows, half=high_rows, half_band=band_rows)
    assert image is not None
    return image


def _split(
    image: Tensor, bank: Bank, transposed: bool, wanted: tuple[bool, bool]
) -> tuple[Tensor, ...]:
    def filtered(name: str, signal: Tensor, axis: int) -> Tensor:
        return apply(bank.operator((name,), signal.shape[axis], transposed), [signal], axis)

    with_low, with_bands = wanted
    low_rows = filtered("low", image, -1)
    results = (filtered("low", low_rows, -2),) if with_low else ()
    if not with_bands:
        return results
    high_rows = filtered("half", image, -1)
    lh = _pair(filtered("half", low_rows, -2))
    hl = _pair(filtered("low", high_rows, -2))
    if bank.diagonal:
        hh = _pair(filtered("band", filtered("half_band", image, -1), -2))
    else:
        hh = _pair(filtered("high", high_rows, -2))
    return (*results, torch.stack((lh[0], hh[0], hl[0], hl[1], hh[1], lh[1]), dim=1))


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
