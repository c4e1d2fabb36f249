"""Small layers whose kernels are cascades of narrow 3x3 stages: exact answers exist."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from convfactor import Cascade
from convfactor.conv.geometry import Pair
from convfactor.conv.structure import StageShape, Structure


def structure(*stages: tuple[Any, ...]) -> Structure:
    """A structure of stages, each as the arguments of ``StageShape``."""
    return Structure(tuple(StageShape(*stage) for stage in stages))


def apart(
    channels: int, size: Pair, outputs: int = 0, dilation: Pair = (1, 1), groups: int = 0
) -> tuple[Any, ...]:
    """A stage that keeps its channels, or some groups of them, apart."""
    return channels, outputs or channels, size, (1, 1), dilation, groups or channels


def kernel(
    out: int = 2, channels: int = 2, size: int = 5, groups: int = 1, seed: int = 0
) -> Tensor:
    """Compose random 3x3 stages with one hidden channel per group, (out, channels/groups, ...)."""
    widths = (channels, *[groups] * (size // 2 - 1), out)
    stages = [StageShape(a, b, (3, 3), groups=groups) for a, b in itertools.pairwise(widths)]
    return Cascade.random(Structure(tuple(stages)), seed).compose().float()


def conv(
    channels: int = 2, out: int = 2, size: int = 5, seed: int = 0, **options: Any
) -> nn.Conv2d:
    """An ``nn.Conv2d`` with such a kernel; padded so that the size stays, unless told otherwise."""
    layer = nn.Conv2d(channels, out, size, **{"padding": size // 2, **options})
    with torch.no_grad():
        layer.weight.copy_(kernel(out, channels, size, layer.groups, seed))
        if layer.bias is not None:
            layer.bias.copy_(torch.linspace(-1, 1, out))
    return layer


def images(seed: int = 0, channels: int = 2, count: int = 1, size: int = 12) -> Tensor:
    """Random images, (count, channels, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, size, size, generator=generator)


def batches(count: int = 4, **options: Any) -> list[Tensor]:
    """Calibration batches of two images each."""
    return [images(seed, count=2, **options) for seed in range(count)]


class Functional(nn.Module):
    """Calls ``F.conv2d`` with a parameter of its own."""

    def __init__(self, seed: int = 0, bias: bool = True) -> None:
        super().__init__()
        self.kernel = nn.Parameter(kernel(seed=seed))
        self.shift = nn.Parameter(torch.tensor([0.5, -0.5])) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, self.kernel, self.shift, padding=2)


class Untraceable(nn.Module):
    """Branches on its data around one convolution."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.conv = conv(seed=seed)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y if y.sum() > 0 else -y
