"""Worst-case bounds against the norm of the convolution written out as a matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from convfactor.bounds import Bounds
from convfactor.geometry import ConvGeometry

MODES = ("zeros", "reflect", "replicate", "circular")


def operator(kernel: Tensor, groups: int, geometry: ConvGeometry, size: tuple[int, int]):
    """Write the padded convolution, zeros added up to a larger kernel, as a dense matrix."""
    images = torch.eye(geometry.in_channels * math.prod(size), dtype=torch.float64)
    x = images.view(-1, geometry.in_channels, *size)
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    x = F.pad(x, geometry.padding, mode=mode)
    rows, cols = (k - e for k, e in zip(kernel.shape[2:], geometry.extent, strict=True))
    x = F.pad(x, (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2))
    return F.conv2d(x, kernel, stride=geometry.stride, groups=groups).flatten(1).T.numpy()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("shape", "groups", "padding", "stride"),
    [
        ((1, 1, 3, 3), 1, 1, 1),
        ((2, 3, 3, 3), 1, 1, 1),
        ((4, 1, 5, 5), 2, 2, 1),
        ((2, 2, 5, 3), 1, (2, 1), 1),
        ((1, 2, 1, 7), 1, (0, 3), 1),
        ((2, 1, 4, 4), 1, 1, 1),
        ((2, 1, 4, 2), 1, "same", 1),
        ((3, 2, 5, 5), 1, 2, 2),
        ((2, 2, 3, 3), 1, 0, 1),
        ((1, 1, 1, 1), 1, 0, 1),
        ((1, 1, 3, 3), 1, 3, 1),
    ],
)
def test_no_image_exceeds_the_bounds(mode: str, shape, groups: int, padding, stride: int) -> None:
    for seed, size in enumerate([(4, 4), (5, 7), (8, 6), (1, 4), (4, 1), (1, 1)]):
        kernel = draw(*shape, seed=seed)
        if seed % 2:
            kernel = kernel.abs()  # low frequencies are what padding repeats
        geometry = ConvGeometry.from_weight(
            kernel, stride=stride, padding=padding, groups=groups, padding_mode=mode
        )
        bounds = Bounds.from_residual(kernel, groups, geometry)
        try:
            matrix = operator(kernel, groups, geometry, size)
        except RuntimeError:  # the image is smaller than its padding or the kernel
            continue
        assert np.linalg.norm(matrix, 2) <= bounds.spectral * (1 + 1e-12)
        assert np.abs(matrix).sum(1).max() <= bounds.l_inf * (1 + 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_bounds_are_close_on_larger_images(mode: str) -> None:
    kernel = draw(2, 2, 3, 5)
    geometry = ConvGeometry.from_weight(kernel, padding=(1, 2), padding_mode=mode)
    bounds = Bounds.from_residual(kernel, 1, geometry)
    matrix = operator(kernel, 1, geometry, (18, 18))
    slack = {"zeros": 1.2, "circular": 1.1, "reflect": 2.4, "replicate": 3}[mode]
    assert bounds.spectral <= slack * np.linalg.norm(matrix, 2)
    assert bounds.l_inf == pytest.approx(float(np.abs(matrix).sum(1).max()), rel=1e-12)


def test_residual_wider_than_the_kernel() -> None:
    kernel = draw(2, 1, 5, 7)
    for mode in MODES:
        geometry = ConvGeometry(1, 2, (3, 5), padding=(2, 2, 1, 1), padding_mode=mode)
        bounds = Bounds.from_residual(kernel, 1, geometry)
        assert math.isinf(bounds.spectral) == (mode != "zeros")
        matrix = operator(kernel, 1, geometry, (6, 6))
        assert np.linalg.norm(matrix, 2) <= bounds.spectral
        assert np.abs(matrix).sum(1).max() <= bounds.l_inf * (1 + 1e-12)


@pytest.mark.parametrize(
    ("mode", "padding", "gain"),
    [
        ("zeros", 9, 1),
        ("circular", 2, 1),
        ("circular", 3, math.inf),
        ("reflect", 2, 2),
        ("reflect", (0, 2), math.sqrt(2)),
        ("reflect", 3, math.inf),
        ("replicate", 2, 3),
        ("replicate", 4, 5),
        ("replicate", (1, 0), math.sqrt(2)),
        ("reflect", 0, 1),
    ],
)
def test_padding_costs_its_factor(mode: str, padding, gain: float) -> None:
    kernel = draw(2, 3, 5, 5)
    plain = Bounds.from_residual(kernel, 1, ConvGeometry.from_weight(kernel))
    geometry = ConvGeometry.from_weight(kernel, padding=padding, padding_mode=mode)
    bounds = Bounds.from_residual(kernel, 1, geometry)
    assert bounds.spectral == pytest.approx(gain * plain.spectral)
    assert bounds.l_inf == plain.l_inf


@pytest.mark.parametrize("taps", [1, 2, 4, 5, 6, 9])
def test_grid_factor_covers_peaks_between_the_points(taps: int) -> None:
    # A row of ones turned to any frequency: its peak, known to be ``taps``, lies anywhere.
    positions = torch.arange(taps, dtype=torch.float64)
    for frequency in (0.0, 0.1, 1.3, 2.0, math.pi):
        wave = torch.exp(1j * frequency * positions)
        kernel = torch.stack([wave.real, wave.imag]).view(2, 1, 1, taps)
        fine = torch.fft.fft(kernel, n=4096).abs().square().sum(0).amax().sqrt()
        bound = Bounds.from_residual(kernel, 1, ConvGeometry.from_weight(kernel)).spectral
        assert float(fine) <= bound * (1 + 1e-12)
        assert bound <= 1.05 * float(fine)


def test_scalar_kernel_and_zero_residual() -> None:
    kernel = torch.full((1, 1, 1, 1), -3.0, dtype=torch.float64)
    geometry = ConvGeometry.from_weight(kernel)
    bounds = Bounds.from_residual(kernel, 1, geometry)
    assert (bounds.l_inf, bounds.spectral) == pytest.approx((3, 3))
    reflect = ConvGeometry.from_weight(kernel, padding=4, padding_mode="reflect")
    assert Bounds.from_residual(0 * kernel, 1, reflect) == Bounds(0.0, 0.0)


def test_many_channels_still_bound() -> None:
    kernel = draw(96, 64, 7, 7)
    geometry = ConvGeometry.from_weight(kernel, padding=3)
    bounds = Bounds.from_residual(kernel, 1, geometry)
    response = torch.fft.rfft2(kernel, s=(23, 23)).permute(2, 3, 0, 1)
    largest = float(torch.linalg.matrix_norm(response, 2).max())
    assert largest <= bounds.spectral <= 1.3 * largest


def test_refuses_another_layers_residual() -> None:
    geometry = ConvGeometry(4, 2, (3, 3), groups=2)
    with pytest.raises(ValueError, match="2 output and 4 input channels in 2 groups"):
        Bounds.from_residual(torch.zeros(2, 4, 3, 3), 2, geometry)
