"""Time the dual-tree wavelet transform against pytorch_wavelets, or compare all results.

All forms run in this process, interleaved; times are medians in nanoseconds per pixel of the
image. The share is that of the bandwidth of a large copy, measured beside them, which reading all
inputs and writing all outputs once would take. `--write` puts the tables into
`docs/benchmarks.md`. `--exhaustive` times nothing: it compares the results over all filters,
modes, levels and sizes.
"""

from __future__ import annotations

import argparse
import itertools
import math
import platform
import random
import statistics
import warnings
from collections.abc import Callable, Iterator

import pages
import torch
from torch import Tensor, nn

from convfactor import wavelets
from convfactor.latency import Timing, compare
from convfactor.wavelets import DTCWTForward, DTCWTInverse

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pytorch_wavelets 1.3.0 imports pkg_resources
    import pytorch_wavelets

SHAPES = ((1, 1, 512, 512), (1, 3, 512, 512), (8, 64, 64, 64), (1, 64, 128, 128),
          (4, 3, 224, 224))  # fmt: skip
BIORTS = ("antonini", "legall", "near_sym_a", "near_sym_b")
QSHIFTS = ("qshift_06", "qshift_a", "qshift_b", "qshift_c", "qshift_d", "qshift_32")
SCATTERED = ((1, 3, 512, 512), (8, 16, 64, 64), (4, 64, 32, 32))
LAYERS = ("ScatLayer", "ScatLayerj2")
DIRECTIONS = ("inverse", "forward")
COPIED = 1 << 24  # numbers


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directions", choices=DIRECTIONS, nargs="+", default=list(DIRECTIONS))
    parser.add_argument(
        "--gradients", choices=("without", "with"), nargs="+", default=["without", "with"]
    )
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--biort", default="near_sym_a")
    parser.add_argument("--qshift", default="qshift_a")
    parser.add_argument("--scattering", action="store_true", help="the scattering layers instead")
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well")
    parser.add_argument("--tuned", action="store_true", help="tune torch's form for every shape")
    parser.add_argument("--quick", action="store_true", help="the first shape alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="threads on the CPU")
    parser.add_argument("--seconds", type=float, default=0.3, help="per row, five rounds at least")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md as well")
    parser.add_argument("--exhaustive", action="store_true", help="compare results instead")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.exhaustive:
        compare_everything()
        return
    time_everything(options)


def time_everything(options: argparse.Namespace) -> None:
    """Print a table for either direction, without and with gradients."""
    device = torch.device(options.device)
    if device.type == "cpu":
        wavelets.build()
    bandwidth = _bandwidth(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    head = (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32, "
        f"{options.biort}, {options.qshift}; a copy reads and writes {bandwidth / 1e9:.1f} GB/s"
    )
    names = ["scattering"] if options.scattering else options.directions
    for direction, gradients in itertools.product(names, options.gradients):
        backward = gradients == "with"
        if options.scattering:
            table = _scattering(options, backward, device)
        else:
            table = _table(options, direction, backward, device, bandwidth)
        text = "\n".join([head, "", *table, ""])
        print(text, flush=True)
        if options.write:
            section = f"wavelets {direction}{' and backward' * backward}"
            pages.write(f"{section}{' compiled' * options.compiled}", text)


def _bandwidth(device: torch.device) -> float:
    """Bytes that a copy reads and writes in a second."""
    source = torch.randn(COPIED, device=device)
    target = torch.empty_like(source)
    (timing,) = compare([lambda: target.copy_(source)], device)
    return 8 * COPIED / timing.median


def _table(
    options: argparse.Namespace,
    direction: str,
    gradients: bool,
    device: torch.device,
    bandwidth: float,
) -> list[str]:
    """The rows of a direction, and the means over them."""
    lines: list[str] = []
    ratios: dict[str, list[float]] = {}
    for shape, levels in itertools.product(SHAPES[: 1 if options.quick else None], options.levels):
        sides, inputs = _sides(options, direction, shape, levels, device)
        call = _with_gradients if gradients else _without_gradients
        calls = [call(module, inputs) for module in sides.values()]
        timings = dict(zip(sides, compare(calls, device, options.seconds), strict=True))
        original = timings["original"].median
        for side, timing in timings.items():
            ratios.setdefault(side, []).append(original / timing.median)
        numbers = sum(t.numel() for t in (*_tensors(inputs), *_tensors(_output(sides, inputs))))
        least = 4 * numbers * (2 if gradients else 1) / bandwidth
        share = least / min(timing.median for timing in timings.values())
        cells = ["x".join(map(str, shape)), str(levels)]
        cells += [_cell(timing, original, math.prod(shape)) for timing in timings.values()]
        lines.append(f"| {' | '.join([*cells, f'{share:.0%}'])} |")
    title = direction + (" and backward" if gradients else "")
    header = [title, "J", *(f"{side}, ns per pixel" for side in ratios), "share of a copy"]
    means = [f"{statistics.geometric_mean(r):.2f}x (least {min(r):.2f}x)" for r in ratios.values()]
    return [
        f"| {' | '.join(header)} |",
        f"|---|---:|{'---:|' * (len(ratios) + 1)}",
        *lines,
        f"| geometric mean | | {' | '.join(means)} | |",
    ]


def _scattering(options: argparse.Namespace, gradients: bool, device: torch.device) -> list[str]:
    """The rows of the scattering layers, and the means over them."""
    lines: list[str] = []
    ratios: dict[str, list[float]] = {}
    shapes = SCATTERED[: 1 if options.quick else None]
    for layer, shape in itertools.product(LAYERS, shapes):
        original = getattr(pytorch_wavelets, layer)().to(device)
        kind = getattr(wavelets, layer)
        sides = {"original": original, "ours by torch": kind.from_module(original, "torch")}
        if device.type == "cpu":
            sides["our kernels"] = kind.from_module(original, "cpp")
        call = _with_gradients if gradients else _without_gradients
        inputs = torch.randn(shape, device=device)
        calls = [call(module, inputs) for module in sides.values()]
        timings = compare(calls, device, options.seconds)
        first = timings[0].median
        for side, timing in zip(sides, timings, strict=True):
            ratios.setdefault(side, []).append(first / timing.median)
        cells = [layer, "x".join(map(str, shape))]
        cells += [_cell(timing, first, math.prod(shape)) for timing in timings]
        lines.append(f"| {' | '.join(cells)} |")
    title = "forward and backward" if gradients else "forward"
    header = [title, "images", *(f"{side}, ns per pixel" for side in ratios)]
    means = [f"{statistics.geometric_mean(r):.2f}x (least {min(r):.2f}x)" for r in ratios.values()]
    return [
        f"| {' | '.join(header)} |",
        f"|---|---|{'---:|' * len(ratios)}",
        *lines,
        f"| geometric mean | | {' | '.join(means)} |",
    ]


def _output(sides: dict[str, nn.Module], inputs: object) -> object:
    """What all of them return."""
    with torch.no_grad():
        return sides["original"](inputs)


def _cell(timing: Timing, original: float, pixels: int) -> str:
    low, median, high = (1e9 * t / pixels for t in (timing.low, timing.median, timing.high))
    return f"{median:.3g} [{low:.3g}..{high:.3g}] {original / timing.median:.1f}x"


def _sides(
    options: argparse.Namespace,
    direction: str,
    shape: tuple[int, ...],
    levels: int,
    device: torch.device,
) -> tuple[dict[str, nn.Module], object]:
    """Transforms by name, the original first, and what they are called with."""
    analysis = pytorch_wavelets.DTCWTForward(options.biort, options.qshift, levels).to(device)
    inputs: object = torch.randn(shape, device=device)
    original = analysis
    kind: type[DTCWTForward] | type[DTCWTInverse] = DTCWTForward
    if direction == "inverse":
        original = pytorch_wavelets.DTCWTInverse(options.biort, options.qshift).to(device)
        kind = DTCWTInverse
        with torch.no_grad():
            inputs = analysis(inputs)
    by_torch = kind.from_module(original, backend="torch")
    if options.tuned:
        _tune(by_torch, shape, levels)
    sides = {"original": original, "ours by torch": by_torch}
    if device.type == "cpu":
        sides["our kernels"] = kind.from_module(original, backend="cpp")
    if options.compiled:
        torch._dynamo.reset()
        sides |= {f"{name}, torch.compile": torch.compile(one) for name, one in sides.items()}
    return sides, inputs


def _tune(module: DTCWTForward | DTCWTInverse, shape: tuple[int, ...], levels: int) -> None:
    if isinstance(module, DTCWTInverse):
        module.tune(shape, levels)
    else:
        module.tune(shape)


def _without_gradients(module: nn.Module, inputs: object) -> Callable[[], object]:
    return lambda: module(inputs)


def _with_gradients(module: nn.Module, inputs: object) -> Callable[[], object]:
    leaves = list(_tensors(inputs))
    for leaf in leaves:
        leaf.requires_grad_()
    with torch.no_grad():
        weights = [torch.randn_like(tensor) for tensor in _tensors(module(inputs))]

    def call() -> object:
        with torch.enable_grad():
            return torch.autograd.grad(list(_tensors(module(inputs))), leaves, weights)

    return call


def _tensors(nested: object) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (list, tuple)):
        for item in nested:
            yield from _tensors(item)


def compare_everything() -> None:
    """Compare the inverse over all filters, modes, levels and sizes, in both precisions."""
    rng = random.Random(0)
    sizes = list(itertools.product(range(2, 13), repeat=2))
    sizes += [(rng.randint(2, 70), rng.randint(2, 70)) for _ in range(60)]
    worst = {torch.float64: 0.0, torch.float32: 0.0}
    count = 0
    for dtype in worst:
        torch.set_default_dtype(dtype)
        for biort, qshift in itertools.product(BIORTS, QSHIFTS):
            for mode, levels in itertools.product(("symmetric", "zero"), range(1, 6)):
                analysis = pytorch_wavelets.DTCWTForward(biort, qshift, levels)
                original = pytorch_wavelets.DTCWTInverse(biort, qshift, mode=mode)
                ours = DTCWTInverse(biort, qshift, mode=mode)
                for size in sizes:
                    with torch.no_grad():
                        low, highs = analysis(torch.randn(1, 1, *size))
                        coeffs = torch.randn_like(low), [torch.randn_like(b) for b in highs]
                        expected = original(coeffs)
                        error = (ours(coeffs) - expected).abs().max() / expected.abs().max()
                    worst[dtype] = max(worst[dtype], error.item())
                    count += 1
    for dtype, error in worst.items():
        print(f"{dtype}: largest difference {error:.1e} of the largest value")
    print(f"{count} cases")


if __name__ == "__main__":
    main()
