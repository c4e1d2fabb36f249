"""Measure what the planner makes of the large kernels of well-known networks.

Where weights exist (trained ones in the folder that CONVFACTOR_CASES names) every layer is planned
at 1 and 5 % error on data that no fit has seen, for one image in float32. Where there are none, the
fastest structures within 1/2, 1/4 and 1/8 of the multiplies are timed: the price alone, which says
nothing of the error. `--full` plans for every dtype and batch, and what takes minutes to solve
too: SRCNN's second layer and Gabor filters (error of the weights).

Decisions are the planner's, on eager calls. What it chose, or came closest with, is then timed
again beside the original, eager and compiled, each in its better memory format.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import models
import pages
import torch
from torch import Tensor, nn

from convfactor.conv.cascade import Cascade
from convfactor.conv.formats import FORMATS
from convfactor.conv.layer import CascadeConv2d
from convfactor.factorization.factorizer import Factorizer, silent
from convfactor.factorization.solvers.request import Effort
from convfactor.latency import Timing, compare
from convfactor.model.finding import find
from convfactor.model.formats import in_format
from convfactor.model.inputs import ModelInputs
from convfactor.model.sites import Site
from convfactor.planning.batches import split
from convfactor.planning.bench import Bench, Candidate, Trial
from convfactor.planning.calibration import SiteData, collect
from convfactor.planning.layers import Layer
from convfactor.planning.pricing import Price, Stopwatch
from convfactor.plans.decisions import Kept, Replaced
from convfactor.plans.settings import Settings

TOLERANCES = (0.01, 0.05)
SHARES = (2, 4, 8)
CROP = 192
# With these every structure is affordable that does not cost more.
EVERY = Settings(min_speedup=1.0)
# Answers by what was solved and how carefully.
Solved = dict[Candidate, dict[Effort, Cascade]]
# A layer with its weights, and what it reads, where that is known.
Weights = tuple[nn.Conv2d, SiteData | None]
SECONDS = 1.0
MODES = ("eager", "compiled")


@dataclass(frozen=True)
class Geometry:
    """A layer of a network.

    Attributes:
        name: Network and layer.
        channels: In and out.
        kernel: Taps (vertical, horizontal).
        side: Side of the image in pixels, for one image; halved for more.
        stride: Of the layer.
        depthwise: Whether every channel is filtered by itself.
        source: Name of a network in the cases and of its layer, ("gabor", "") for the formula,
            None where there are no weights.
        slow: Whether solving takes so long that by default only the price is measured.
    """

    name: str
    channels: tuple[int, int]
    kernel: tuple[int, int]
    side: int
    stride: int = 1
    depthwise: bool = False
    source: tuple[str, str] | None = None
    slow: bool = False

    def conv(self) -> nn.Conv2d:
        """The layer with random weights; its output is as large as its input, over the stride."""
        return nn.Conv2d(
            *self.channels,
            self.kernel,
            stride=self.stride,
            padding=(self.kernel[0] // 2, self.kernel[1] // 2),
            groups=self.channels[0] if self.depthwise else 1,
        ).eval()


GRID = (
    Geometry("SRCNN first", (1, 64), (9, 9), 256, source=("srcnn", "conv1")),
    Geometry("SRCNN second", (64, 32), (5, 5), 256, source=("srcnn", "conv2"), slow=True),
    Geometry("style first", (3, 32), (9, 9), 256, source=("style", "convs.0")),
    Geometry("style last", (32, 3), (9, 9), 256, source=("style", "last")),
    Geometry("Gabor bank", (1, 40), (31, 31), 128, source=("gabor", ""), slow=True),
    Geometry("SRGAN first", (3, 64), (9, 9), 128),
    Geometry("SRGAN last", (64, 3), (9, 9), 256),
    Geometry("CycleGAN first", (3, 64), (7, 7), 256),
    Geometry("CycleGAN last", (64, 3), (7, 7), 256),
    Geometry("OpenPose", (128, 128), (7, 7), 46),
    Geometry("AlexNet first", (3, 64), (11, 11), 224, stride=4),
    Geometry("AlexNet second", (64, 192), (5, 5), 27),
    Geometry("ResNet stem", (3, 64), (7, 7), 224, stride=2),
    Geometry("Inception 5x5", (48, 64), (5, 5), 35),
    Geometry("Inception 7x1", (192, 192), (7, 1), 17),
    Geometry("ConvNeXt", (96, 96), (7, 7), 56, depthwise=True),
    Geometry("RepLKNet", (128, 128), (31, 31), 56, depthwise=True),
)


@dataclass(frozen=True)
class Chosen:
    """What is to be timed in place of a layer.

    Attributes:
        layer: It.
        text: What to write of it.
        replaced: Whether the planner would take it.
    """

    layer: CascadeConv2d
    text: str
    replaced: bool


class Recalling(Bench):
    """A bench that solves no structure twice for all dtypes and batches, which differ in prices."""

    def __init__(
        self,
        factorizer: Factorizer,
        site: Site,
        held_out: Sequence[Sequence[Tensor]],
        solved: Solved,
    ) -> None:
        """Share answers with other benches of the same kernel."""
        super().__init__(factorizer, site, held_out)
        self._own = factorizer
        self._solved = solved

    def solve(self, candidate: Candidate, effort: Effort, starts: Sequence[Cascade]) -> Trial:
        """Solve, or round an earlier answer to this layer's dtype and measure that."""
        efforts = self._solved.setdefault(candidate, {})
        if effort in efforts:
            return self.measured(candidate, self._own.measure(efforts[effort]))
        trial = super().solve(candidate, effort, starts)
        efforts[effort] = trial.cascade
        return trial


@dataclass(eq=False)
class SolvedOnce(Layer):
    """The planner's layer on such a bench."""

    solved: Solved = field(default_factory=dict)

    def bench(self, factorizer: Factorizer, data: SiteData | None) -> Bench:
        """What measures solutions on held-out data."""
        held_out = [] if data is None else data.held_out
        return Recalling(factorizer, self.site, held_out, self.solved)


def main() -> None:
    """Parse the command line, measure, and print a table for every layer."""
    names = [geometry.name for geometry in GRID]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, default=names,
                        help=f"layers to measure: {', '.join(map(repr, names))}")  # fmt: skip
    parser.add_argument("--full", action="store_true", help="every dtype, batch and mode together")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--tolerances", nargs="+", type=float, default=TOLERANCES,
                        help="errors allowed where there are weights")  # fmt: skip
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--side", type=int, help="of the image in pixels, for all layers")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md as well")
    options = parser.parse_args()
    if options.side is not None and options.side < 64:
        parser.error("--side must be at least 64, twice the largest kernel, for a batch of images")
    device = torch.device(options.device)
    folder = os.environ.get("CONVFACTOR_CASES")
    trained = Trained(folder, options.full, options.tolerances)
    for geometry in (geometry for geometry in GRID if geometry.name in options.only):
        if options.side is not None:
            geometry = replace(geometry, side=options.side)
        lines = []
        for line in _table(geometry, trained, device, options.modes):
            lines.append(line)
            print(line, flush=True)
            if options.write:  # at once, since a layer takes minutes
                pages.write(f"layer {geometry.name}", "\n".join(lines))
        print(flush=True)


@dataclass
class Trained:
    """Weights, and calibration data of the networks in a folder.

    Attributes:
        folder: The folder, None where there is none.
        full: Whether to take what is solved for minutes as well.
        tolerances: Errors allowed.
    """

    folder: str | None
    full: bool
    tolerances: Sequence[float]
    _known: dict[str, Mapping[str, Weights]] = field(default_factory=dict)

    def of(self, geometry: Geometry) -> Weights | None:
        """A layer with its weights and what it reads, or None where only its price is asked."""
        if geometry.source is None or (geometry.slow and not self.full):
            return None
        network, layer = geometry.source
        if network != "gabor" and self.folder is None:
            return None
        if network not in self._known:
            self._known[network] = self._read(network)
        return self._known[network][layer]

    def _read(self, network: str) -> Mapping[str, Weights]:
        """Run the calibration data through a network."""
        if network == "gabor":
            return {"": (_gabor_bank(), None)}
        assert self.folder is not None
        case = models.cases(Path(self.folder))[network]
        return _calibrated(case.make(), [x[..., :CROP, :CROP] for x in case.batches])


def _calibrated(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, Weights]:
    """The large kernels of a model with what they read."""
    inputs = ModelInputs.read(batches[0])
    with torch.no_grad():
        sites = [one for one in find(model, inputs) if isinstance(one, Site)]
        margins = [Layer.price(site, EVERY, {}, _alike).margin for site in sites]
        data = collect(model, sites, margins, split(batches, inputs))
    found = {}
    for site in sites:
        conv = model.get_submodule(site.owners[0])
        assert isinstance(conv, nn.Conv2d)
        found[site.owners[0]] = conv, data[site]
    return found


def _gabor_bank() -> nn.Conv2d:
    """Even Gabor filters of 31x31 taps: five wavelengths, eight orientations."""
    steps = torch.arange(31, dtype=torch.float64) - 15
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    filters = []
    for scale in range(5):
        wavelength = 15.5 / 2 ** (scale / 2)
        envelope = torch.exp(-(x**2 + y**2) / (2 * (wavelength / 2) ** 2))
        for turn in range(8):
            angle = math.pi * turn / 8
            phase = 2 * math.pi / wavelength * (x * math.cos(angle) + y * math.sin(angle))
            wave = envelope * torch.cos(phase)
            wave -= envelope * wave.sum() / envelope.sum()
            filters.append(wave / wave.norm())
    conv = nn.Conv2d(1, 40, 31, padding=15, bias=False)
    conv.weight = nn.Parameter(torch.stack(filters)[:, None].float())
    return conv.eval()


def _table(
    geometry: Geometry, trained: Trained, device: torch.device, modes: Sequence[str]
) -> Iterator[str]:
    """The lines of a layer's table."""
    known = trained.of(geometry)
    kernel = "x".join(map(str, geometry.kernel))
    stride = "" if geometry.stride == 1 else f"/{geometry.stride}"
    channels = "->".join(map(str, geometry.channels))
    kind = " depthwise" if geometry.depthwise else ""
    price = "" if known else ": price only, of the fastest structure within a share of the work"
    yield f"{geometry.name}, {kernel}{stride} {channels}{kind}{price}"
    yield f"({pages.machine(device)}, torch {torch.__version__})"
    yield ""
    asked = (
        [f"{100 * t:.3g}% error" for t in trained.tolerances]
        if known
        else [f"1/{s}" for s in SHARES]
    )
    yield f"| input | dtype | mode | original (ms) | {' | '.join(asked)} |"
    yield f"|---|---|---|---:|{'---|' * len(asked)}"
    solved: Solved = {}
    slowest = math.inf
    for (dtype, batch), offered in _cells(device, trained.full, known is None).items():
        conv, x = _ready(geometry, known, dtype, batch, device)
        if known is None:
            chosen = [_priced(conv, x, share) for share in SHARES]
        else:
            prices: dict[object, Price] = {}
            chosen = [_planned(conv, x, known[1], t, prices, solved) for t in trained.tolerances]
        size = f"{batch}x{x.shape[-1]}x{x.shape[-1]}"
        for mode in (mode for mode in offered if mode in modes):
            before, afters = _race(conv, x, chosen, mode)
            cells = [size, dtype, mode, f"{_spread(before)}"]
            for one, after in zip(chosen, afters, strict=True):
                cells.append("-" if one is None or after is None else _told(one, before, after))
                if one is not None and after is not None and one.replaced and mode == "eager":
                    slowest = min(slowest, before.median / after.median)
            yield f"| {' | '.join(cells)} |"
    if slowest < math.inf:
        yield ""
        yield f"What the planner replaced is at least {slowest:.2f}x as fast, timed again."


def _cells(
    device: torch.device, full: bool, priced: bool
) -> dict[tuple[str, int], tuple[str, ...]]:
    """Dtypes and batches, each with its modes."""
    dtypes = ["float32", "bfloat16", *(["tf32", "float16"] if device.type == "cuda" else [])]
    if full:
        return {(dtype, batch): MODES for dtype in dtypes for batch in (1, 16)}
    if not priced:  # solving takes minutes
        return {("float32", 1): MODES}
    return {("float32", 1): MODES, ("float32", 16): ("eager",), ("bfloat16", 1): ("eager",)}


def _ready(
    geometry: Geometry,
    known: Weights | None,
    name: str,
    batch: int,
    device: torch.device,
) -> tuple[nn.Conv2d, Tensor]:
    """A layer and an input of it."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    conv = geometry.conv()
    if known is not None:
        conv.weight, conv.bias = known[0].weight, known[0].bias
    side = geometry.side if batch == 1 else geometry.side // 2
    x = torch.randn(batch, geometry.channels[0], side, side)
    return conv.requires_grad_(False).to(device, dtype), x.to(device, dtype)


def _alike(
    calls: Sequence[Callable[[], object]], device: torch.device, seconds: float, rounds: int
) -> list[Timing]:
    """A clock for which all take the same time, so that every structure is listed."""
    return [Timing(1.0, 1.0, 1.0) for _ in calls]


def _site(conv: nn.Conv2d, x: Tensor) -> Site:
    """The layer as the planner finds it in a model of its own."""
    with torch.no_grad():
        (site,) = find(nn.Sequential(conv), ModelInputs.read(x))
    assert isinstance(site, Site)
    return site


def _priced(conv: nn.Conv2d, x: Tensor, share: int) -> Chosen | None:
    """The fastest structure within a share of the multiplies, with random weights."""
    site = _site(conv, x)
    ladders = Layer.price(site, EVERY, {}, _alike).ladders
    shapes, weight = site.subject.shapes, site.weight
    pricing = Stopwatch(site.geometry, shapes, weight.dtype, weight.device, {})
    within = [[one for one in rungs if one.macs * share <= site.geometry.macs] for rungs in ladders]
    widest = [rungs[-1] for rungs in within if rungs]
    if not widest:
        return None
    best = min(widest, key=lambda one: pricing.quick(one.pixels).relative)
    format_ = pricing.quick(best.pixels).memory_format
    cascade = Cascade.random(best.pixels, dtype=conv.weight.dtype)
    return Chosen(_in_place(conv, cascade, format_), f"{best.pixels}", replaced=False)


def _planned(
    conv: nn.Conv2d,
    x: Tensor,
    data: SiteData | None,
    tolerance: float,
    prices: dict[object, Price],
    solved: Solved,
) -> Chosen | None:
    """What the planner decides for a tolerance; where it keeps the layer, what came closest."""
    site = _site(conv, x)
    layer = SolvedOnce.price(site, Settings(tolerance=tolerance), prices)
    assert isinstance(layer, SolvedOnce)
    layer.solved = solved
    if data is not None:
        held_out = [[y.to(x.device, x.dtype) for y in batch] for batch in data.held_out]
        data = SiteData(data.moments, held_out)
    with torch.no_grad():
        decision = layer.decide(data, silent)
    if isinstance(decision, Replaced):
        fast = CascadeConv2d.from_conv(conv, decision, decision.torch_format)
        return Chosen(fast, f"{decision.structure}, {decision.error:.2%}", replaced=True)
    assert isinstance(decision, Kept)
    tried = decision.tried
    if tried is None or tried.structure is None:
        return None
    error = "unsolved" if tried.error is None else f"{tried.error:.2%}"
    cascade = Cascade.random(tried.structure, dtype=conv.weight.dtype)
    format_ = layer.pricing.quick(tried.structure).memory_format
    text = f"kept ({decision.reason.code}): {tried.structure}, {error}"
    return Chosen(_in_place(conv, cascade, format_), text, replaced=False)


def _in_place(conv: nn.Conv2d, cascade: Cascade, name: str) -> CascadeConv2d:
    """A cascade in place of a layer, in the format in which it was priced."""
    memory_format = torch.channels_last if name == "channels_last" else None
    return CascadeConv2d.from_conv(conv, cascade.to(conv.weight.device), memory_format)


def _race(
    conv: nn.Conv2d, x: Tensor, chosen: Sequence[Chosen | None], mode: str
) -> tuple[Timing, list[Timing | None]]:
    """Time a layer and what takes its place, all interleaved, each in its better format."""
    layers = [conv, *(one.layer for one in chosen if one is not None)]
    calls: list[Callable[[], object]] = []
    for name in FORMATS:
        twins, inputs = in_format(layers, ModelInputs.read(x), name)
        for twin in twins:
            torch.compiler.reset()
            run = torch.compile(twin) if mode == "compiled" else twin
            calls.append(lambda run=run, inputs=inputs: run(*inputs.args))  # type: ignore[misc]
    timings = compare(calls, x.device, SECONDS)
    each = [timings[i :: len(layers)] for i in range(len(layers))]
    before, *afters = (min(own, key=lambda t: t.median) for own in each)
    left = iter(afters)
    return before, [None if one is None else next(left) for one in chosen]


def _told(one: Chosen, before: Timing, after: Timing) -> str:
    """A cell of the table."""
    ratio = before.median / after.median
    low, high = before.low / after.high, before.high / after.low
    return f"{ratio:.2f}x [{low:.2f}..{high:.2f}] {one.text}"


def _spread(timing: Timing) -> str:
    """Milliseconds with their quartiles."""
    low, median, high = (1e3 * t for t in (timing.low, timing.median, timing.high))
    return f"{median:.3g} [{low:.3g}..{high:.3g}]"


if __name__ == "__main__":
    main()
