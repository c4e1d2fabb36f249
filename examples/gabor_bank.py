"""A bank of 40 Gabor filters of 31x31 pixels, made faster within a tolerance.

The bank is a plain convolution with fixed weights. Without calibration data the tolerance bounds
the error of the weights themselves, so every filter counts alike; the error of the responses to a
photograph is printed beside it, and can be larger.

    python examples/gabor_bank.py
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import convfactor
from convfactor.demo import photographs
from convfactor.plots import SIGNED

SCALES, ORIENTATIONS = 5, 8
SHOWN = (1, 11, 21, 31, 36)


def gabor(size: int, wavelength: float, angle: float) -> Tensor:
    """Even Gabor filter (size, size), float64: a wave under a Gaussian half a wavelength wide.

    Its sum is 0, so that it does not see brightness, and its norm 1.
    """
    steps = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    envelope = torch.exp(-(x**2 + y**2) / (2 * (wavelength / 2) ** 2))
    phase = 2 * math.pi / wavelength * (x * math.cos(angle) + y * math.sin(angle))
    wave = envelope * torch.cos(phase)
    wave -= envelope * wave.sum() / envelope.sum()
    return wave / wave.norm()


def bank(size: int) -> nn.Conv2d:
    """Convolution 1 -> 40; the longest waves are half as long as the filter."""
    filters = [
        gabor(size, size / 2 / 2 ** (scale / 2), math.pi * turn / ORIENTATIONS)
        for scale in reversed(range(SCALES))
        for turn in range(ORIENTATIONS)
    ]
    conv = nn.Conv2d(1, len(filters), size, padding=size // 2, padding_mode="reflect", bias=False)
    conv.weight = nn.Parameter(torch.stack(filters)[:, None].float())
    return conv.eval()


def impulse_response(model: nn.Module, size: int) -> Tensor:
    """Filters (C, size, size) of a model, seen from outside: what it makes of a single point."""
    point = torch.zeros(1, 1, 2 * size - 1, 2 * size - 1)
    point[..., size - 1, size - 1] = 1
    start = size // 2
    with torch.no_grad():
        response = model(point)[0, :, start : start + size, start : start + size]
    return response.flip(-2, -1)  # a convolution layer correlates


def draw(filters: Tensor, composed: Tensor, responses: Tensor, path: Path) -> None:
    """Save some filters, what they have become, the error, and responses to the photograph."""
    rows = {
        "filter": filters, "optimized": composed, "30 x error": 30 * (composed - filters),
        "response": responses,
    }  # fmt: skip
    figure = Figure(figsize=(8.5, 7.1), layout="constrained")
    for axes, (title, channels) in zip(
        figure.subplots(len(rows), len(SHOWN)), rows.items(), strict=True
    ):
        reference = responses if title == "response" else filters
        for axis, channel in zip(axes, SHOWN, strict=True):
            limit = reference[channel].abs().max().item()
            axis.imshow(channels[channel], cmap=SIGNED, vmin=-limit, vmax=limit)
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(title)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Build the bank, optimize it, draw filters and responses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--kernel-size", type=int, default=31)
    parser.add_argument("--size", type=int, default=256, help="longest side of the photograph")
    parser.add_argument("--output", type=Path, default=Path("gabor_bank.png"))
    options = parser.parse_args()

    camera = photographs.testing()["camera"]
    image = camera[..., 60 : 60 + options.size, 150 : 150 + options.size].contiguous()
    conv = bank(options.kernel_size)
    fast, plan = convfactor.optimize(conv, image, options.tolerance)
    print(plan)

    with torch.no_grad():
        response, approximate = conv(image)[0], fast(image)[0]
    error = (approximate - response).norm() / response.norm()
    print(f"error of the responses to the photograph: {error:.2%}")

    draw(conv.weight[:, 0].detach(), impulse_response(fast, options.kernel_size), approximate,
         options.output)  # fmt: skip
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
