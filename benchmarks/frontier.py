"""Error on unseen data against measured time: ours, the separable pair, Tucker-2 and CP.

For every layer the structures that the planner may choose are solved at several widths in the
metric of the data; Tucker-2 and CP are TensorLy's decompositions of the weights, which know of no
data. All are timed alike, as the planner times, and their errors are those of the outputs on data
that no fit has seen. The fastest of each method within an error is timed again, carefully.

With `--multiplies` every form is solved as wide as a share of the original's multiplies allows, and
nothing is timed.

Networks are those that CONVFACTOR_CASES points to. The depthwise layer holds oriented filters and
reads the features of SRCNN's first layer.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import models
import pages
import solvers
import tensorly
import torch
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor, nn

from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import ConvGeometry
from convfactor.factorization.budget import Budget
from convfactor.model.finding import find
from convfactor.model.inputs import ModelInputs
from convfactor.model.sites import Site
from convfactor.planning.batches import split
from convfactor.planning.bench import Bench, Candidate
from convfactor.planning.calibration import SiteData, collect
from convfactor.planning.layers import Layer
from convfactor.planning.pricing import Price
from convfactor.plans.settings import Settings

ERRORS = (0.005, 0.01, 0.02, 0.05, 0.1)
CROP = 256
# Multiplies grow by this factor from one solved structure of a family to the next.
STEP = 1.6
SECONDS = 10.0
SHARES = tuple(0.7 / 1.5**i for i in range(8))
LEVEL = 1.05
WORK = (0.1, 0.2, 0.35, 0.5)
NETWORKS = {"srcnn": "SRCNN", "style": "style", "faceboxes": "FaceBoxes"}
ALIKE = Settings(min_speedup=1.0, objective="macs")
METHODS = ("ours", "pair", "Tucker-2", "CP")
PEERS: dict[str, Callable[[Tensor, ConvGeometry, int], Cascade | None]] = {
    "Tucker-2": solvers.tucker2,
    "CP": solvers.cp,
}


@dataclass(frozen=True)
class Point:
    """One solution.

    Attributes:
        candidate: Its structure.
        price: What it costs.
        error: On unseen data.
    """

    candidate: Candidate
    price: Price
    error: float


def main() -> None:
    """Print a table for each layer, and draw all of them."""
    warnings.filterwarnings("ignore", module="tensorly")  # of ranks that it cuts to what there is
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="*", help="parts of the layers' names; none takes all")
    parser.add_argument("--multiplies", action="store_true", help="errors at equal multiplies")
    parser.add_argument("--plot", type=Path, help="file for the picture, .svg or .png")
    parser.add_argument("--write", action="store_true", help="write the page")
    options = parser.parse_args()
    folder = os.environ.get("CONVFACTOR_CASES")
    if not folder:
        sys.exit("set CONVFACTOR_CASES to the folder of the networks")
    tensorly.set_backend("pytorch")
    machine = pages.machine(torch.device("cpu"))
    what = "error on unseen data" if options.multiplies else "times as fast as the original"
    lines = [f"({machine}, torch {torch.__version__}; {what})"]
    print(lines[0])
    drawn: dict[str, dict[str, list[Point]]] = {}
    for name, site, data in _sites(Path(folder)):
        if options.layers and not any(part in name for part in options.layers):
            continue
        if options.multiplies:
            table = _at_equal_work(Layer.price(site, ALIKE, {}), data)
        else:
            layer = Layer.price(site, Settings(min_speedup=1.0), {})
            drawn[name] = _points(layer, data)
            table = _table(layer, drawn[name])
        for line in ("", f"**{name}**", "", *table):
            print(line, flush=True)
            lines.append(line)
        if options.write:
            pages.write("multiplies" if options.multiplies else "frontier", "\n".join(lines))
        if options.plot and drawn:
            _draw(drawn).savefig(options.plot, bbox_inches="tight")


def _sites(folder: Path) -> Iterator[tuple[str, Site, SiteData]]:
    """The large kernels of the networks, and a depthwise one, with what they read."""
    cases = models.cases(folder)
    for name, network in NETWORKS.items():
        model, batches = cases[name].make(), [x[..., :CROP, :CROP] for x in cases[name].batches]
        for site, data in _collected(model, batches).items():
            kernel = site.geometry
            size, stride = (
                "x".join(map(str, pair)) for pair in (kernel.kernel_size, kernel.stride)
            )
            text = f"{size}, {kernel.in_channels}->{kernel.out_channels}, stride {stride}"
            yield f"{network} {site.subject.name} ({text})", site, data
    first = cases["srcnn"].make().get_submodule("conv1")
    model = nn.Sequential(first, nn.ReLU(), _oriented(64))
    batches = [x[..., :CROP, :CROP] for x in cases["srcnn"].batches]
    for site, data in _collected(model, batches).items():
        if site.geometry.groups > 1:
            yield "oriented filters (7x7, depthwise, 64)", site, data


def _collected(model: nn.Module, batches: Sequence[Tensor]) -> Mapping[Site, SiteData]:
    """The large kernels of a model with what they read."""
    inputs = ModelInputs.read(batches[0])
    with torch.no_grad():
        sites = [one for one in find(model, inputs) if isinstance(one, Site)]
        margins = [Layer.price(site, ALIKE, {}).margin for site in sites]
        return collect(model, sites, margins, split(batches, inputs))


def _oriented(count: int) -> nn.Conv2d:
    """Derivatives of elongated Gaussians at evenly spread angles."""
    steps = torch.arange(7, dtype=torch.float64) - 3
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    filters = []
    for i in range(count):
        angle = math.pi * i / count
        along = x * math.cos(angle) + y * math.sin(angle)
        across = y * math.cos(angle) - x * math.sin(angle)
        filters.append(across * torch.exp(-(along**2) / 8 - across**2 / 2))
    conv = nn.Conv2d(count, count, 7, padding=3, groups=count, bias=False)
    conv.weight = nn.Parameter(torch.stack(filters)[:, None].float())
    return conv


def _points(layer: Layer, data: SiteData) -> dict[str, list[Point]]:
    """What every method reaches."""
    factorizer = layer.factorizer(data)
    bench = layer.bench(factorizer, data)
    found: dict[str, list[Point]] = {method: [] for method in METHODS}
    for rungs in layer.ladders:
        starts: list[Cascade] = []
        for candidate in _spread([one for one in rungs if factorizer.fits(one.taps)]):
            own = replace(factorizer, budget=Budget(SECONDS))
            trial = bench.measured(candidate, own.solve(candidate.taps, "draft", starts))
            starts = [trial.cascade]
            point = Point(candidate, layer.price_of(candidate), trial.error)
            found["ours"].append(point)
            if _is_pair(candidate):
                found["pair"].append(point)
    kernel, weight = layer.site.geometry, layer.site.weight.detach().double()
    for method, decompose in PEERS.items():
        if kernel.groups == 1:
            budgets = (round(share * kernel.macs) for share in SHARES)
            solutions = (decompose(weight, kernel, macs) for macs in budgets)
            found[method] = [
                _peer(layer, bench, cascade) for cascade in solutions if cascade is not None
            ]
    return found


def _peer(layer: Layer, bench: Bench, cascade: Cascade) -> Point:
    """A decomposition of the weights, measured as ours."""
    candidate = Candidate.of(cascade.structure, layer.site.geometry)
    trial = bench.measured(candidate, layer.factorizer(None).measure(cascade.balanced()))
    return Point(candidate, layer.price_of(candidate), trial.error)


def _spread(rungs: Sequence[Candidate]) -> list[Candidate]:
    """Some of the rungs, narrowest first, each clearly wider than the one before."""
    chosen: list[Candidate] = []
    for one in rungs:
        if not chosen or one.macs >= STEP * chosen[-1].macs or one is rungs[-1]:
            chosen.append(one)
    return chosen


def _is_pair(candidate: Candidate) -> bool:
    """Whether a structure is Kx1, 1xK."""
    sizes = [stage.kernel_size for stage in candidate.taps.stages]
    return len(sizes) == 2 and sizes[0][1] == 1 and sizes[1][0] == 1


def _table(layer: Layer, points: Mapping[str, Sequence[Point]]) -> Iterator[str]:
    """The fastest of every method within each error."""
    yield f"| error | {' | '.join(METHODS)} | |"
    yield f"|---:|{'---|' * (len(METHODS) + 1)}"
    for error in ERRORS:
        cells, speeds = [], {}
        for method in METHODS:
            within = [point for point in points[method] if point.error <= error]
            best = min(within, key=lambda p: p.price.relative, default=None)
            if best is None:
                cells.append("-")
                continue
            cost = layer.careful_price_of(best.candidate).cost
            assert cost.before is not None
            assert cost.after is not None
            speeds[method] = cost.before.median / cost.after.median
            cells.append(f"{speeds[method]:.2f} {best.candidate.pixels}, {best.error:.2%}")
        others = max((speed for m, speed in speeds.items() if m != "ours"), default=0.0)
        level = max(others, 1.0) <= LEVEL * max(speeds.get("ours", 0.0), 1.0)
        yield f"| {error:.1%} | {' | '.join(cells)} | {'' if level else 'behind'} |"


def _at_equal_work(layer: Layer, data: SiteData) -> Iterator[str]:
    """The error of every form, as wide as each share of the multiplies allows."""
    factorizer = layer.factorizer(data)
    bench = layer.bench(factorizer, data)
    forms = [str(rungs[-1].taps).split(" (")[0] for rungs in layer.ladders]
    yield f"| share | {' | '.join(forms)} |"
    yield f"|---:|{'---:|' * len(forms)}"
    for share in WORK:
        cells = []
        for rungs in layer.ladders:
            within = [r for r in rungs if r.macs <= share * layer.site.geometry.macs]
            if not within or not factorizer.fits(within[-1].taps):
                cells.append("-")
                continue
            own = replace(factorizer, budget=Budget(2 * SECONDS))
            error = bench.measured(within[-1], own.solve(within[-1].taps)).error
            cells.append(f"{error:.2%}")
        yield f"| {share:g} | {' | '.join(cells)} |"


def _draw(found: Mapping[str, Mapping[str, Sequence[Point]]]) -> plt.Figure:
    """Error over time, a picture for each layer."""
    rows = math.ceil(len(found) / 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11, 4 * rows), squeeze=False)
    for axis, (name, methods) in zip(axes.flat, found.items(), strict=False):
        for method, mark in zip(METHODS, ".x^s", strict=True):
            points = [p for p in methods[method] if p.error < 1]
            times, errors = [p.price.relative for p in points], [p.error for p in points]
            axis.plot(times, errors, mark, label=method, alpha=0.5 if method == "ours" else 1)
        axis.set(xscale="log", yscale="log", title=name, xlabel="time / original", ylabel="error")
        axis.axvline(1, color="0.7", linewidth=0.8)
        for scale in (axis.xaxis, axis.yaxis):
            scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
            scale.set_major_formatter("{x:g}")
            scale.set_minor_formatter(NullFormatter())
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    axes.flat[0].legend()
    figure.tight_layout()
    return figure


if __name__ == "__main__":
    main()
