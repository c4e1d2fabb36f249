"""Whether anything can take a kernel's place on this machine, whatever its weights are."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from convfactor.conv.forms import PLAIN
from convfactor.conv.geometry import ConvGeometry, Pair, pair
from convfactor.latency import Timing, compare
from convfactor.model.sites import InputShape
from convfactor.planning import structures
from convfactor.planning.bench import Candidate
from convfactor.planning.pricing import Multiplies, Price, Pricing, Stopwatch
from convfactor.plans.circumstances import Environment
from convfactor.plans.decisions import Tried
from convfactor.plans.prices import FamilyPrice, Worth
from convfactor.plans.settings import Settings
from convfactor.progress import Show, reporting, steps
from convfactor.scalars import is_count

SPEEDUPS = (2.0, 4.0)
# From one structure that is timed to the next, the multiplies grow by this factor at least.
APART = 1.5
# Values of an image and of what is made of it, of which several are held at a time.
MOST_VALUES = 1 << 31


@dataclass(frozen=True)
class _Asked:
    """What is to be priced.

    Attributes:
        kernel: The convolution.
        size: Of the input, (N, C, H, W).
        dtype: In which it computes.
        device: Where.
        settings: What counts.
    """

    kernel: ConvGeometry
    size: tuple[int, int, int, int]
    dtype: torch.dtype
    device: torch.device
    settings: Settings

    @property
    def speedups(self) -> tuple[float, ...]:
        """From which speed-ups on widths are told."""
        least = self.settings.min_speedup
        return (least, *(speedup for speedup in SPEEDUPS if speedup > least))

    @property
    def pricing(self) -> Pricing:
        """What says what a structure costs."""
        if self.settings.objective == "macs":
            return Multiplies(self.kernel)
        shapes = ((InputShape(self.size, False), 1.0),)
        return Stopwatch(self.kernel, shapes, self.dtype, self.device, {}, _hasty)


def bench(
    shape: Sequence[int],
    size: int | Pair = 256,
    *,
    batch: int = 1,
    stride: int | Pair = 1,
    dilation: int | Pair = 1,
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    objective: Literal["latency", "macs"] = Settings.objective,
    min_speedup: float = Settings.min_speedup,
    progress: Show = None,
) -> Worth:
    """Price what could take a kernel's place: whether a cascade is worth it on this machine.

    Latency does not depend on the weights, so that none are needed: structures are timed with
    random ones, of each family those whose multiplies are half as many again. Which error they
    have the weights decide, see ``factorize`` and ``optimize``.

    Args:
        shape: Of the weight as torch stores it, (C_out, C_in/groups, kH, kW).
        size: Of the input image in pixels, one number or (height, width); it is padded so that the
            output has that size over the stride.
        batch: Images at a time.
        stride: Stride of the convolution.
        dilation: Dilation of the convolution.
        groups: Groups of the convolution.
        dtype: In which it computes.
        device: Where it runs.
        objective: "latency" times, "macs" counts multiplies.
        min_speedup: From which speed-up on it pays.
        progress: How progress is shown, see ``optimize``.

    Returns:
        The prices of every family, fastest first; printing them gives a table.

    Raises:
        ValueError: An argument is out of range, or the images are too large.

    Example:
        >>> print(bench((8, 8, 7, 7), 32, objective="macs").best.fastest.structure)
        1x1 7x1 1x7 1x1 (1, 1, 1)
    """
    settings = Settings(objective=objective, min_speedup=min_speedup)
    kernel = _kernel(shape, stride, dilation, groups)
    where = torch.device(device)
    asked = _Asked(kernel, _input(kernel, size, batch), dtype, where, settings)
    pricing = asked.pricing
    families = structures.tried(kernel, settings, PLAIN)
    apart = APART if objective == "latency" else 1.0  # counting costs nothing
    ladders = [_thinned(structures.rungs(family, kernel, settings), apart) for family in families]
    found = [rungs for rungs in ladders if rungs and len(rungs[-1].taps.stages) > 1]
    names = [f"{ladder[-1].pixels}".partition(" (")[0] for ladder in found]
    prices = []
    try:
        with reporting(progress) as display:
            for name, ladder, _ in zip(names, found, steps(display, "timing", names), strict=True):
                prices.append(_priced(name, ladder, pricing, asked.speedups, kernel.macs))
    except RuntimeError as error:  # as torch says it, of memory or of a dtype
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"shape and size can't be computed: {reason}") from error
    for _ in range(2):  # the one that is quoted is timed at length, and may then be another
        prices.sort(key=lambda price: price.fastest.cost.relative)
        prices[:1] = [_careful(price, pricing) for price in prices[:1]]
    environment = Environment.current(where, objective == "latency")
    dtype_name = str(dtype).removeprefix("torch.")
    return Worth(kernel, asked.size, dtype_name, environment, asked.speedups, tuple(prices))


def _careful(price: FamilyPrice, pricing: Pricing) -> FamilyPrice:
    """Time the fastest of a family at length."""
    structure = price.fastest.structure
    assert structure is not None
    return replace(price, fastest=Tried(structure, pricing.careful(structure).cost))


def _hasty(
    calls: Sequence[Callable[[], object]], device: torch.device, seconds: float, rounds: int
) -> list[Timing]:
    """Time calls, long ones half as often as a decision needs."""
    return compare(calls, device, seconds, rounds // 2 + 1)


def _thinned(ladder: Sequence[Candidate], apart: float) -> list[Candidate]:
    """Some structures of a family, the widest among them."""
    kept: list[Candidate] = []
    for candidate in ladder:
        if not kept or candidate is ladder[-1] or candidate.macs >= apart * kept[-1].macs:
            kept.append(candidate)
    return kept


def _priced(
    name: str, ladder: Sequence[Candidate], pricing: Pricing, speedups: Sequence[float], macs: int
) -> FamilyPrice:
    """Find the widest structure of a family for each speed-up, and the fastest on the way."""
    known: dict[Candidate, Price] = {}

    def price(candidate: Candidate) -> Price:
        known[candidate] = pricing.quick(candidate.pixels)
        return known[candidate]

    price(ladder[0])
    widest: list[Tried | None] = []
    for limit in (1 / speedup for speedup in speedups):
        # The widest take longest, and few are fast enough: the guess is one as fast as its kernel.
        guess = bisect.bisect([rung.macs for rung in ladder], limit * macs)
        rungs = structures.affordable(ladder, limit, price, max(0, guess - 1))
        widest.append(Tried(rungs[-1].pixels, price(rungs[-1]).cost) if rungs else None)
    fastest = min(known, key=lambda candidate: known[candidate].relative)
    return FamilyPrice(name, Tried(fastest.pixels, known[fastest].cost), tuple(widest))


def _kernel(
    shape: Sequence[int], stride: int | Pair, dilation: int | Pair, groups: int
) -> ConvGeometry:
    """Read the convolution, padded so that it keeps the size of its input over the stride."""
    if len(shape) != 4 or not all(is_count(side) for side in shape):
        raise ValueError(
            "shape must be that of a weight, (C_out, C_in/groups, kH, kW), all at least 1, got "
            f"{tuple(shape)}"
        )
    if not is_count(groups) or shape[0] % groups:
        raise ValueError(f"groups must divide the {shape[0]} output channels, got {groups!r}")
    apart = pair(dilation, "dilation")
    padding = tuple(d * (k // 2) for d, k in zip(apart, shape[2:], strict=True))
    return ConvGeometry.from_shape(
        shape, stride=stride, padding=padding, dilation=apart, groups=groups
    )


def _input(kernel: ConvGeometry, size: int | Pair, batch: int) -> tuple[int, int, int, int]:
    """The shape of the input."""
    height, width = pair(size, "size")
    if not is_count(batch):
        raise ValueError(f"batch must be at least 1, got {batch!r}")
    outputs = kernel.output_size(height, width)
    if min(outputs) < 1:
        raise ValueError(f"size must hold the kernel of {kernel.extent} pixels, got {size}")
    values = batch * max(
        kernel.in_channels * height * width, kernel.out_channels * math.prod(outputs)
    )
    if values > MOST_VALUES:
        raise ValueError(
            f"size must be smaller: {values} values of {batch} images are more than {MOST_VALUES}"
        )
    return batch, kernel.in_channels, height, width
