"""Random kernels for ``factorize``, their answers composed anew, and bounds put to the test."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tally import Tally
from torch import Tensor

import convfactor
from convfactor import Factorization, StageShape, Structure
from convfactor.bounds import Bounds
from convfactor.geometry import ConvGeometry

# Of the time limit, a part for what is not solving: measuring, and what one step may take.
LIMIT, SECONDS = 2.0, 5.0
MODES = ("zeros", "reflect", "replicate", "circular")


def run(count: int, seed: int = 0) -> Tally:
    """Factorize random kernels and check every claim of the answers.

    Args:
        count: Number of kernels.
        seed: Seed of the first; a case is repeated by ``draw(seed)``.
    """
    tally = Tally("kernels")
    for number in range(seed, seed + count):
        weight, arguments, exact = draw(number)
        shape = getattr(weight, "shape", None)
        description = f"draw({number}): {None if shape is None else tuple(shape)} {arguments}"
        with tally.case(description, SECONDS, (ValueError, TypeError)):
            _check(weight, arguments, exact, number)
    return tally


def draw(seed: int) -> tuple[Any, dict[str, Any], bool]:
    """A weight in some form, arguments, and whether an exact cascade of 3x3 stages is known."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    height = rng.choice([1, 2, 3, 4, 5, 5, 6, 7, 7, 8, 9, 9, 11, 15, 31])
    width = height if rng.random() < 0.7 else rng.choice([1, 3, 5, 7, 11])
    large = height * width > 121
    kind = rng.choice(["dense", "grouped", "depthwise", "single"])
    groups = 1 if kind in ("dense", "single") else rng.choice([2, 3, 4] if large else [2, 4, 8, 16])
    per_group, out = 1, groups
    if kind in ("dense", "grouped"):
        per_group = rng.randint(1, 3 if large else 8)
        out = groups * rng.randint(1, 3 if large else 8)
    arguments: dict[str, Any] = {
        "groups": groups,
        "stride": rng.choice([1, 1, 1, 2, (2, 1), 4]),
        "dilation": rng.choice([1, 1, 2, (1, 3)]),
        "seed": rng.randrange(100),
        "progress": False,
        "time_limit": LIMIT,
    }
    question = rng.choice(["tolerance", "tolerance", "stages", "widths"])
    if question == "tolerance":
        arguments["tolerance"] = 10 ** rng.uniform(-6, -0.3)
    elif question == "stages":
        arguments["stages"] = rng.randint(1, 5)
    else:
        arguments["widths"] = tuple(groups * rng.randint(1, 4) for _ in range(rng.randint(1, 3)))
    arguments["preserve_dc"] = rng.random() < 0.1
    weight = torch.randn(out, per_group, height, width, generator=generator, dtype=torch.float64)
    exact = False
    look = rng.random()
    if look < 0.2:
        column = torch.randn(out, per_group, height, 1, generator=generator, dtype=torch.float64)
        weight = column * torch.randn(1, 1, 1, width, generator=generator, dtype=torch.float64)
    elif look < 0.35 and height == width and height % 2 and 5 <= height <= 9:
        weight, exact = _composed(out, per_group, height, groups, seed), question == "tolerance"
        exact = exact and arguments["stride"] == 1
    elif look < 0.4:
        weight = weight * 10 ** rng.uniform(-30, 30)
    elif look < 0.43:
        weight[rng.randrange(out)] = 0
    return _in_some_form(weight, rng, exact), arguments, exact


def _composed(out: int, per_group: int, size: int, groups: int, seed: int) -> Tensor:
    """A kernel that is a cascade of narrow 3x3 stages."""
    widths = [groups * per_group, *[groups] * (size // 2 - 1), out]
    stages = [StageShape(a, b, (3, 3), groups=groups) for a, b in itertools.pairwise(widths)]
    return Structure(tuple(stages)).random(seed).compose()


def _in_some_form(weight: Tensor, rng: random.Random, exact: bool) -> Any:
    """The same kernel as a tensor or an array of some dtype and layout."""
    form = rng.random()
    if exact or form < 0.5:
        return weight if form < 0.25 or exact else weight.float()
    if form < 0.6:
        return weight.to(rng.choice([torch.bfloat16, torch.float16]))
    if form < 0.7:
        return weight.contiguous(memory_format=torch.channels_last)
    if form < 0.8:
        return np.asfortranarray(weight.numpy())[..., ::-1, :]
    if form < 0.87:
        return weight.float().numpy().astype(">f4")
    if form < 0.94 and weight.abs().max() < 100:
        return (weight * 5).round().to(torch.int16)
    return weight[0, 0].tolist() if len(weight) == 1 and weight.shape[1] == 1 else weight


def _check(weight: Any, arguments: dict[str, Any], exact: bool, seed: int) -> None:
    """Every claim of one answer."""
    f = convfactor.factorize(weight, **arguments)
    array = np.array(weight, dtype=np.float64) if not isinstance(weight, Tensor) else weight
    target = torch.as_tensor(array).double()
    target = target[None, None] if target.dim() == 2 else target
    geometry = ConvGeometry.from_weight(
        target, **{k: arguments[k] for k in ("stride", "dilation", "groups")}
    )
    difference = _response(f, geometry) - _placed(target, geometry)
    power = float(target.norm())
    wrong = float(difference.norm())
    error = wrong / power if power else (math.inf if wrong else 0.0)
    assert math.isclose(error, f.error, rel_tol=1e-6, abs_tol=1e-9), f"error {f.error}, is {error}"
    if arguments.get("tolerance") is not None:
        unchanged = len(f.stages) == 1 and f.macs == geometry.macs
        assert f.met == (f.error <= arguments["tolerance"]) or (unchanged and not f.met), "met"
        assert f.met or f.message, "no message"
        assert not exact or f.met or f.timed_out, f"an exact cascade was missed: {f.error}"
    assert f.macs <= geometry.macs, f"{f.macs} multiplies for {geometry.macs}"
    if arguments["preserve_dc"] and f.kernels[0].dtype == torch.float64:
        sums = difference.sum((2, 3)).abs().max()
        assert float(sums) <= 1e-9 * float(target.abs().sum((2, 3)).max()), "the sum moved"
    _check_bounds(difference, geometry, seed)


def _placed(target: Tensor, geometry: ConvGeometry) -> Tensor:
    """The original kernel at input pixels, with room around it, as impulse responses."""
    (height, width), (dy, dx) = geometry.extent, geometry.dilation
    room_y, room_x = _room(geometry)
    canvas = target.new_zeros(*target.shape[:2], height + 2 * room_y, width + 2 * room_x)
    canvas[..., room_y : room_y + height : dy, room_x : room_x + width : dx] = target
    return canvas


def _room(geometry: ConvGeometry) -> tuple[int, int]:
    """Pixels around the kernel that a cascade may reach into."""
    height, width = geometry.extent
    return 3 * height + 8, 3 * width + 8


def _response(f: Factorization, geometry: ConvGeometry) -> Tensor:
    """The cascade's kernel, by running the stages backwards from one output: torch's gradients."""
    (height, width), (room_y, room_x) = geometry.extent, _room(geometry)
    in_per_group = geometry.in_channels // geometry.groups
    size = (height + 2 * room_y, width + 2 * room_x)
    top, left = room_y + f.offset[0], room_x + f.offset[1]
    x = torch.zeros(1, geometry.in_channels, *size, dtype=torch.float64, requires_grad=True)
    y = x[..., top:, left:]
    for stage in f.stages:
        y = F.conv2d(y, stage.weight.double(), None, stage.stride, 0, stage.dilation, stage.groups)
    canvas = []
    for channel in range(geometry.out_channels):
        (gradient,) = torch.autograd.grad(y[0, channel, 0, 0], x, retain_graph=True)
        group = channel // (geometry.out_channels // geometry.groups)
        canvas.append(gradient[0, group * in_per_group : (group + 1) * in_per_group])
    return torch.stack(canvas)


def _check_bounds(difference: Tensor, geometry: ConvGeometry, seed: int) -> None:
    """What a difference does to images never exceeds its bounds, in any padding."""
    rng = random.Random(seed)
    taps = difference.abs().sum((0, 1))
    rows, cols = (torch.nonzero(taps.sum(axis)).flatten() for axis in (1, 0))
    if not len(rows) or difference.shape[0] * difference[0].numel() > 200_000:
        return
    room = _room(geometry)
    (dy, dx), origin = geometry.dilation, []
    for at, spacing, first in ((rows[0], dy, room[0]), (cols[0], dx, room[1])):
        origin.append(-((first - int(at)) // spacing) if int(at) < first else 0)
    top, left = room[0] + origin[0] * dy, room[1] + origin[1] * dx
    bottom, right = int(rows[-1]) + 1, int(cols[-1]) + 1
    on_pixels = difference[..., top:bottom, left:right]
    if on_pixels[..., ::dy, ::dx].abs().sum() < difference.abs().sum() * (1 - 1e-12):
        return  # taps between those of the kernel: not of this frame
    residual = on_pixels[..., ::dy, ::dx]
    pads = tuple(rng.randint(0, 3) for _ in range(4))
    mode = rng.choice(MODES)
    padded = ConvGeometry(
        geometry.in_channels, geometry.out_channels, geometry.kernel_size, geometry.stride,
        pads, geometry.dilation, geometry.groups, mode,
    )  # fmt: skip
    bounds = Bounds.from_residual(residual, geometry.groups, padded, (origin[0], origin[1]))
    height, width = (extent + rng.randint(4, 9) for extent in padded.extent)
    generator = torch.Generator().manual_seed(seed)

    def operator(x: Tensor) -> Tensor:
        x = F.pad(x, pads, mode="constant" if mode == "zeros" else mode)
        extend = _reach(origin, residual.shape[2:], padded)
        return F.conv2d(
            F.pad(x, extend), residual, None, padded.stride, 0, padded.dilation, padded.groups
        )

    shape = (1, padded.in_channels, height, width)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    signs = operator(torch.sign(x)).abs().max()
    assert float(signs) <= bounds.l_inf * (1 + 1e-9), f"l_inf {bounds.l_inf}, found {signs}"
    if not math.isfinite(bounds.spectral):
        return
    for _ in range(12):  # power iteration
        x = x.detach().requires_grad_(True)
        y = operator(x)
        gain = float(y.norm() / x.norm())
        limit = bounds.spectral * (1 + 1e-9) + 1e-300
        assert gain <= limit, f"spectral {bounds.spectral}, found {gain} in {mode} {pads}"
        (x,) = torch.autograd.grad(0.5 * y.square().sum(), x)
        if not x.norm():
            return
        x = x / x.norm()


def _reach(
    origin: list[int], taps: torch.Size, geometry: ConvGeometry
) -> tuple[int, int, int, int]:
    """Zeros to add, or pixels to crop, so that the residual lies where its origin says."""
    before = [-corner * spacing for corner, spacing in zip(origin, geometry.dilation, strict=True)]
    after = [
        (corner + count - 1) * spacing + 1 - extent
        for corner, count, spacing, extent in zip(
            origin, taps, geometry.dilation, geometry.extent, strict=True
        )
    ]
    return before[1], after[1], before[0], after[0]
