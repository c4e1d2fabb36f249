"""Compare the solvers with the original method, the separable pair, Tucker-2 and CP.

All methods are given the same multiplies per output pixel, or fewer where their ranks do not fit
exactly; the error is the relative error of the composed kernel in float64. Peers that can't be
fitted in the calibrated metric (Tucker-2, CP) are fitted to the weights and measured in it.
The networks are those that CONVFACTOR_CASES points to; without it their sections are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import skimage.data
import skimage.io
import tensorly
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor

from convfactor.conv.cascade import Cascade
from convfactor.conv.geometry import ConvGeometry
from convfactor.conv.moments import Moments
from convfactor.conv.structure import StageShape, Structure
from convfactor.demo import photographs
from convfactor.factorization.families import dilated, full, separable_pair
from convfactor.factorization.solvers import Problem, Request, alternating, dense, solve
from convfactor.model.finding import find
from convfactor.model.inputs import ModelInputs
from convfactor.planning.batches import Split
from convfactor.planning.calibration import collect
from convfactor.wavelets import synthesis_kernels

COLOUR = ("chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg",
          "ihc.png")  # fmt: skip
LUMA = ("chelsea", "coffee", "coins", "hubble_deep_field", "ihc", "moon", "motorcycle_left",
        "retina", "rocket")  # fmt: skip
MARGIN = 4
STARTS = 50
RESTARTS = alternating.Recipe(starts=STARTS)
MARKS = (0.25, 0.5, 1, 2, 4, 8, 16)
CONSOLE = Console(width=112, highlight=False)


@dataclass(frozen=True)
class Reference:
    """What plain L-BFGS reached: 1500 steps to the weights, 3000-4000 steps to the data."""

    white: float | None = None
    calibrated: float | None = None


# Layer -> widths -> errors, as the issue that asked for this benchmark gives them.
REFERENCES: dict[str, dict[tuple[int, ...], Reference]] = {
    "style last": {
        (4, 4, 4): Reference(None, 0.0331),
        (8, 8, 8): Reference(0.2715, 0.0152),
        (16, 8, 4): Reference(0.1549, 0.0088),
        (16, 16, 16): Reference(0.0521, None),
    },
    "style first": {
        (8, 8, 8): Reference(0.3353, 0.0160),
        (4, 8, 16): Reference(0.2136, 0.0083),
    },
    "srcnn conv1": {(4, 4, 4): Reference(0.4576, None)},
    "srcnn conv2": {
        (16,): Reference(0.5642, 0.0646),
        (24,): Reference(0.4184, 0.0379),
        (32,): Reference(0.2937, 0.0229),
    },
}


@dataclass(frozen=True, eq=False)
class Layer:
    """One convolution of a real network and the moments of what it reads."""

    name: str
    weight: Tensor
    kernel: ConvGeometry
    moments: Moments

    def problem(self, structure: Structure, calibrated: bool) -> Problem:
        """The problem on a window that holds the structure."""
        reach = [
            max(-o, o + s - k, 0)
            for o, s, k in zip(
                structure.offset, structure.span, self.kernel.kernel_size, strict=True
            )
        ]
        moments = self.moments if calibrated else None
        return Problem.from_weight(self.weight, self.kernel.groups, moments, (reach[0], reach[1]))


@dataclass(frozen=True, eq=False)
class Outcome:
    """A cascade, where it was found, and the seconds it took."""

    cascade: Cascade
    error: float
    seconds: float


def timed(problem: Problem, find_cascade: Callable[[], Cascade]) -> Outcome:
    """Run a solver and measure what it found."""
    start = time.perf_counter()
    cascade = find_cascade()
    return Outcome(cascade, problem.error(cascade), time.perf_counter() - start)


def ours(problem: Problem, structure: Structure) -> Outcome:
    """Our solver on one structure."""
    return timed(problem, lambda: solve(Request(problem, structure)))


def widest_pair(kernel: ConvGeometry, macs: int) -> Structure:
    """The pair Kx1, 1xK of the largest rank within a budget of multiplies."""
    return next(separable_pair(kernel)).ladder(macs)[-1]


def tucker2(weight: Tensor, kernel: ConvGeometry, macs: int) -> Cascade | None:
    """1x1, KxK, 1x1 of the best ranks within a budget, or None where nothing is so cheap."""
    outputs, inputs = weight.shape[:2]

    def structure(inner: int, outer: int) -> Structure:
        return Structure(
            (
                StageShape(inputs, inner, (1, 1)),
                StageShape(inner, outer, kernel.kernel_size, kernel.stride),
                StageShape(outer, outputs, (1, 1)),
            )
        )

    best, least = None, math.inf
    for inner in range(1, inputs + 1):
        fitting = [n for n in range(1, outputs + 1) if structure(inner, n).macs <= macs]
        if not fitting:
            break
        # More channels outside than inside times the taps, or the reverse, add nothing.
        outer = min(fitting[-1], inner * math.prod(kernel.kernel_size))
        (core, (left, right)), _ = partial_tucker(
            weight, rank=[outer, inner], modes=[0, 1], n_iter_max=50, tol=1e-6
        )
        cascade = Cascade.of(structure(inner, outer), [right.mT, core, left])
        error = float((cascade.compose() - weight).norm())
        if error < least:
            best, least = cascade, error
    return best


def cp(weight: Tensor, kernel: ConvGeometry, macs: int) -> Cascade | None:
    """1x1, Kx1 and 1xK depthwise, 1x1 of the largest rank within a budget."""
    outputs, inputs, height, width = weight.shape
    (sy, sx) = kernel.stride

    def structure(rank: int) -> Structure:
        return Structure(
            (
                StageShape(inputs, rank, (1, 1)),
                StageShape(rank, rank, (height, 1), (sy, 1), groups=rank),
                StageShape(rank, rank, (1, width), (1, sx), groups=rank),
                StageShape(rank, outputs, (1, 1)),
            )
        )

    rank = macs // structure(1).macs
    if rank == 0:
        return None
    _, (last, first, column, row) = parafac(
        weight, rank, n_iter_max=300, init="random", tol=1e-7, random_state=0
    )
    return Cascade.of(structure(rank), [first.mT, column.mT, row.mT, last])


def layers(networks: ModuleType) -> dict[str, Layer]:
    """The layers of the networks, calibrated on photographs."""
    training = photographs.training()
    luma = [photographs.degrade(training[name][..., :384, :384]) for name in LUMA]
    colour = [_colour(name) for name in COLOUR]
    faces = [x[:, [2, 1, 0]] - torch.tensor([104.0, 117.0, 123.0])[:, None, None] for x in colour]
    wanted = {
        "srcnn conv1": (networks.srcnn, luma, "conv1"),
        "srcnn conv2": (networks.srcnn, luma, "conv2"),
        "style first": (networks.style_transfer, colour, "convs.0"),
        "style last": (networks.style_transfer, colour, "last"),
        "faceboxes conv1": (networks.faceboxes, faces, "conv1.conv"),
        "faceboxes conv2": (networks.faceboxes, faces, "conv2.conv"),
    }
    known: dict[str, Layer] = {}
    for make, batches, _ in dict.fromkeys((m, tuple(b), "") for m, b, _ in wanted.values()):
        net = make()
        inputs = [ModelInputs.read(x) for x in batches]
        names = {layer: name for name, (other, _, layer) in wanted.items() if other is make}
        sites = [site for site in find(net, inputs[0]) if site.name in names]
        margins = [(MARGIN, MARGIN) if site.geometry.stride != (1, 1) else (0, 0) for site in sites]
        data = collect(net, sites, margins, Split(tuple(inputs), ()))
        for site in sites:
            weight = site.weight.detach().double()
            name = names[site.name]
            known[name] = Layer(name, weight, site.geometry, data[site].moments)
    return {name: known[name] for name in wanted}


def _colour(name: str) -> Tensor:
    """A crop of a photograph, RGB 0..255."""
    pixels = torch.from_numpy(skimage.io.imread(Path(skimage.data.__file__).parent / name))
    return pixels[..., :3].permute(2, 0, 1)[None, :, :384, :384].float().contiguous()


def print_layers(known: dict[str, Layer], calibrated: bool) -> None:
    """Stride-1 layers of the networks at the widths of the references."""
    table = _table(
        f"Real layers, stride 1, {'calibrated' if calibrated else 'white'} metric",
        ("layer", "widths", "method", "multiplies", "error", "seconds", "L-BFGS", "ours/L-BFGS"),
    )
    to_reference, to_peers = [], []
    for name, rows in REFERENCES.items():
        layer = known[name]
        for widths, both in rows.items():
            reference = both.calibrated if calibrated else both.white
            if reference is None:
                continue
            structure = next(full(layer.kernel)).structure(widths)
            found = ours(layer.problem(structure, calibrated), structure)
            to_reference.append(found.error / reference)
            methods = {"cascade": found}
            tapered = next(full(layer.kernel)).ladder(structure.macs)[-1]
            if not calibrated and tapered.widths != widths:
                label = f"cascade {tapered.widths}"
                methods[label] = ours(layer.problem(tapered, calibrated), tapered)
            methods |= _peers(layer, structure.macs, calibrated)
            # Dearer than the layer itself, the peers are exact.
            if structure.macs < layer.kernel.macs:
                best = min(m.error for key, m in methods.items() if key.startswith("cascade"))
                peers = [m.error for key, m in methods.items() if key in ("pair", "Tucker-2")]
                to_peers.append(best / min(peers))
            for label, outcome in methods.items():
                first = label == "cascade"
                table.add_row(
                    f"{name} {_shape(layer.kernel)}" if first else "",
                    ",".join(map(str, widths)) if first else "",
                    label,
                    str(outcome.cascade.structure.macs),
                    f"{outcome.error:.4f}",
                    f"{outcome.seconds:.1f}",
                    f"{reference:.4f}" if first else "",
                    f"{to_reference[-1]:.3f}" if first else "",
                )
            table.add_section()
    CONSOLE.print(table)
    CONSOLE.print(
        f"cascade over L-BFGS: median {statistics.median(to_reference):.3f}, worst "
        f"{max(to_reference):.3f}; better cascade over the better of pair and Tucker-2: median "
        f"{statistics.median(to_peers):.3f}, worst {max(to_peers):.3f}"
    )


def _peers(layer: Layer, macs: int, calibrated: bool) -> dict[str, Outcome]:
    """Pair, Tucker-2 and CP within a budget."""
    structure = widest_pair(layer.kernel, macs)
    found = {"pair": ours(layer.problem(structure, calibrated), structure)}
    for label, method in (("Tucker-2", tucker2), ("CP", cp)):
        start = time.perf_counter()
        cascade = method(layer.weight, layer.kernel, macs)
        seconds = time.perf_counter() - start
        if cascade is not None:
            problem = layer.problem(cascade.structure, calibrated)
            found[label] = Outcome(cascade, problem.error(cascade), seconds)
    return found


def print_strided(known: dict[str, Layer]) -> None:
    """The strided layers at parts of their multiplies; a draft chooses where the stride goes."""
    table = _table(
        "Real layers with a stride, both metrics",
        ("layer", "method", "multiplies", "white", "seconds", "calibrated", "seconds"),
    )
    for name in ("faceboxes conv1", "faceboxes conv2"):
        layer = known[name]
        for part in (2, 4):
            macs = layer.kernel.macs // part
            rungs = [ladder[-1] for f in full(layer.kernel) if (ladder := f.ladder(macs))]
            columns: list[dict[str, Outcome]] = []
            best = min(rungs, key=lambda s: _draft_error(layer, s))
            for calibrated in (False, True):
                found = {str(best): ours(layer.problem(best, calibrated), best)}
                columns.append(found | _peers(layer, macs, calibrated))
            for i, label in enumerate(columns[0]):
                white, fitted = (column[label] for column in columns)
                table.add_row(
                    f"{name} {_shape(layer.kernel)} 1/{part}" if i == 0 else "",
                    label,
                    str(white.cascade.structure.macs),
                    f"{white.error:.4f}",
                    f"{white.seconds:.1f}",
                    f"{fitted.error:.4f}",
                    f"{fitted.seconds:.1f}",
                )
            table.add_section()
    CONSOLE.print(table)


def _draft_error(layer: Layer, structure: Structure) -> float:
    """Error of a quick solve, to choose where the stride goes."""
    problem = layer.problem(structure, calibrated=False)
    return problem.error(solve(Request(problem, structure, effort="draft")))


def print_convergence(known: dict[str, Layer]) -> None:
    """Error of the dense solver against time."""
    table = _table(
        "Convergence, calibrated metric: error after so many seconds",
        ("layer", "widths", *(f"{mark:g} s" for mark in MARKS), "end", "at", "L-BFGS (35-50 s)"),
    )
    for name, widths in (("style last", (8, 8, 8)), ("srcnn conv2", (24,))):
        layer = known[name]
        structure = next(full(layer.kernel)).structure(widths)
        problem = layer.problem(structure, calibrated=True)
        told: list[tuple[float, float]] = []
        start = time.perf_counter()
        cascade = dense.solve(
            Request(
                problem,
                structure,
                progress=lambda _, error: told.append((time.perf_counter() - start, error)),  # noqa: B023
            )
        )
        seconds, error = time.perf_counter() - start, problem.error(cascade)
        reached = [[e for at, e in told if at <= mark] for mark in MARKS]
        table.add_row(
            name,
            ",".join(map(str, widths)),
            *(
                f"{errors[-1]:.4f}" if errors and mark <= seconds else ""
                for mark, errors in zip(MARKS, reached, strict=True)
            ),
            f"{error:.4f}",
            f"{seconds:.1f} s",
            f"{REFERENCES[name][widths].calibrated:.4f}",
        )
    CONSOLE.print(table)


def filters() -> Iterator[tuple[str, Tensor, list[Structure]]]:
    """Kernels of one channel and the cascades to try on them."""
    for biort in ("antonini", "legall", "near_sym_a", "near_sym_b"):
        for band, array in synthesis_kernels(biort).items():
            kernel = torch.from_numpy(array.copy())
            exact = _chain(kernel)
            short = biort == "near_sym_a" and len(exact.stages) > 2
            yield f"{biort} {band}", kernel, [exact, _chain(kernel, 2)] if short else [exact]
    for size in (11, 31):
        kernel = _gaussian(size, size / 8)
        yield "Gaussian", kernel, [_chain(kernel)]
    for size in (9, 15):
        kernel = _laplacian(size, size / 8)
        yield "LoG", kernel, [_chain(kernel)]
    for angle in (0.0, 0.6):
        kernel = _gabor(31, angle, 0.0)
        geometry = ConvGeometry.from_shape(kernel[None, None].shape)
        yield f"Gabor {angle:g} rad", kernel, [f.structure((1,) * (len(f.kernel_sizes) - 1))
                                               for f in dilated(geometry)]  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for size in (5, 7, 9):
        kernel = torch.randn(size, size, generator=generator, dtype=torch.float64)
        yield "random", kernel, [_chain(kernel)]


def print_filters() -> None:
    """One-channel kernels against the original method, the pair and CP."""
    table = _table(
        f"One channel, white metric; the original method from {STARTS} starts of 50 steps",
        ("kernel", "stages", "method", "multiplies", "error", "in float32", "seconds"),
    )
    slower, never_worse = [], True
    for name, kernel, structures in filters():
        weight = kernel[None, None]
        geometry = ConvGeometry.from_shape(weight.shape)
        for structure in structures:
            layer = Layer(name, weight, geometry, _no_moments(geometry))
            problem = layer.problem(structure, calibrated=False)
            methods = {"cascade": ours(problem, structure)}
            # Longer chains would take the original method minutes.
            if len(structure.stages) == 2:
                methods["original"] = timed(problem, lambda: _one_by_one(problem, structure))  # noqa: B023
                slower.append(methods["original"].seconds / methods["cascade"].seconds)
            if len(structure.stages) <= 5:
                methods["original, batched"] = timed(
                    problem,
                    lambda: alternating.solve(Request(problem, structure), RESTARTS).cascade,  # noqa: B023
                )
            originals = [m.error for key, m in methods.items() if key.startswith("original")]
            never_worse &= all(methods["cascade"].error <= e + 1e-9 for e in originals)
            if min(kernel.shape) > 1 and (ladder := _pair_ladder(geometry, structure.macs)):
                methods["pair"] = ours(layer.problem(ladder[-1], calibrated=False), ladder[-1])
            for label, outcome in methods.items():
                first = label == "cascade"
                table.add_row(
                    f"{name} {kernel.shape[0]}x{kernel.shape[1]}" if first else "",
                    str(len(structure.stages)) if first else "",
                    label,
                    str(outcome.cascade.structure.macs),
                    f"{outcome.error:.3g}",
                    f"{_in_single_precision(kernel, outcome.cascade):.1e}",
                    f"{outcome.seconds:.3f}",
                )
            table.add_section()
    CONSOLE.print(table)
    CONSOLE.print(
        f"the original method, one start after the other, takes {statistics.median(slower):.0f} "
        f"times as long in the median (least {min(slower):.0f}); its error is "
        f"{'never' if never_worse else 'SOMETIMES'} below ours"
    )


def print_banks() -> None:
    """Filter banks 1 -> N and random dense kernels against the pair, Tucker-2 and CP."""
    table = _table(
        "Filter banks and random kernels, white metric",
        ("kernel", "method", "multiplies", "error", "seconds"),
    )
    angles = [math.pi * i / 8 for i in range(8)]
    gabors = torch.stack([_gabor(31, a, p) for a in angles for p in (0.0, math.pi / 2)])
    gaussians = torch.stack([_gaussian(15, 15 / w) for w in (5, 6, 8, 10, 12)])
    laplacians = torch.stack([_laplacian(15, 15 / w) for w in (7, 8, 10, 12, 14)])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(16, 16, 7, 7, generator=generator, dtype=torch.float64)
    banks = {
        "Gabor bank": gabors[:, None],
        "Gaussian bank": gaussians[:, None],
        "LoG bank": laplacians[:, None],
        "random": noise,
    }
    for name, weight in banks.items():
        geometry = ConvGeometry.from_shape(weight.shape)
        layer = Layer(name, weight, geometry, _no_moments(geometry))
        macs = geometry.macs // 4
        families = [*full(geometry), *dilated(geometry)]
        # Fifteen dense stages are no sensible cascade; the dilated ones reach as far.
        ladders = [f.ladder(macs) for f in families if len(f.kernel_sizes) <= 7]
        found: dict[str, Outcome] = {}
        for structure in (ladder[-1] for ladder in ladders if ladder):
            found[str(structure)] = ours(layer.problem(structure, calibrated=False), structure)
        found |= _peers(layer, macs, calibrated=False)
        for i, (label, outcome) in enumerate(found.items()):
            table.add_row(
                f"{name} {_shape(geometry)}" if i == 0 else "",
                label,
                str(outcome.cascade.structure.macs),
                f"{outcome.error:.4f}",
                f"{outcome.seconds:.1f}",
            )
        table.add_section()
    CONSOLE.print(table)


def print_times() -> None:
    """Large problems of random kernels."""
    table = _table("Time of large problems, white metric", ("kernel", "stages", "error", "seconds"))
    generator = torch.Generator().manual_seed(0)
    for shape, groups, widths in (
        ((128, 128, 7, 7), 1, (64, 64)),
        ((384, 1, 7, 7), 384, (384, 384)),
    ):
        weight = torch.randn(shape, generator=generator, dtype=torch.float64)
        geometry = ConvGeometry.from_shape(weight.shape, groups=groups)
        structure = next(full(geometry, len(widths) + 1)).structure(widths)
        found = ours(Problem.from_weight(weight, groups), structure)
        table.add_row(
            _shape(geometry), str(structure), f"{found.error:.4f}", f"{found.seconds:.1f}"
        )
    CONSOLE.print(table)


def _one_by_one(problem: Problem, structure: Structure) -> Cascade:
    """The original method as it was run: one start after the other."""
    found = []
    for seed in range(STARTS):
        try:
            once = alternating.Recipe(starts=1)
            found.append(alternating.solve(Request(problem, structure, seed=seed), once))
        except ValueError:  # this start diverged
            continue
    return min(found, key=lambda restarts: float(restarts.losses)).cascade


def _pair_ladder(kernel: ConvGeometry, macs: int) -> list[Structure]:
    """Pairs within a budget."""
    return next(separable_pair(kernel)).ladder(macs)


def _chain(kernel: Tensor, stages: int | None = None) -> Structure:
    """Plain 3x3 stages for one kernel."""
    family = next(full(ConvGeometry.from_shape(kernel[None, None].shape), stages))
    return family.structure(family.widths(1))


def _no_moments(kernel: ConvGeometry) -> Moments:
    """Moments of white noise."""
    size = math.prod(kernel.weight_shape[1:])
    return Moments(
        torch.zeros(1, size, dtype=torch.float64),
        torch.eye(size, dtype=torch.float64)[None],
        kernel.kernel_size,
    )


def _in_single_precision(kernel: Tensor, cascade: Cascade) -> float:
    """Error of running the stages in float32 on noise with a mean, against float64."""
    generator = torch.Generator().manual_seed(0)
    side = 2 * max(*kernel.shape, *cascade.structure.span)
    image = torch.randn(1, 1, side, side, generator=generator, dtype=torch.float64) + 1
    top, left = cascade.offset
    exact = F.conv2d(image.float().double(), kernel[None, None])
    output = image.float()
    if min(top, left) < 0:
        output = F.pad(output, (-left, -left, -top, -top))
    else:
        output = output[..., top : side - top, left : side - left]
    for stage in cascade.to(torch.float32).stages:
        output = F.conv2d(output, stage.weight, None, stage.stride, 0, stage.dilation, stage.groups)
    return float((output.double() - exact).norm() / exact.norm())


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Coordinates of the taps about the middle."""
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return at[:, None], at[None, :]


def _gaussian(size: int, sigma: float) -> Tensor:
    """A Gaussian of unit sum."""
    y, x = _grid(size)
    kernel = torch.exp(-(y.square() + x.square()) / (2 * sigma**2))
    return kernel / kernel.sum()


def _laplacian(size: int, sigma: float) -> Tensor:
    """A Laplacian of Gaussian of zero sum."""
    y, x = _grid(size)
    squared = (y.square() + x.square()) / sigma**2
    kernel = (squared - 2) * torch.exp(-squared / 2)
    return kernel - kernel.mean()


def _gabor(size: int, angle: float, phase: float) -> Tensor:
    """A wave under a Gaussian, wavelength a quarter of the side."""
    y, x = _grid(size)
    along, across = (x * math.cos(angle) + y * math.sin(angle),
                     y * math.cos(angle) - x * math.sin(angle))  # fmt: skip
    envelope = torch.exp(-(along.square() + (0.7 * across).square()) / (2 * (size / 7) ** 2))
    return envelope * torch.cos(2 * math.pi * along * 4 / size + phase)


def _shape(kernel: ConvGeometry) -> str:
    """Name a convolution in a table."""
    size = "x".join(map(str, kernel.kernel_size))
    stride = f" /{kernel.stride[0]}" if kernel.stride != (1, 1) else ""
    groups = f" g{kernel.groups}" if kernel.groups > 1 else ""
    return f"{size} {kernel.in_channels}->{kernel.out_channels}{stride}{groups}"


def _table(title: str, columns: Sequence[str]) -> Table:
    """An empty table; numbers to the right."""
    table = Table(title=title, title_justify="left")
    words = ("layer", "kernel", "widths", "method", "stages")
    for column in columns:
        table.add_column(column, justify="left" if column in words else "right")
    return table


def _load(path: Path) -> ModuleType:
    """Import a file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Print the sections named on the command line, or all."""
    sections = {
        "filters": lambda _: print_filters(),
        "banks": lambda _: print_banks(),
        "white": lambda known: print_layers(known, calibrated=False),
        "calibrated": lambda known: print_layers(known, calibrated=True),
        "strided": print_strided,
        "convergence": print_convergence,
        "times": lambda _: print_times(),
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(sections)}; none prints all")
    parser.add_argument("--threads", type=int, help="threads of torch; none leaves its own choice")
    options = parser.parse_args()
    unknown = set(options.sections) - set(sections)
    if unknown:
        parser.error(f"unknown sections {sorted(unknown)}; there are {', '.join(sections)}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    tensorly.set_backend("pytorch")
    CONSOLE.print(
        f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads; Python "
        f"{platform.python_version()}, torch {torch.__version__}, tensorly {tensorly.__version__}"
    )
    wanted = options.sections or list(sections)
    known: dict[str, Layer] = {}
    if {"white", "calibrated", "strided", "convergence"} & set(wanted):
        folder = os.environ.get("CONVFACTOR_CASES")
        if folder:
            known = layers(_load(Path(folder) / "networks.py"))
        else:
            CONSOLE.print("CONVFACTOR_CASES is not set: the sections on networks are left out")
            wanted = [name for name in wanted if name in ("filters", "banks", "times")]
    _warm_up()
    for name in wanted:
        start = time.perf_counter()
        sections[name](known)
        CONSOLE.print(f"[{name}: {time.perf_counter() - start:.0f} s]\n", markup=False)


def _warm_up() -> None:
    """Load the libraries before a clock runs."""
    for shape in ((1, 1, 5, 5), (2, 3, 5, 5)):
        weight = torch.ones(shape, dtype=torch.float64)
        structure = next(full(ConvGeometry.from_shape(weight.shape))).structure((1,))
        solve(Request(Problem.from_weight(weight), structure, effort="draft"))


if __name__ == "__main__":
    main()
