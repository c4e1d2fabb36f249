"""Measure whether 3x3 convolutions run faster than larger ones, and which kernels run them.

Every row has about the multiplies of the first, or its channels with `--same channels`. All rows
run in this process, interleaved, in both memory formats; the share is that of the best matrix
product, which is measured beside them. On a CPU oneDNN names its kernel, on a GPU the profiler.
`--write` puts the table into `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pages
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from convfactor.latency import Timing, compare

SIDES = (512, 1024, 2048, 4096)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Row:
    """A convolution of as many channels on both sides.

    Attributes:
        kernel: Taps on a side.
        channels: Channels.
        groups: 1, or the channels.
    """

    kernel: int
    channels: int
    groups: int

    @property
    def macs(self) -> int:
        """Multiplies per output pixel."""
        return self.channels**2 * self.kernel**2 // self.groups


def main() -> None:
    """Parse the command line, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=128, help="of the first row")
    parser.add_argument("--kernels", type=int, nargs="+", default=[3, 5, 7, 9])
    parser.add_argument("--same", choices=("multiplies", "channels"), default="multiplies")
    parser.add_argument("--depthwise", action="store_true")
    parser.add_argument("--size", type=int, default=128, help="side of the image in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", default="float32", help="of weights and inputs, as torch names it"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="for all rows together")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md as well")
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        parser.error(f"--dtype must be a floating dtype of torch, got {options.dtype}")
    if min(options.kernels) < 1 or min(options.channels, options.size, options.batch) < 1:
        parser.error("--kernels, --channels, --size and --batch must be at least 1")
    cells = [(row, name) for row in _rows(options) for name in FORMATS]
    calls = [_call(row, name, options, device, dtype) for row, name in cells]
    timings = compare(calls, device, options.seconds)
    peak = _peak(device, dtype)
    pixels = options.batch * options.size**2
    lines = [
        f"{pages.machine(device)}, torch {torch.__version__}, {options.dtype}, "
        f"batch {options.batch}, {options.size}x{options.size} pixels; "
        f"a matrix product reaches {peak / 1e9:.0f} GFLOP/s",
        "",
        "| kernel | channels | format | ms | GFLOP/s | share | ns per 1000 multiplies | run by |",
        "|---|---:|---|---:|---:|---:|---:|---|",
    ]
    for (row, name), timing, call in zip(cells, timings, calls, strict=True):
        lines.append(_line(row, name, timing, pixels, peak, _kernels(call, device)))
    text = "\n".join(lines)
    print(text)
    if options.write:
        pages.write("depthwise kernels" if options.depthwise else "kernels", text)


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    """What to measure."""
    first = options.kernels[0]
    for kernel in options.kernels:
        channels = options.channels
        if options.same == "multiplies":
            ratio = (first / kernel) ** 2 if options.depthwise else first / kernel
            channels = max(1, round(channels * ratio))
        yield Row(kernel, channels, channels if options.depthwise else 1)


def _call(
    row: Row, name: str, options: argparse.Namespace, device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    """A convolution that is ready to run, in one memory format."""
    generator = torch.Generator().manual_seed(0)
    sizes = (
        (options.batch, row.channels, options.size, options.size),
        (row.channels, row.channels // row.groups, row.kernel, row.kernel),
    )
    x, weight = (
        torch.randn(size, generator=generator).to(device, dtype, memory_format=FORMATS[name])
        for size in sizes
    )
    return functools.partial(F.conv2d, x, weight, padding=row.kernel // 2, groups=row.groups)


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest square matrix product."""
    best = 0.0
    for side in SIDES:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        (timing,) = compare([functools.partial(torch.mm, a, b)], device)
        best = max(best, 2 * side**3 / timing.low)
    return best


def _line(row: Row, name: str, timing: Timing, pixels: int, peak: float, kernels: list[str]) -> str:
    """A row of the table."""
    speed = 2 * row.macs * pixels / timing.median
    low, median, high = (1e3 * t for t in (timing.low, timing.median, timing.high))
    cells = (
        f"{row.kernel}x{row.kernel}",
        f"{row.channels}{' depthwise' if row.groups > 1 else ''}",
        name,
        f"{median:.3g} [{low:.3g}..{high:.3g}]",
        f"{speed / 1e9:.3g}",
        f"{speed / peak:.0%}",
        f"{1e12 * timing.median / (row.macs * pixels):.3g}",
        ", ".join(kernels),
    )
    return f"| {' | '.join(cells)} |"


def _kernels(call: Callable[[], object], device: torch.device) -> list[str]:
    """Names of the kernels that one call runs."""
    if device.type == "cpu":
        with _printed() as lines, torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            call()
        fields = [line.split(",") for line in lines if ",exec," in line]
        start = [row.index("exec") for row in fields]
        named = [f"{r[i + 2]} {r[i + 3]}" for r, i in zip(fields, start, strict=True)]
        return list(dict.fromkeys(named)) or ["torch's own"]
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.accelerator.synchronize(device)
    events = [e for e in seen.key_averages() if e.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    return [event.key for event in events[:3]]


@contextmanager
def _printed() -> Iterator[list[str]]:
    """Catch what libraries print past Python; the lines are there at the end."""
    lines: list[str] = []
    with tempfile.NamedTemporaryFile() as file:
        kept = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            yield lines
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            lines += Path(file.name).read_text().splitlines()


if __name__ == "__main__":
    main()
