"""Random CascadeConv2d layers beside the nn.Conv2d that they stand in for."""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from tally import Tally
from torch import Tensor, nn

from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.layer import CascadeConv2d
from convfactor.conv.structure import StageShape, Structure

SECONDS = 2.0
MODES = ("zeros", "reflect", "replicate", "circular")
DTYPES = (torch.float64, torch.float64, torch.float32, torch.float32, torch.bfloat16, torch.half)
# Multiples of a dtype's epsilon: sums of up to some hundred products, one rounding per stage.
ROUNDINGS = {torch.float64: 200, torch.float32: 200, torch.bfloat16: 20, torch.half: 20}


@dataclass(frozen=True, eq=False)
class Case:
    """An original, its cascade in float64, what runs in its place, and an input.

    Attributes:
        conv: The original; its weight is the composed kernel where ``fits``.
        cascade: The cascade, its weights rounded to the dtype.
        layer: The layer.
        x: An image that the original takes, or does not.
        fits: Whether the composed kernel lies on the taps of the original.
    """

    conv: nn.Conv2d
    cascade: Cascade
    layer: CascadeConv2d
    x: Any
    fits: bool

    def __str__(self) -> str:
        shape = (tuple(self.x.shape), self.x.stride(), self.x.dtype)
        return f"{self.conv} as {self.layer.structure} on {shape}"


def structure(rng: random.Random) -> Structure:
    """Draw up to three small stages with strides, dilations, groups and branches."""
    groups = rng.choice([1, 1, 1, 2, 3])
    widths = [groups * rng.randint(1, 3) for _ in range(rng.randint(2, 4))]
    stages = []
    for before, after in pairwise(widths):
        inner = rng.choice([groups, math.gcd(before, after)])
        sides = ((rng.randint(1, most), rng.randint(1, most)) for most in (3, 2, 2))
        stages.append(StageShape(before, after, *sides, inner))
    return Structure(tuple(stages))


def draw(rng: random.Random) -> Case:
    """Draw a case; small numbers of a generator that shrinks give simple ones."""
    shape, dilation = structure(rng), rng.choice([(1, 1), (1, 1), (2, 1), (2, 3)])
    if any(stage.stride != (1, 1) for stage in shape.stages[:-1]):
        dilation = (1, 1)
    shape = shape.dilated(dilation)
    fits = rng.random() < 0.8
    grow = rng.choice([(0, 0), (0, 0), (1, 2)] if fits else [(-1, -2), (0, -1), (2, 2)])
    spans = zip(shape.span, dilation, grow, strict=True)
    kernel = [max(1, (span - 1) // d + 1 + more) for span, d, more in spans]
    if fits:
        offset = tuple(rng.randint(0, g) * d for g, d in zip(grow, dilation, strict=True))
    else:
        offset = (rng.randint(-2, 2), rng.randint(-2, 2))
    cascade = Cascade.random(replace(shape, offset=offset), rng.randint(0, 999))
    paddings = [0, 1, 2, 4, "valid", (0, 3), (2, 1)] + ["same"] * 2 * (shape.stride == (1, 1))
    dtype = rng.choice(DTYPES)
    first, last = shape.stages[0], shape.stages[-1]
    conv = nn.Conv2d(
        first.in_channels,
        last.out_channels,
        kernel,
        shape.stride,
        rng.choice(paddings),
        dilation,
        shape.groups,
        bias=rng.random() < 0.5,
        padding_mode=rng.choice(MODES),
        dtype=dtype,
    )
    cascade = cascade.to(dtype)
    with torch.no_grad():
        if fits:
            (row, col), (height, width) = offset, cascade.structure.span
            extent = ConvGeometry.from_conv(conv).extent
            full = torch.zeros(*conv.weight.shape[:2], *extent, dtype=torch.float64)
            full[..., row : row + height, col : col + width] = cascade.compose()
            conv.weight.copy_(full[..., :: dilation[0], :: dilation[1]])
        if conv.bias is not None:
            conv.bias.copy_(torch.linspace(-1, 1, len(conv.bias)))
    for parameter in conv.parameters():
        parameter.requires_grad_(rng.random() < 0.8)
    if rng.random() < 0.3:
        conv = conv.to(memory_format=torch.channels_last)
    run = rng.choice([None, None, torch.channels_last, torch.contiguous_format])
    layer = CascadeConv2d.from_conv(conv, cascade, run)
    return Case(conv, cascade, layer, _image(rng, layer.geometry, dtype), fits)


def _image(rng: random.Random, geometry: ConvGeometry, dtype: torch.dtype) -> Tensor:
    """Draw an input, sometimes one that no convolution takes."""
    left, right, top, bottom = geometry.padding
    sizes, legal_only = [], rng.random() < 0.8
    for extent, pads in zip(geometry.extent, ((top, bottom), (left, right)), strict=True):
        least = {"zeros": 1, "replicate": 1, "circular": max(pads), "reflect": max(pads) + 1}
        legal = max(1, extent - sum(pads), least[geometry.padding_mode])
        if legal_only:
            sizes.append(legal + rng.choice([0, 1, 2, rng.randint(3, 9)]))
        else:
            sizes.append(rng.choice([0, 1, max(0, legal - 1)]))
    channels = geometry.in_channels
    if rng.random() < 0.05:
        channels = rng.choice([0, channels + 1])
    shape = [*rng.choice([[2], [1], [0], []]), channels, *sizes]
    if rng.random() < 0.03:
        shape = rng.choice([shape[-2:], [1, *shape], [2, 1, *shape], shape[-1:], []])
    # torch takes an empty batch of any dtype, if the layer has no bias.
    if rng.random() < 0.03 and math.prod(shape):
        dtype = rng.choice([*DTYPES, torch.int64, torch.complex64, torch.bool])
    generator = torch.Generator().manual_seed(rng.randint(0, 999))
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    x = _laid_out(x, rng.choice(["plain", "plain", "last", "turned", "sliced", "spread"]))
    return x.requires_grad_(x.is_floating_point() and rng.random() < 0.3)


def _laid_out(x: Tensor, layout: str) -> Tensor:
    """Put an image into memory in another way."""
    if layout == "last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "last" and x.dim() == 3:
        return x[None].contiguous(memory_format=torch.channels_last)[0]
    if layout == "turned" and x.dim() > 1:
        return x.mT.contiguous().mT
    if layout == "sliced" and x.dim() > 1:
        return F.pad(x, (0, 1, 1, 0))[..., 1:, : x.shape[-1]]
    if layout == "spread" and x.dim() and x.shape[0]:
        return x[:1].expand_as(x)
    return x


def equivalent(case: Case) -> Tensor:
    """Pad in the original mode, extend or crop pixel by pixel, apply the composed kernel once."""
    geometry, cascade = case.layer.geometry, case.cascade
    (row, col), (height, width) = cascade.offset, cascade.structure.span
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    x = F.pad(case.x.detach().double(), geometry.padding, mode=mode)
    rows, cols = x.shape[-2:]
    below, beside = height - geometry.extent[0] + row, width - geometry.extent[1] + col
    big = F.pad(x, (50, 50, 50, 50))
    x = big[..., 50 + row : 50 + rows + below, 50 + col : 50 + cols + beside]
    bias = None if case.conv.bias is None else case.conv.bias.detach().double()
    kernel = cascade.compose()
    return F.conv2d(x, kernel, bias, geometry.stride, groups=cascade.structure.groups)


def _loudest(case: Case) -> float:
    """Largest value on the way, from which roundings are measured."""
    size = float(case.x.detach().abs().max())
    for stage in case.cascade.stages:
        size *= float(stage.weight.double().abs().sum((1, 2, 3)).max())
    return size + 1


def _answer(call: nn.Module, x: Any) -> Tensor | type[Exception]:
    """What a module gives, or the kind of error it raises."""
    try:
        return call(x)
    except RuntimeError:  # torch's backends differ in which do not implement a dtype
        return RuntimeError
    except Exception as error:
        return type(error)


def check(case: Case) -> bool:
    """Compare the answers.

    Returns:
        Whether there are some; False where both refuse.
    """
    expected, got = _answer(case.conv, case.x), _answer(case.layer, case.x)
    if isinstance(expected, type) or isinstance(got, type):
        assert got == expected, f"{got if isinstance(got, type) else 'an answer'}, not {expected}"
        return False
    for what in ("shape", "dtype", "layout", "device", "requires_grad"):
        one, other = getattr(got, what), getattr(expected, what)
        assert one == other, f"{what} {one}, not {other}"
    assert got.stride() == expected.stride(), f"strides {got.stride()}, not {expected.stride()}"
    if got.numel():
        limit = ROUNDINGS[got.dtype] * torch.finfo(got.dtype).eps * _loudest(case)
        wrong = float((got.detach().double() - equivalent(case)).abs().max())
        assert wrong <= limit, f"wrong by {wrong:.2e}"
        if case.fits and got.dtype == torch.float64:
            wrong = float((got - expected).detach().abs().max())
            assert wrong <= 1e-10 * max(1.0, float(expected.detach().abs().max())), f"by {wrong}"
            _check_gradients(case, got, expected)
    return True


def _check_gradients(case: Case, got: Tensor, expected: Tensor) -> None:
    """Compare the gradients of the input."""
    if case.x.requires_grad:
        pull = torch.linspace(-1, 1, got.numel(), dtype=got.dtype).view(got.shape)
        (mine,) = torch.autograd.grad(got, case.x, pull)
        (theirs,) = torch.autograd.grad(expected, case.x, pull)
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def run(count: int, seed: int = 0) -> Tally:
    """Compare random layers; case ``i`` is drawn from the seed ``(seed, i)``."""
    tally = Tally("layers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(count):
            case = draw(random.Random(f"{seed}, {i}"))
            with tally.case(f"layer {seed}, {i}: {case}", SECONDS):
                if not check(case):
                    tally.refused += 1
    return tally


if __name__ == "__main__":
    import sys

    result = run(*map(int, sys.argv[1:]))
    print(result, *result.wrong, *result.raw, *result.late, sep="\n")
