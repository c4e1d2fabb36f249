"""Measuring how a transform is best computed; nothing else in this package is timed."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from convfactor.latency import compare
from convfactor.wavelets.banks import Sizes
from convfactor.wavelets.transform import Transform

CHOICES = {
    "whole": (1, 48, 96, 192),
    "tile": (8, 16, 32, 64),
    "chunk": (1 << 16, 1 << 18, 1 << 20),
}


def keep_fastest(module: Transform, inputs: object) -> dict[Sizes, float]:
    """Time a transform in several sizes, one field after the other, and keep the fastest.

    Args:
        module: The transform; its filters are left as they are, and gradients are off.
        inputs: What it is called with.

    Returns:
        Median seconds of every choice.
    """
    times: dict[Sizes, float] = {}
    device = next(itertools.chain(module.buffers(), module.parameters())).device
    best = module.sizes
    for field, values in CHOICES.items():
        trials = [copy.deepcopy(module) for _ in values]
        for trial, value in zip(trials, values, strict=True):
            trial.retile(best._replace(**{field: value}))
        calls = [functools.partial(trial, inputs) for trial in trials]
        timings = compare(calls, device)
        found = {trial.sizes: timing.median for trial, timing in zip(trials, timings, strict=True)}
        times |= found
        best = min(found, key=found.__getitem__)
    module.retile(min(times, key=times.__getitem__))
    return times


def random_coefficients(
    shape: Sequence[int], levels: int, o_dim: int, ri_dim: int, like: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Random coefficients of the transform of images.

    Args:
        shape: (N, C, H, W) of the images.
        levels: Number of levels.
        o_dim: Dimension of the orientations, not negative.
        ri_dim: Dimension of the real and imaginary parts, not negative.
        like: A tensor of the wanted dtype and device.

    Raises:
        ValueError: If the shape or the levels are not positive.
    """
    if len(shape) != 4 or min(shape) < 1 or levels < 1:
        raise ValueError(
            f"shape must be (N, C, H, W) and levels at least 1, got {tuple(shape)} and {levels}"
        )
    generator = torch.Generator(like.device).manual_seed(0)

    def random(order: list[int]) -> Tensor:
        return torch.randn(order, generator=generator, device=like.device, dtype=like.dtype)

    batch, channels, height, width = shape
    highs = []
    size = [height + height % 2, width + width % 2]
    for level in range(levels):
        if level:
            size = [(side + side % 4) // 2 for side in size]
        order = [batch, channels, size[0] // 2, size[1] // 2]
        for dim, length in sorted([(o_dim, 6), (ri_dim, 2)]):
            order.insert(dim, length)
        highs.append(random(order))
    return random([batch, channels, *size]), highs


def random_image(shape: Sequence[int], like: Tensor) -> Tensor:
    """A random image (N, C, H, W) of a tensor's dtype and device."""
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.randn(tuple(shape), generator=generator, device=like.device, dtype=like.dtype)
