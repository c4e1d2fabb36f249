"""Time the dual-tree wavelet transform against pytorch_wavelets, or compare all results.

Both sides run in this process, interleaved; times are medians in nanoseconds per pixel of the
image, next to those of a plain copy of it. `--exhaustive` times nothing: it compares the results
over all filters, modes, levels and sizes.
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

import torch
from torch import Tensor, nn

from convfactor.latency import compare
from convfactor.wavelets import DTCWTForward, DTCWTInverse

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pytorch_wavelets 1.3.0 imports pkg_resources
    import pytorch_wavelets

SHAPES = ((1, 1, 512, 512), (1, 3, 512, 512), (8, 64, 64, 64), (16, 3, 224, 224),
          (1, 64, 128, 128), (1, 3, 1080, 1920))  # fmt: skip
BIORTS = ("antonini", "legall", "near_sym_a", "near_sym_b")
QSHIFTS = ("qshift_06", "qshift_a", "qshift_b", "qshift_c", "qshift_d", "qshift_32")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--direction", choices=("inverse", "forward"), default="inverse")
    parser.add_argument("--gradients", action="store_true", help="time forward and backward")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--biort", default="near_sym_a")
    parser.add_argument("--qshift", default="qshift_a")
    parser.add_argument("--compiled", action="store_true", help="compile both sides as well")
    parser.add_argument("--tuned", action="store_true", help="tune ours for every shape as well")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="threads on the CPU")
    parser.add_argument("--seconds", type=float, default=2.0, help="per row")
    parser.add_argument("--exhaustive", action="store_true", help="compare results instead")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.exhaustive:
        compare_everything()
    else:
        time_everything(options)


def time_everything(options: argparse.Namespace) -> None:
    """Print one row per shape and number of levels, and the mean ratio."""
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    print(f"{device} {name}, {torch.get_num_threads()} threads, float32, torch {torch.__version__}")
    print(f"{options.direction}{' and backward' * options.gradients}, {options.biort}, "
          f"{options.qshift}; ns per pixel (quartiles)")  # fmt: skip
    ratios = []
    for shape, levels in itertools.product(SHAPES, options.levels):
        sides, inputs = _sides(options, shape, levels, device)
        call = _with_gradients if options.gradients else _without_gradients
        image = torch.randn(shape, device=device)
        calls = [image.clone, *(call(module, inputs) for module in sides.values())]
        copy, *timings = compare(calls, device, options.seconds)
        scale = 1e9 / math.prod(shape)
        row = [
            f"{side} {scale * t.median:7.2f} ({scale * t.low:.2f}..{scale * t.high:.2f})"
            for side, t in zip(sides, timings, strict=True)
        ]
        ratios.append(timings[0].median / timings[1].median)
        text = "x".join(map(str, shape))
        print(f"{text:>14} J={levels}  copy {scale * copy.median:5.2f}  {'  '.join(row)}"
              f"  {ratios[-1]:.2f}x", flush=True)  # fmt: skip
    print(f"geometric mean {statistics.geometric_mean(ratios):.2f}x, least {min(ratios):.2f}x")


def _sides(
    options: argparse.Namespace, shape: tuple[int, ...], levels: int, device: torch.device
) -> tuple[dict[str, nn.Module], object]:
    """Transforms by name, the original first and ours second, and what they are called with."""
    analysis = pytorch_wavelets.DTCWTForward(options.biort, options.qshift, levels).to(device)
    inputs: object = torch.randn(shape, device=device)
    ours: DTCWTForward | DTCWTInverse
    if options.direction == "forward":
        original, ours = analysis, DTCWTForward.from_module(analysis)
    else:
        original = pytorch_wavelets.DTCWTInverse(options.biort, options.qshift).to(device)
        ours = DTCWTInverse.from_module(original)
        with torch.no_grad():
            inputs = analysis(inputs)
    sides = {"original": original, "ours": ours}
    if options.tuned:
        sides["tuned"] = tuned = type(ours).from_module(original)
        _tune(tuned, shape, levels)
    if options.compiled:
        torch._dynamo.reset()
        sides |= {f"{name} compiled": torch.compile(side) for name, side in sides.items()}
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
