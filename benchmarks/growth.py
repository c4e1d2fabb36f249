"""Measure how the time and the memory of planning grow with what is planned.

Networks of 10, 100 and 1000 convolutions, alike or each of another geometry, then single layers of
growing kernels, channels and images. Every network is planned in a process of its own, so that its
peak memory is known; beside it stands the peak of the same process when it had only run the model.
`--write` puts the table into `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Literal

import pages
import torch
from torch import Tensor, nn

import convfactor

LARGEST_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss
FEW = 100  # layers that are calibrated or timed in a few minutes
MACS, TIME = "multiplies", "time"


@dataclass(frozen=True)
class Case:
    """A network to plan.

    Attributes:
        layers: Convolutions in a row.
        kernel: Taps on a side.
        channels: Channels on both sides of every layer.
        side: Height of the image in pixels.
        ratio: Width over height.
        depthwise: Whether the layers are depthwise, with separable kernels that factor exactly;
            otherwise they are dense, with random weights.
        distinct: Whether every layer has another geometry, by its kernel and dilation.
        objective: As in ``convfactor.plan``.
        calibrated: Whether there is calibration data.
        budget: The one that is given.
    """

    layers: int = 1
    kernel: int = 9
    channels: int = 4
    side: int = 32
    ratio: float = 1.0
    depthwise: bool = True
    distinct: bool = False
    objective: Literal["latency", "macs"] = "macs"
    calibrated: bool = False
    budget: Literal["tolerance", "model_tolerance"] = "tolerance"

    @property
    def x(self) -> Tensor:
        """An input."""
        return torch.rand(1, self.channels, self.side, round(self.side * self.ratio))

    def model(self) -> nn.Module:
        """The network."""
        return nn.Sequential(*map(self._conv, range(self.layers))).eval().requires_grad_(False)

    def _conv(self, i: int) -> nn.Conv2d:
        """One of its layers."""
        sizes, dilation = (self.kernel, self.kernel), (1, 1)
        if self.distinct:  # 1024 of them
            sizes = (5 + 2 * (i % 4), 5 + 2 * (i // 4 % 4))
            dilation = (1 + i // 16 % 8, 1 + i // 128 % 8)
        pads = (sizes[0] // 2 * dilation[0], sizes[1] // 2 * dilation[1])
        groups = self.channels if self.depthwise else 1
        channels = self.channels
        conv = nn.Conv2d(channels, channels, sizes, 1, pads, dilation, groups, bias=False)
        if self.depthwise:
            rows, cols = (
                torch.exp(-((1 + i / 1000) * torch.linspace(-2, 2, size)).square())
                for size in sizes
            )
            kernel = torch.outer(rows / rows.sum(), cols / cols.sum())
            conv.weight = nn.Parameter(kernel.expand(conv.weight.shape).clone())
        return conv


@dataclass(frozen=True)
class Grown:
    """What planning took: seconds, MiB at the peak before it and with it, layers replaced."""

    seconds: float
    before: float
    after: float
    replaced: int


def main() -> None:
    """Parse the command line, plan every network, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--full", action="store_true",
                        help="calibrate and time more than 100 layers as well")  # fmt: skip
    parser.add_argument("--kernels", type=int, nargs="*", default=[5, 11, 21, 31, 51])
    parser.add_argument("--channels", type=int, nargs="*", default=[64, 256, 1024])
    parser.add_argument("--sides", type=int, nargs="*", default=[540, 1080, 2160],
                        help="heights of images of 16:9")  # fmt: skip
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md as well")
    options = parser.parse_args()
    for section, cases in (
        ("growth in layers", _networks(options)),
        ("growth of a layer", _single_layers(options)),
    ):
        if not cases:
            continue
        lines = [
            f"{pages.machine(torch.device('cpu'))}, torch {torch.__version__}",
            "",
            "| network | planned by | s | s per layer | MiB, model run | MiB, planned | replaced |",
            "|---|---|---:|---:|---:|---:|---:|",
        ]
        print("\n".join(lines), flush=True)
        for name, how, case in cases:
            lines.append(_line(name, how, case, _in_a_process(case)))
            print(lines[-1], flush=True)
            if options.write:  # at once, since the whole takes minutes
                pages.write(section, "\n".join(lines))


def _networks(options: argparse.Namespace) -> list[tuple[str, str, Case]]:
    """Networks of many layers, each with its name and how it is planned."""
    found = []
    for distinct, count in itertools.product((False, True), sorted(options.layers)):
        name = f"{count} depthwise, {'distinct' if distinct else 'alike'}"
        found.append((name, MACS, Case(count, distinct=distinct)))
    few = [count for count in sorted(options.layers) if count <= FEW or options.full]
    for count in few:
        case = Case(count, channels=32, side=112, calibrated=True)
        found.append((f"{count} depthwise, 32 channels, 112x112", f"{MACS}, calibrated", case))
    for count in few:
        case = Case(count, channels=32, side=112, objective="latency")
        found.append((f"{count} depthwise, 32 channels, 112x112", TIME, case))
    return found


def _single_layers(options: argparse.Namespace) -> list[tuple[str, str, Case]]:
    """Single layers of growing size."""
    found = []
    for kernel in options.kernels:
        case = Case(kernel=kernel, channels=64, side=56, objective="latency")
        found.append((f"1 depthwise, {kernel}x{kernel}", TIME, case))
        case = Case(kernel=kernel, channels=8, side=56, depthwise=False, objective="latency")
        found.append((f"1 dense 8->8, {kernel}x{kernel}", TIME, case))
    for channels in options.channels:
        case = Case(kernel=5, channels=channels, side=14, depthwise=False, objective="latency")
        found.append((f"1 dense 5x5, {channels} channels", TIME, case))
    for side in options.sides:
        case = Case(side=side, ratio=16 / 9, channels=3, depthwise=False, objective="latency")
        found.append((f"1 dense 9x9 3->3, {side}x{round(side * 16 / 9)}", TIME, case))
    return found


def _in_a_process(case: Case) -> Grown:
    """Plan a network in a new process, whose peak memory is its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        return executor.submit(_plan, case).result()


def _plan(case: Case) -> Grown:
    """Plan a network in this process."""
    torch.manual_seed(0)
    model, x = case.model(), case.x
    with torch.no_grad():
        model(x)
    before = _peak()
    given: dict[str, Any] = {case.budget: 0.01}
    if case.calibrated:
        given["calibration"] = [case.x for _ in range(4)]
    start = time.perf_counter()
    plan = convfactor.plan(model, x, objective=case.objective, progress=False, **given)
    return Grown(time.perf_counter() - start, before, _peak(), len(plan.replaced))


def _peak() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * LARGEST_UNIT / 2**20


def _line(name: str, how: str, case: Case, grown: Grown) -> str:
    """A row of the table."""
    cells = (
        name,
        how,
        f"{grown.seconds:.3g}",
        f"{grown.seconds / case.layers:.2g}",
        f"{grown.before:.0f}",
        f"{grown.after:.0f}",
        f"{grown.replaced} of {case.layers}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
