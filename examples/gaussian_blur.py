"""A 31x31 Gaussian blur as fifteen 3x3 convolutions: exact, since the kernel is separable.

SciPy in double precision is the judge of the float32 results. The two passes of 31x1 and 1x31 that
are usual for this filter stand beside the cascade.

    python examples/gaussian_blur.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import scipy.ndimage
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import convfactor
from convfactor import CascadeConv2d, StageShape, Structure, plots
from convfactor.demo import photographs
from convfactor.latency import compare

SIZE = 31


def gaussian(sigma: float) -> Tensor:
    """Taps of a Gaussian of SIZE pixels, float64, with sum 1."""
    positions = torch.arange(SIZE, dtype=torch.float64) - SIZE // 2
    taps = torch.exp(-(positions**2) / (2 * sigma**2))
    return taps / taps.sum()


def main() -> None:
    """Factorize, compare with SciPy, time, draw the stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sigma", type=float, default=5.0)
    parser.add_argument("--size", type=int, default=512, help="longest side of the photograph")
    parser.add_argument("--output", type=Path, default=Path("gaussian_blur.png"))
    options = parser.parse_args()

    taps = gaussian(options.sigma)
    kernel = torch.outer(taps, taps)
    blur = nn.Conv2d(1, 1, SIZE, padding=SIZE // 2, padding_mode="reflect", bias=False)
    blur.weight = nn.Parameter(kernel[None, None].float())

    # Solved in double precision; the layers have the dtype of the convolution that they replace.
    f = convfactor.factorize(kernel, stages=SIZE // 2)
    print(f"{len(f.stages)} stages, relative error in double precision: {f.error:.1e}")
    shapes = (StageShape(1, 1, (SIZE, 1)), StageShape(1, 1, (1, SIZE)))
    pair = Structure(shapes).cascade([taps, taps])  # the textbook's way, to compare with
    layers = {
        "31x31": blur,
        "3x3 cascade": CascadeConv2d.from_conv(blur, f),
        "3x3 cascade, channels_last": CascadeConv2d.from_conv(blur, f, torch.channels_last),
        "31x1, 1x31": CascadeConv2d.from_conv(blur, pair),
    }
    multiplies = (SIZE**2, f.macs, f.macs, pair.structure.macs)

    image = photographs.testing()["camera"][..., : options.size, : options.size].contiguous()
    exact = scipy.ndimage.correlate(image[0, 0].double().numpy(), kernel.numpy(), mode="mirror")
    timings = compare([lambda m=m: m(image) for m in layers.values()], torch.device("cpu"), 3.0)
    table = Table(title=f"float32 on {exact.shape[1]} x {exact.shape[0]} pixels")
    for title in ("layer", "multiplies", "largest error", "ms", "speed-up"):
        table.add_column(title, justify="right")
    for (name, layer), macs, timing in zip(layers.items(), multiplies, timings, strict=True):
        with torch.no_grad():
            error = np.abs(layer(image)[0, 0].numpy() - exact).max()
        table.add_row(
            name, str(macs), f"{error:.1e}",
            f"{1e3 * timing.median:.2f}", f"{timings[0].median / timing.median:.2f}x",
        )  # fmt: skip
    Console().print(table)
    plots.plot_kernels(kernel, f).savefig(options.output, dpi=100)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
